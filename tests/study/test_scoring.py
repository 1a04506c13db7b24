"""Saved maps get the metrics that the maps themselves get, in a table, JSON and CSV."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from slice_trees import write_tree

from monai_dpmm.app.cli import main
from monai_dpmm.errors import InputError
from monai_dpmm.io.datalist import datalist
from monai_dpmm.metrics.anomaly_metrics import AnomalyMetrics
from monai_dpmm.metrics.image_metrics import Thresholds
from monai_dpmm.study.scoring import healthy_thresholds, measured_maps

AFFINE = np.diag([-2, 3, 1, 1.0])


def volume(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


@pytest.fixture
def volumes(tmp_path):
    """A data set of four volumes, maps as NumPy and NIfTI files, maps of healthy volumes."""
    rng = np.random.default_rng(0)
    pairs = {}
    for i in range(4):
        label = np.zeros((10, 9, 8), np.uint8)
        label[2:5, 2:4, 2:4] = label[7:9, 6:8, 5:7] = i % 2
        scores = (rng.random(label.shape) + 0.4 * label).astype(np.float32)
        volume(tmp_path / f"data/test/images/s{i}.nii.gz", scores)
        volume(tmp_path / f"data/test/labels/s{i}.nii.gz", label)
        if i < 2:
            volume(tmp_path / f"maps/s{i}.nii.gz", scores)
        else:
            np.save(tmp_path / f"maps/s{i}.npy", scores)
        volume(tmp_path / f"healthy/h{i}.nii.gz", rng.random(label.shape, dtype=np.float32))
        pairs[f"s{i}"] = scores, label
    return tmp_path, pairs


def test_the_metrics_are_those_of_the_maps(volumes):
    folder, pairs = volumes
    metrics = measured_maps(
        folder / "maps", folder / "data", healthy=folder / "healthy", bootstrap=50
    )
    expected = AnomalyMetrics(metrics.detector, bootstrap=50)
    for scores, label in pairs.values():
        expected.update([{"pred": torch.tensor(scores)[None], "label": torch.tensor(label)[None]}])
    assert metrics.compute() == expected.compute()
    assert metrics.intervals == expected.intervals
    healthy = [nib.load(path).get_fdata() for path in (folder / "healthy").iterdir()]
    assert len(metrics.detector.thresholds) == 3
    for rate, threshold in zip(*map(torch.Tensor.tolist, metrics.detector), strict=True):
        above = np.mean(np.concatenate(healthy) > threshold)
        assert rate - 1 / 720 < above <= rate


def test_a_pattern_chooses_images_and_maps_of_others_may_be_there(volumes):
    folder, _ = volumes
    some = measured_maps(folder / "maps", folder / "data", bootstrap=0, pattern="s[12]*")
    assert [image["name"] for image in some.subjects] == [
        f"test/images/s{i}.nii.gz" for i in (1, 2)
    ]
    (folder / "maps/s1.nii.gz").unlink()
    with pytest.raises(InputError, match="hold a map for each image, none is there for s1"):
        measured_maps(folder / "maps", folder / "data", bootstrap=0, pattern="s[12]*")
    np.save(folder / "maps/t7.npy", np.zeros((10, 9, 8)))
    with pytest.raises(InputError, match="hold no map without an image, got t7"):
        measured_maps(folder / "maps", folder / "data", bootstrap=0, pattern="s[23]*")


def test_the_command_prints_the_table_and_writes_json_and_csv(volumes, capsys):
    folder, _ = volumes
    arguments = ["score", folder / "maps", folder / "data", "--healthy", folder / "healthy"]
    main([*map(str, arguments), "--pattern", "s*", "--bootstrap", "40", "-o", str(folder / "out")])
    printed = capsys.readouterr().out
    report = json.loads((folder / "out/metrics.json").read_text())
    value, (low, high) = report["metrics"]["pixel_aupro"], report["intervals"]["pixel_aupro"]
    assert "protocol" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("pixel_aupro")]
    assert line.split() == ["pixel_aupro", f"{value:.4f}", f"[{low:.4f},", f"{high:.4f}]"]
    assert report["metrics"]["protocol"] == "native"
    assert report["thresholds"].keys() == {"0.01", "0.05", "0.1"}
    assert report["froc"]["sensitivity"][-1] > 0
    with (folder / "out/images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"test/images/s{i}.nii.gz" for i in range(4)]
    assert rows[0]["auroc"] == ""  # a healthy one has no curve
    assert float(rows[1]["auroc"]) == report["subjects"][1]["auroc"]
    assert {path.name for path in (folder / "out").iterdir()} == {"metrics.json", "images.csv"}


def test_slices_of_bmad_by_both_conventions_of_their_masks(tmp_path):
    """Healthy images need no mask; grey levels below 255 count by one rule only."""
    root = write_tree(tmp_path / "data", "brats2021", mask_value=122)
    shutil.rmtree(root / "test/good/label")
    (tmp_path / "maps").mkdir()
    for item in datalist(root, "test"):
        name = Path(item["image"]).stem
        lesion = np.zeros((48, 64))
        lesion[20:34, 24:40] = item["anomalous"]
        np.save(tmp_path / f"maps/{name}.npy", lesion)
    found = measured_maps(tmp_path / "maps", root, bootstrap=0)
    assert found.compute()["pixel_auroc"] == 1
    assert [subject["anomalous"] for subject in found.subjects] == [False] * 3 + [True] * 4
    options = ["--lesion-label", "255", "-o", str(tmp_path)]
    main(["score", str(tmp_path / "maps"), str(root), *options])
    subjects = json.loads((tmp_path / "metrics.json").read_text())["subjects"]
    assert all(subject["auroc"] is None for subject in subjects)  # no pixel is 255
    with pytest.raises(ValueError, match="rule must be one of positive, 255, got 'grey'"):
        measured_maps(tmp_path / "maps", root, rule="grey")


def test_without_healthy_maps_there_is_nothing_at_a_rate(volumes):
    folder, _ = volumes
    result = measured_maps(folder / "maps", folder / "data", bootstrap=0).compute()
    assert not [name for name in result if "fpr" in name or "froc" in name]
    assert {"pixel_auroc", "pixel_aupro", "mean_best_dice", "image_aupr"} <= result.keys()


def test_pictures_at_the_size_of_a_protocol(tmp_path):
    rng = np.random.default_rng(1)
    expected = AnomalyMetrics(Thresholds(torch.zeros(0), torch.zeros(0)), protocol="224")
    for i in range(2):
        label = np.zeros((30, 50), np.uint8)
        label[10:20, 30:45] = 255 * i
        scores = (rng.random(label.shape) + label / 255).astype(np.float32)
        for name, array in (("images", rng.integers(0, 255, label.shape)), ("labels", label)):
            (tmp_path / f"data/test/{name}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / f"data/test/{name}/{i}.png")
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray(scores).save(tmp_path / f"maps/{i}.tif")
        expected.update([{"pred": torch.tensor(scores)[None], "label": torch.tensor(label)[None]}])
    found = measured_maps(tmp_path / "maps", tmp_path / "data", protocol="224", bootstrap=0)
    assert found.compute() == pytest.approx(expected.compute(), abs=1e-6)
    assert found.compute()["pixel_auroc"] > 0.95


@pytest.mark.parametrize("name", ["s1.npy", "s9.npy"])
def test_what_is_refused_leaves_nothing_half_written(volumes, name):
    folder, _ = volumes
    np.save(folder / "maps" / name, np.zeros((3, 3)))
    with pytest.raises(InputError, match="maps: must hold"):
        main(["score", str(folder / "maps"), str(folder / "data"), "-o", str(folder / "out")])
    assert not (folder / "out").exists()


def test_healthy_maps_must_be_finite_and_enough(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0.1, np.nan]]))
    with pytest.raises(InputError, match=r"a\.npy: scores must be finite"):
        healthy_thresholds(tmp_path)
    np.save(tmp_path / "a.npy", np.zeros((3, 3)))
    with pytest.raises(ValueError, match="needs at least 100 healthy"):
        healthy_thresholds(tmp_path)
