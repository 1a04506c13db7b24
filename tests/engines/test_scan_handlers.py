"""Calibration on healthy volumes and what inference makes of it, by the bundle's workflows."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from workflows import SMALL, run_bundle

from monai_dpmm.app.settings import CALIBRATED

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own


@pytest.fixture(scope="module")
def calibrated(trained, cohort, tmp_path_factory):
    """Bundle root of the small trained model, calibrated on five healthy scans, and the output."""
    root = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(trained / "models", root / "models")
    data = root / "data"
    shutil.copytree(cohort / "train", data / "train")
    shutil.copytree(cohort / "val", data / "val")
    for scan in (cohort / "train").iterdir():
        shutil.copy(scan, data / "val")
    result = _calibrate(root, data)
    return root, result.stdout


@pytest.fixture(scope="module")
def uncalibrated(trained, tmp_path_factory):
    """Bundle root of the model as it was before a training calibrated it."""
    root = tmp_path_factory.mktemp("uncalibrated")
    shutil.copytree(trained / "models", root / "models")
    settings = json.loads((root / "models/model.json").read_text())
    kept = {key: value for key, value in settings.items() if key not in CALIBRATED}
    (root / "models/model.json").write_text(json.dumps(kept))
    return root


def _calibrate(root, data, expect=0):
    configs = ["inference", str(root / "models/model.json"), "calibrate"]
    return run_bundle("run", configs, expect=expect, bundle_root=root, dataset_dir=data)


def _infer(root, scans, out, expect=0, **overrides):
    settings = {"ckpt_dir": root / "models", "dataset_dir": scans, "output_dir": out, **overrides}
    configs = ["inference", str(root / "models/model.json")]
    return run_bundle("run", configs, expect=expect, **settings)


def test_calibration_adds_to_the_models_settings_what_it_prints(calibrated, trained):
    root, printed = calibrated
    settings = json.loads((root / "models/model.json").read_text())
    before = json.loads((trained / "models/model.json").read_text())
    assert settings.keys() == before.keys() >= {*CALIBRATED}
    same = [key for key in before if key not in CALIBRATED]
    assert [settings[key] for key in same] == [before[key] for key in same]
    assert len(before["healthy_scans"]["scores"]) == 2  # the training's two held-back scans
    assert before["scan_reference"] is None
    assert len(settings["healthy_scans"]["scores"]) == 5
    volumes = settings["volume_thresholds"]
    assert [one["ml_per_scan"] for one in volumes] == [1, 2, 5, 10, 20, 50]
    thresholds = [one["threshold"] for one in volumes]
    assert sorted(thresholds, reverse=True) == thresholds
    for one in volumes:
        assert one["scans"] == 5
        assert one["interval"][0] < one["mean_ml"] <= one["ml_per_scan"]
        assert one["mean_ml"] < min(one["interval"][1], one["highest_ml"])
        assert f"{one['threshold']:.4f}" in printed
    assert len(settings["scan_reference"]["distances"]) == 5
    assert "exact down to 1 / 6" in printed
    two = volumes[1]
    assert f"expect {two['mean_ml']:.1f} ml (95 % interval" in printed
    assert f"{two['findings_per_scan']:.1f} findings of at least 0.1 ml" in printed
    assert sorted(p.name for p in (root / "models").iterdir()) == sorted(
        p.name for p in (trained / "models").iterdir()
    )


def test_inference_by_volume_marks_the_scans_that_are_unlike_the_training_data(
    calibrated, cohort, tmp_path
):
    root, _ = calibrated
    scan = nib.load(cohort / "val/val_000.nii.gz")
    voxels = np.asarray(scan.dataobj)
    (tmp_path / "scans").mkdir()
    nib.save(scan, tmp_path / "scans/good.nii.gz")
    noise = np.random.default_rng(0).random(voxels.shape, np.float32)
    nib.save(nib.Nifti1Image(noise, scan.affine), tmp_path / "scans/noise.nii.gz")
    upright = nib.Nifti1Image(voxels[:, :, ::-1], scan.affine)
    nib.save(upright, tmp_path / "scans/upside_down.nii.gz")
    choices = {"false_positive_volume": 5, "scan_false_alarm_rate": 0.2}
    result = _infer(root, tmp_path / "scans", tmp_path / "out", **choices)
    lines = [line for line in result.stdout.splitlines() if "not like the training data" in line]
    names = [line.split(": ")[0].rsplit("/")[-1] for line in lines]
    assert names == ["noise", "upside_down"]
    settings = json.loads((root / "models/model.json").read_text())
    threshold = settings["volume_thresholds"][2]["threshold"]
    anomaly = nib.load(tmp_path / "out/good/good_anomaly.nii.gz").get_fdata(dtype=np.float32)
    mask = np.asarray(nib.load(tmp_path / "out/good/good_mask.nii.gz").dataobj)
    assert np.array_equal(mask > 0, anomaly > np.float32(threshold))
    assert 0 < mask.sum() * 0.125 < 50


def test_maps_are_calibrated_and_written_smoothed_and_less_their_baseline(
    calibrated, cohort, tmp_path
):
    root, _ = calibrated
    scan = cohort / "test/images/test_000.nii.gz"
    steps = {
        "plain": {"smoothing_mm": 0, "subtract_baseline": False},
        "refined": {"smoothing_mm": 8.0, "subtract_baseline": True},
    }
    maps, there = {}, None
    for name, chosen in steps.items():
        shutil.copytree(root / "models", tmp_path / name / "models")
        file = tmp_path / name / "models/model.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | chosen))
        _calibrate(tmp_path / name, root / "data")
        _infer(tmp_path / name, scan, tmp_path / name / "out", false_positive_volume=5)
        results = tmp_path / name / "out/test_000"
        there = np.asarray(nib.load(results / "test_000_component.nii.gz").dataobj) > 0
        anomaly = nib.load(results / "test_000_anomaly.nii.gz").get_fdata(dtype=np.float32)
        maps[name] = anomaly[there]
    assert np.median(maps["refined"]) == pytest.approx(0, abs=1e-2)
    assert maps["refined"].std() < 0.9 * maps["plain"].std()
    settings = json.loads((tmp_path / "refined/models/model.json").read_text())
    threshold = settings["volume_thresholds"][2]["threshold"]
    mask = np.asarray(nib.load(results / "test_000_mask.nii.gz").dataobj)
    assert np.array_equal(mask > 0, anomaly > np.float32(threshold))
    findings = json.loads((results / "test_000_findings.json").read_text())
    assert abs(findings["baseline"] - np.median(maps["plain"])) < maps["plain"].std()
    assert findings["scan_check"]["baseline"] == findings["baseline"]
    low, high = findings["scan_check"]["healthy_baselines"]
    assert low < high
    assert findings["healthy_scans"] == 5
    for lesion in findings["lesions"]:
        assert lesion["p_value"] * 6 == pytest.approx(round(lesion["p_value"] * 6))


def test_by_default_2_ml_are_marked_once_the_model_is_calibrated(
    trained, uncalibrated, cohort, tmp_path
):
    scan = cohort / "test/images/test_000.nii.gz"
    for folder, told in ((trained, False), (uncalibrated, True)):
        result = _infer(folder, scan, tmp_path / folder.name)
        assert ("The model has no thresholds by volume" in result.stdout) == told
        file = tmp_path / folder.name / "test_000/test_000_findings.json"
        findings = json.loads(file.read_text())
        expected = (0.01, None) if told else (None, 2)
        points = "false_positive_rate", "false_positive_volume_ml"
        assert tuple(findings[key] for key in points) == expected
        assert all(lesion["volume_ml"] > 0.0999 for lesion in findings["lesions"])


def test_a_volume_that_was_not_calibrated_ends_inference_in_one_line(
    calibrated, uncalibrated, cohort, tmp_path
):
    for root, message in (
        (calibrated[0], "false_positive_volume must be one of 1, 2, 5, 10, 20, 50 ml, got 3"),
        (uncalibrated, "false_positive_volume=3 needs thresholds calibrated by volume"),
    ):
        result = _infer(
            root, cohort / "test/images", tmp_path / "out", expect=1, false_positive_volume=3
        )
        assert "Traceback" not in result.stderr
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert message in line
        assert not (tmp_path / "out").exists()


def test_training_and_inference_along_three_axes_and_too_few_scans_for_the_check(cohort, tmp_path):
    axes = {"slice_axis": [0, 1, 2]}
    settings = {**SMALL, "max_epochs": 1, "slice_step": 4, **axes}
    run_bundle("training", ["train"], bundle_root=tmp_path, dataset_dir=cohort, **settings)
    saved = json.loads((tmp_path / "models/model.json").read_text())
    assert saved["slice_axis"] == [0, 1, 2]
    printed = _calibrate(tmp_path, cohort).stdout
    assert "Scan check: not calibrated, it needs at least 3 scans, got 2" in printed
    scan = cohort / "test/images/test_000.nii.gz"
    _infer(tmp_path, scan, tmp_path / "out", false_positive_volume=5)
    anomaly = nib.load(tmp_path / "out/test_000/test_000_anomaly.nii.gz")
    assert anomaly.shape == nib.load(scan).shape
