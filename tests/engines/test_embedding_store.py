"""Embeddings on disk: those of training, kept, unnormalised, and redone only where they must be."""

import shutil

import nibabel as nib
import pytest
import torch
from monai.bundle import ConfigParser
from slice_trees import write_tree
from torch.nn import functional as F
from workflows import ROOT, SMALL

from monai_dpmm.engines import embedding_store as module
from monai_dpmm.engines.embedding_store import embedded_dataset
from monai_dpmm.engines.slices import SliceDataset
from monai_dpmm.errors import InputError
from monai_dpmm.io.datalist import datalist

OPTIONS = SMALL | {"ignore_background": True, "slice_step": 4}


def parser_of(folder, **options):
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "train.json"))
    parser.update(OPTIONS | {"dataset_dir": str(folder)} | options)
    return parser


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def dataset(cohort, files):
    return embedded_dataset(parser_of(cohort), files)


def test_healthy_slices_are_those_that_training_sees(cohort, dataset):
    for section in ("train", "val"):
        embed = parser_of(cohort).get_parsed_content("embedding")
        expected = SliceDataset([embed(item) for item in datalist(cohort, section)])
        slices = dataset.healthy(section)
        assert len(slices) == len(expected)
        for grid, item in zip(slices, expected, strict=True):
            torch.testing.assert_close(grid, item["image"])


def test_raw_embeddings_are_the_backbones(dataset):
    raw, unit = dataset.healthy("val", unit_norm=False), dataset.healthy("val")
    for grid, scaled in zip(raw, unit, strict=True):
        there = grid.any(-1)
        assert (grid[there].norm(dim=-1) > 1.1).all()  # two levels of unit norm each
        torch.testing.assert_close(F.normalize(grid, dim=-1), scaled)
        assert not scaled[~there].any()
        torch.testing.assert_close(scaled[there].norm(dim=-1), torch.ones(int(there.sum())))


def test_test_scans_keep_their_lesions(cohort, dataset):
    scans = list(dataset.tests())
    assert [scan.name for scan in scans] == dataset.scans["test"]
    for scan in scans:
        label = nib.load(cohort / "test/labels" / scan.name).get_fdata() > 0
        assert scan.masks.dtype == torch.bool
        assert scan.masks.shape == (len(scan.embeddings), *scan.masks.shape[1:])
        turned = nib.as_closest_canonical(nib.load(cohort / "test/labels" / scan.name))
        axial = turned.get_fdata()[:, :, ::-1][:, :, ::4] > 0  # "PLI": axial, from above
        assert scan.masks.sum(dim=(1, 2)).tolist() == axial.sum(axis=(0, 1)).tolist()
        assert label.any() == bool(axial.any()) or not axial.any()
    # a lesion's patches take part, as they do not in training
    assert all(scan.embeddings.any(-1).flatten(1).any(1).any() for scan in scans)
    assert any(scan.masks.any() for scan in scans)
    assert dataset.milliseconds > 0


@pytest.mark.parametrize(("rule", "found"), [("positive", 14 * 16), ("255", 0)])
def test_slices_keep_their_lesions_by_the_rule_of_their_data_set(tmp_path, rule, found):
    counts = {"train": 2, "test/good": 1, "test/bad": 1}
    root = write_tree(tmp_path / "data", "mvtec", counts=counts, mask_value=58)
    parser = parser_of(root, slice_step=1, lesion_label=rule)
    healthy, anomalous = embedded_dataset(parser, tmp_path / "kept").tests()
    assert healthy.masks.shape == anomalous.masks.shape == (1, 48, 64)
    assert not healthy.masks.any()
    assert int(anomalous.masks.sum()) == found


def test_nothing_is_embedded_twice(cohort, dataset, files, monkeypatch):
    before = dataset.key
    dates = {path: path.stat().st_mtime_ns for path in files.iterdir()}
    again = embedded_dataset(parser_of(cohort, components=7, seed=3, max_epochs=1), files)
    assert again.key == before
    assert {path: path.stat().st_mtime_ns for path in files.iterdir()} == dates


def test_other_settings_or_scans_are_embedded_again(cohort, dataset, files, tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(module, "_embed", lambda item, pipeline, path, key: done.append(path.name))
    embedded_dataset(parser_of(cohort, percentiles=[1, 99]), files)
    assert len(done) == 8
    done.clear()
    copy, kept = tmp_path / "data", tmp_path / "embeddings"
    shutil.copytree(cohort, copy)
    shutil.copytree(files, kept)
    embedded_dataset(parser_of(copy), kept)
    assert len(done) == 8  # other files, as far as their paths tell


def test_an_interrupted_embedding_goes_on(cohort, dataset, files, tmp_path):
    shutil.copytree(files, tmp_path / "kept")
    missing = dataset.path("test", 1).name
    (tmp_path / "kept" / missing).unlink()
    dates = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    again = embedded_dataset(parser_of(cohort), tmp_path / "kept")
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert now.keys() - dates.keys() == {missing}
    assert {name: now[name] for name in dates} == dates
    assert again.key == dataset.key


def test_a_test_scan_without_a_label_is_refused(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "data")
    next((tmp_path / "data/test/labels").iterdir()).unlink()
    with pytest.raises(InputError, match="must have a mask of its lesions"):
        embedded_dataset(parser_of(tmp_path / "data"), tmp_path / "embeddings")
    assert not (tmp_path / "embeddings").exists()
