import nibabel as nib
import numpy as np
import pytest

from monai_dpmm.errors import InputError
from monai_dpmm.report.display import Scan
from monai_dpmm.study.figures.results import SavedScans, single_slice


@pytest.fixture
def saved(tmp_path):
    """A data set of one scan with lesion values 58 and 255 and a healthy one, and results of it."""
    volume = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    label = np.zeros(volume.shape, np.uint8)
    label[1, 2, 3], label[0] = 255, 58
    affine = np.diag([-2.0, 3, 4, 1])  # first axis to the left
    for number in (0, 1):
        files = {f"data/test/images/scan{number}": volume + number}
        files[f"data/test/labels/scan{number}"] = label * (1 - number)
        for name, factor in (("anomaly", 0.5), ("mask", 1), ("component", 3)):
            files[f"output/test/images/scan{number}/scan{number}_{name}"] = (
                volume > 0.5
            ) * np.float32(factor)
        for name, array in files.items():
            path = tmp_path / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), path)
        text = '{"score": 1, "threshold": 0.25, "false_positive_rate": 0.05}'
        text = text.replace("}", ', "false_positive_volume_ml": null}')
        (tmp_path / f"output/test/images/scan{number}/scan{number}_findings.json").write_text(text)
    return tmp_path


def test_a_scan_is_what_lies_on_disk_towards_right_anterior_superior(saved):
    scans = SavedScans(saved / "data", saved / "output", rule="positive", axis=1)
    assert len(scans) == 2
    assert scans.threshold == 0.25
    name, scan = scans[0]
    on_disk = nib.load(saved / "data/test/images/scan0.nii.gz").get_fdata()[::-1]
    assert name == "scan0"
    assert np.corrcoef(scan.image.ravel(), on_disk.ravel())[0, 1] > 0.999
    assert (scan.image.min(), scan.image.max()) == (0, 1)
    np.testing.assert_array_equal(scan.anomaly, (on_disk > 0.5) * 0.5)
    np.testing.assert_array_equal(scan.components, (on_disk > 0.5) * 3)
    assert (scan.axis, scan.extent) == (1, (8.0, 24.0))
    assert int(scan.label.sum()) == 31
    assert not scans[1][1].label.any()


def test_a_pattern_chooses_scans(saved):
    options = {"rule": "positive", "axis": 2, "pattern": "*1.nii.gz"}
    scans = SavedScans(saved / "data", saved / "output", **options)
    assert [name for name, _ in (scans[i] for i in range(len(scans)))] == ["scan1"]


def test_lesions_are_those_of_the_rule(saved):
    scans = SavedScans(saved / "data", saved / "output", rule="255", axis=2)
    assert np.argwhere(scans[0][1].label).tolist() == [[2, 2, 3]]


def test_results_that_are_missing_are_one_line(saved):
    (saved / "output/test/images/scan1/scan1_component.nii.gz").unlink()
    line = (
        r"output: must hold what.* no .*scan1_component\.nii\.gz: run `monai-dpmm evaluate` first"
    )
    with pytest.raises(InputError, match=line):
        SavedScans(saved / "data", saved / "output", rule="positive", axis=2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slice_with_the_most_of_the_lesion_is_kept_alone(axis):
    rng = np.random.default_rng(0)
    image, label = rng.random((4, 5, 6)), np.zeros((4, 5, 6), bool)
    label[1, 2, 3] = label[2, 2, 3] = label[1, 3, 3] = label[1, 2, 4] = True
    index = int(label.sum(tuple(i for i in range(3) if i != axis)).argmax())
    one = single_slice(Scan.of(image, image, label=label, axis=axis))
    assert one.image.shape[axis] == 1
    np.testing.assert_array_equal(np.take(one.image, 0, axis), np.take(image, index, axis))
    assert one.mask is None
    assert one.image.base is None or one.image.base.size == one.image.size  # the volume can go
