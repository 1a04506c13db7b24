"""Embeddings for the comparison: those of training, unnormalised too, and lesions of test scans."""

import shutil

import nibabel as nib
import pytest
import torch
from monai.bundle import ConfigParser
from slice_trees import write_tree
from torch.nn import functional as F
from workflows import ROOT, SMALL

from monai_dpmm.engines.slices import SliceDataset
from monai_dpmm.errors import InputError
from monai_dpmm.io.datalist import datalist
from monai_dpmm.study.embedded_dataset import embedded_dataset

OPTIONS = SMALL | {"ignore_background": True, "slice_step": 4, "slice_axis": 2}


def parser_of(folder, kept, **options):
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "train.json"))
    parser.update(OPTIONS | {"dataset_dir": str(folder), "embedding_dir": str(kept)} | options)
    return parser


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def dataset(cohort, kept):
    return embedded_dataset(parser_of(cohort, kept))


def test_healthy_slices_are_those_that_training_sees(cohort, kept, dataset):
    for section, workflow in (("train", "train"), ("val", "validate")):
        embed = parser_of(cohort, kept).get_parsed_content(f"{workflow}#preprocessing")
        expected = SliceDataset([embed(item) for item in datalist(cohort, section)])
        slices = dataset.healthy(section)
        assert len(slices) == len(expected)
        for grid, item in zip(slices, expected, strict=True):
            assert torch.equal(grid, item["image"])


def test_training_and_comparison_share_their_files(cohort, kept, dataset):
    # digests.json may grow: files that are two seconds old are read again
    files = {path: path.stat().st_mtime_ns for path in kept.glob("*.safetensors")}
    own = {"components": 7, "max_epochs": 1, "device": "cpu", "embedding_batch_size": 3}
    parser = parser_of(cohort, kept, **own)
    for key in ("train#dataset", "validate#dataset"):
        SliceDataset(parser.get_parsed_content(key))
    again = embedded_dataset(parser)
    assert {path: path.stat().st_mtime_ns for path in kept.glob("*.safetensors")} == files
    assert again.key == dataset.key
    other = embedded_dataset(parser_of(cohort, kept, percentiles=[1, 99]))
    assert other.key != dataset.key


def test_raw_embeddings_are_the_backbones(dataset):
    raw, unit = dataset.healthy("val", unit_norm=False), dataset.healthy("val")
    for grid, scaled in zip(raw, unit, strict=True):
        there = grid.any(-1)
        assert (grid[there].norm(dim=-1) > 1.1).all()  # two levels of unit norm each
        assert torch.equal(F.normalize(grid, dim=-1), scaled)
        assert not scaled[~there].any()


def test_test_scans_keep_their_lesions(cohort, dataset):
    scans = list(dataset.tests())
    items = datalist(cohort, "test", labels=True)
    for scan, item in zip(scans, items, strict=True):
        assert item["image"].endswith(scan.name)
        assert scan.masks.dtype == torch.bool
        assert scan.masks.shape == (len(scan.embeddings), *scan.masks.shape[1:])
        turned = nib.as_closest_canonical(nib.load(cohort / "test/labels" / scan.name))
        axial = turned.get_fdata()[:, :, ::-1][:, :, ::4] > 0  # "PLI": axial, from above
        assert scan.masks.sum(dim=(1, 2)).tolist() == axial.sum(axis=(0, 1)).tolist()
    # a lesion's patches take part, as they do not in training
    assert all(scan.embeddings.any(-1).flatten(1).any(1).any() for scan in scans)
    assert any(scan.masks.any() for scan in scans)


def test_places_are_those_of_the_slices_that_training_sees(dataset):
    for section in ("train", "val"):
        grids, places = dataset.healthy(section), dataset.places(section)
        assert [p.shape for p in places] == [(*grid.shape[:2], 3) for grid in grids]
        assert all(float(p.min()) >= 0 and float(p.max()) <= 1 for p in places)
    # axis 2 of "PLI" is axial from above: the slices of a scan go through the head
    first = [float(p[0, 0, 2]) for p in dataset.places("train")]
    assert first[0] < 0.1
    assert first[1] > first[0]


def test_the_body_of_a_test_scan_is_what_its_preprocessing_leaves(cohort, kept, dataset):
    preprocess = parser_of(cohort, kept).get_parsed_content("preprocessing")
    items = datalist(cohort, "test", labels=True)
    for scan, again, item in zip(dataset.tests(), dataset.tests(), items, strict=True):
        image = preprocess({"image": item["image"]})["image"]
        expected = (image[0] > 0).movedim(2, 0)[::4]
        assert torch.equal(scan.foreground, expected.as_tensor())
        assert torch.equal(again.foreground, scan.foreground)  # as it was kept
        assert scan.spacing[0] == pytest.approx(4 * float(image.pixdim[2]))
        assert scan.places.shape == (*scan.embeddings.shape[:3], 3)
        assert scan.matched
        assert scan.group in (item.get("patient"), item["image"])


def test_of_several_directions_the_first_is_compared(cohort, tmp_path):
    one = embedded_dataset(parser_of(cohort, tmp_path, slice_axis=1))
    several = embedded_dataset(parser_of(cohort, tmp_path, slice_axis=[1, 2]))
    assert several.key == one.key


def test_scans_are_matched_by_the_table_of_the_data_set(tmp_path):
    root = write_tree(
        tmp_path / "data", "mvtec", counts={"train": 2, "test/good": 2, "test/bad": 1}
    )
    parser = parser_of(root, tmp_path / "kept", slice_step=1, ignore_background=False)
    names = [scan.name for scan in embedded_dataset(parser).tests()]
    (root / "test_level_matched.csv").write_text(f"file,class\n{names[0]},good\n")
    matched = {scan.name: scan.matched for scan in embedded_dataset(parser).tests()}
    assert matched == {name: name == names[0] for name in names}
    (root / "test_level_matched.csv").write_text("name\na.png\n")
    with pytest.raises(InputError, match=r"test_level_matched\.csv: must have a column named file"):
        embedded_dataset(parser)


@pytest.mark.parametrize(("rule", "found"), [("positive", 14 * 16), ("255", 0)])
def test_slices_keep_their_lesions_by_the_rule_of_their_data_set(tmp_path, rule, found):
    counts = {"train": 2, "test/good": 1, "test/bad": 1}
    root = write_tree(tmp_path / "data", "mvtec", counts=counts, mask_value=58)
    options = {"slice_step": 1, "lesion_label": rule, "ignore_background": False}
    parser = parser_of(root, tmp_path / "kept", **options)
    healthy, anomalous = embedded_dataset(parser).tests()
    assert healthy.masks.shape == anomalous.masks.shape == (1, 48, 64)
    assert not healthy.masks.any()
    assert int(anomalous.masks.sum()) == found


def test_a_test_scan_without_a_label_is_refused(cohort, tmp_path):
    root = shutil.copytree(cohort, tmp_path / "data")
    next((root / "test/labels").iterdir()).unlink()
    with pytest.raises(InputError, match="must have a mask of its lesions"):
        embedded_dataset(parser_of(root, tmp_path / "embeddings"))
    assert not (tmp_path / "embeddings").exists()
