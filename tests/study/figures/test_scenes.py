import itertools

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.transforms import Orientation
from slice_trees import write_tree

from monai_dpmm.app.cli import configs_dir
from monai_dpmm.io.datalist import datalist
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.network.geometry import extract_slices
from monai_dpmm.report.display import displayed_slice
from monai_dpmm.study.figures.scenes import Frame, Scenes


def parser_of(root, dataset, **overrides):
    """What the command reads: train, the model's own settings, evaluate."""
    parser = ConfigParser()
    names = [
        configs_dir() / "train.json",
        root / "models/model.json",
        configs_dir() / "evaluate.json",
    ]
    parser.read_config([str(name) for name in names])
    parser.update({"bundle_root": str(root), "dataset_dir": str(dataset), **overrides})
    return parser


@pytest.fixture(scope="module")
def scenes(trained, cohort):
    return Scenes(parser_of(trained, cohort))


@pytest.mark.parametrize("codes", ["PLI", "RAS", "SAR", "ILP"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_slice_is_shown_the_right_way_up(codes, axis, tmp_path):
    """A slice that the model sees looks on the screen like the same slice of the RAS volume."""
    volume = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    path = tmp_path / "x.nii.gz"
    nib.save(nib.Nifti1Image(volume, np.diag([2.0, 3, 4, 1])), path)
    image = Orientation(codes, labels=None)(LoadVolume()(str(path)))
    frame = Frame(np.asarray(image.affine), 3, axis)
    np.testing.assert_array_equal(frame.canonical(image[0].numpy()), volume)
    assert frame.spacing == pytest.approx((2, 3, 4))
    assert frame.axis == "RLAPIS".index(codes[axis]) // 2
    shown = [frame.upright(plane[0].numpy()) for plane in extract_slices(image, axis)]
    truth = [displayed_slice(volume, frame.axis, i) for i in range(volume.shape[frame.axis])]
    matches = [next(i for i, t in enumerate(truth) if np.array_equal(s, t)) for s in shown]
    assert sorted(matches) == list(range(len(truth)))


def test_a_picture_is_shown_first_axis_to_the_right_second_down():
    frame = Frame(np.eye(4), 2, 2)
    picture = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(frame.upright(picture), picture.T)
    turned = Frame(np.diag([-1.0, -1, 1, 1]), 2, 2)
    np.testing.assert_array_equal(turned.upright(picture[::-1, ::-1]), picture.T)
    assert frame.picture
    assert len(frame.spacing) == 3


def test_scenes_are_what_inference_would_write(scenes, cohort):
    """Scan and label as on disk, scores as the detector gives them to the slices."""
    item = datalist(cohort, "test", labels=True)[0]
    (scene,) = scenes([item])
    assert scene.name == "test_000"
    label = nib.load(item["label"]).get_fdata() > 0
    np.testing.assert_array_equal(scene.scan.label, label)
    image = nib.load(item["image"]).get_fdata()
    assert np.corrcoef(scene.scan.image.ravel(), image.ravel())[0, 1] > 0.98
    assert scene.scan.axis == 2
    assert scene.scan.extent == pytest.approx((image.shape[0] * 5.0, image.shape[1] * 5.0))
    assert scene.scan.components.max() <= scenes.network.mixture.means.shape[0]
    index = int(label.sum((0, 1)).argmax())
    plane = extract_slices(scenes._image(scenes.loading(dict(item)))[0], 2)
    maps = scenes.network(plane)[:, 0].numpy()
    found = displayed_slice(scene.scan.anomaly, 2, index)
    assert min(abs(found - one).max() for one in maps) < 1e-5


@pytest.mark.parametrize(("rule", "found"), [("positive", 14 * 16), ("255", 0)])
def test_scenes_of_pictures_have_lesions_by_the_rule_of_their_data_set(
    trained, tmp_path, rule, found
):
    counts = {"train": 2, "test/good": 1, "test/bad": 1}
    root = write_tree(tmp_path, "mvtec", counts=counts, mask_value=58)
    settings = {"label_rule": rule, "orientation": "ARS"}
    scenes = Scenes(parser_of(trained, root, **settings))
    healthy, anomalous = scenes(datalist(root, "test", labels=True))
    assert not healthy.scan.label.any()
    assert int(anomalous.scan.label.sum()) == found
    assert next(scenes(datalist(root, "val"))).scan.label is None


def test_patches_of_some_slices(scenes, cohort):
    items = datalist(cohort, "train")
    for frame, slices in scenes.patches(items[:1], 5):
        patches = list(slices)
        assert 5 <= len(patches) <= 9
        assert {p.scores.shape for p in patches} == {p.components.shape for p in patches}
        pixels = {frame.upright(p.pixels).shape for p in patches}
        assert pixels == {nib.load(items[0]["image"]).shape[1::-1]}


def test_one_scan_is_loaded_at_a_time(scenes, cohort):
    """Scans that nobody asked for are not opened."""
    items = [*datalist(cohort, "test")[:1], {"image": "nowhere.nii.gz"}]
    assert len(list(itertools.islice(scenes(items), 1))) == 1
    with pytest.raises(RuntimeError, match="applying transform"):
        list(scenes(items))
