"""The benchmarks of whole scans run at a tiny size and write what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_dpmm import datalist
from monai_dpmm.io.datalist import data_root
from monai_dpmm.io.result_files import result_files
from monai_dpmm.study.cohort.cohort import make_demo_cohort

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def _run(script, file, *options):
    command = [sys.executable, BENCHMARKS / script, *map(str, options), "--threads", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "--json", file], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    return json.loads(file.read_text()), result.stdout


def test_fusion(tmp_path):
    cohort = make_demo_cohort(tmp_path / "data", train=1, val=1, test=1, spacing=5.0)
    options = ["--dataset", cohort, "--image-size", 32, "--components", 8, "--epochs", 1]
    result, printed = _run("fusion.py", tmp_path / "fusion.json", *options, "--seeds", 2)
    ways = {(row["models"], row["scored"]) for row in result["rows"]}
    assert len(ways) == 12
    assert len(result["rows"]) == 24
    assert all(0 < row["auroc"] < 1 for row in result["rows"])
    assert len(printed.splitlines()) == 13
    assert set(result["seconds"]) == {"0", "1", "2"}


def test_scan_check(trained_by_default, cohort, tmp_path):
    other = cohort / "test/images/test_000.nii.gz"
    options = ["--folder", trained_by_default, "--dataset", cohort, "--healthy", 2, "--spacing", 5]
    groups, printed = _run("scan_check.py", tmp_path / "check.json", *options, "--others", other)
    tests = groups["healthy test scans"] | groups["test scans with lesions"]
    assert len(tests) == len(datalist(cohort, "test"))
    assert groups["other scans"]["test_000.nii.gz"] == tests["test_000.nii.gz"]
    wrong = groups["one healthy scan gone wrong"]
    assert wrong["upside down"]["distance"] > wrong["left to right"]["distance"]
    assert "of 17 suspicious" in printed


def test_lesions_are_painted_into_the_scan_that_is_held_back(tmp_path):
    axis = np.arange(72) - 36
    inside = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < 34**2
    voxels = np.where(inside, 100, 0).astype(np.float32)
    scans = [tmp_path / f"scan{number}.nii.gz" for number in range(3)]
    for scan in scans:
        nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])), scan)
    command = [sys.executable, BENCHMARKS / "lesions_in_scans.py", *scans]
    subprocess.run([*command, "--out", tmp_path / "out"], check=True)
    for number in range(3):
        root = tmp_path / "out" / str(number)
        assert len(datalist(root, "train")) == 2
        assert len(datalist(root, "val")) == 1
        (test,) = datalist(root, "test", labels=True)
        image, label = (nib.load(test[key]).get_fdata() for key in ("image", "label"))
        radii = [6, 8, 10, 12]
        expected = sum(4 / 3 * np.pi * radius**3 for radius in radii) / 8  # voxels
        assert label.sum() == pytest.approx(expected, rel=0.05)
        assert np.abs(image - voxels)[(label > 0) & inside].min() > 10
        assert np.abs(image - voxels)[label == 0].mean() < 1


def test_findings(tmp_path):
    """One scan with a lesion whose peak is below that of a false finding, and a healthy scan."""
    anomaly = np.zeros((2, 12, 12, 12), np.float32)
    anomaly[0, 2:6, 2:6, 2:6], anomaly[0, 9, 9, 9], anomaly[1, 4, 4, 4] = 2.0, 5.0, 3.0
    label = np.zeros((2, 12, 12, 12), np.uint8)
    label[0, 3:6, 3:6, 3:6] = 1
    affine = np.diag([5.0, 5.0, 5.0, 1.0])  # 0.125 ml
    for number, name in enumerate(("a", "b")):
        for folder, voxels in (("test/images", anomaly), ("test/labels", label)):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            image = nib.Nifti1Image(voxels[number], affine)
            nib.save(image, tmp_path / "data" / folder / f"{name}.nii.gz")
    items = datalist(tmp_path / "data", "test", labels=True)
    for number, item in enumerate(items):
        root = data_root(tmp_path / "data")
        file = result_files(item["image"], tmp_path / "output", root)["anomaly"]
        file.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(anomaly[number], affine), file)
    (tmp_path / "models").mkdir()
    known = {"volume_thresholds": [{"ml_per_scan": 2, "threshold": 1.0}]}
    (tmp_path / "models/model.json").write_text(json.dumps(known))
    options = ["--folder", tmp_path, "--dataset", tmp_path / "data", "--smallest", 0, 1]
    result, printed = _run("findings.py", tmp_path / "findings.json", *options)
    all_, large = result["rows"]
    assert (all_["lesions_found"], all_["lesions"], all_["scans_with_lesions"]) == (1, 1, 1)
    assert (all_["false_healthy"], all_["false_ill"]) == (1, 1)
    assert all_["first"] == {"volume": 1, "excess": 1, "peak": 0}
    assert all_["auroc"] == {"volume": 1, "excess": 1, "peak": 1}
    assert (large["false_healthy"], large["false_ill"]) == (0, 0)
    assert large["first"]["peak"] == 1
    assert "1 of 1" in printed


def test_baseline_leaves_small_lesions_and_takes_from_large_ones(tmp_path):
    noise = np.random.default_rng(0).random((2, 24, 24, 24)).astype(np.float32)
    for number, name in enumerate("ab"):
        for kind in ("images", "labels"):
            file = tmp_path / "data/test" / kind / f"{name}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            ill = np.full(noise[0].shape, kind == "labels" and name == "a", np.uint8)
            image = noise[number] if kind == "images" else ill
            nib.save(nib.Nifti1Image(image, np.eye(4)), file)
    for number, item in enumerate(datalist(tmp_path / "data", "test", labels=True)):
        files = result_files(item["image"], tmp_path / "output", data_root(tmp_path / "data"))
        files["anomaly"].parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(noise[number], np.eye(4)), files["anomaly"])
        component = np.ones(noise[0].shape, np.uint16)
        nib.save(nib.Nifti1Image(component, np.eye(4)), files["component"])
    options = ["--folder", tmp_path, "--dataset", tmp_path / "data"]
    result, printed = _run("baseline.py", tmp_path / "baseline.json", *options)
    assert result["scans"] == 1  # the healthy one
    left = {(row["steps"], row["share"]): row["left"] for row in result["rows"]}
    for steps in ("baseline", "levelled and baseline"):
        assert left[steps, 0.01] > 0.98
        assert left[steps, 0.4] < left[steps, 0.2] < left[steps, 0.01]
    assert left["levelled and baseline", 0.4] < left["baseline", 0.4]
    assert "1 healthy scans" in printed
