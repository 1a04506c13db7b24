"""The main job on real scans: train on healthy heads, mark a lesion, and 48 orientations agree."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.real_data]


def _command(*arguments):
    command = [sys.executable, "-m", "monai_dpmm", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def model(real_data, tmp_path_factory):
    """Folder with a model of three healthy heads: one scan is held back for validation."""
    root = tmp_path_factory.mktemp("real")
    (root / "healthy").mkdir()
    for name in ("chris_t1.nii.gz", "MNI152_2009_template.nii.gz", "brainmask.mgz"):
        shutil.copy(real_data / name, root / "healthy" / name)
    settings = {
        "backbone_architecture": "efficientnet_lite0",
        "image_size": 128,
        "ignore_background": "true",
        "components": 100,
        "slice_step": 6,
        "max_epochs": 5,
    }
    overrides = [part for key, value in settings.items() for part in ("-s", f"{key}={value}")]
    _command("train", root / "healthy", "-f", root, *overrides)
    return root


def test_flair_gets_a_finite_anomaly_volume_on_its_own_grid(model, real_data):
    _command("infer", real_data / "FLAIR.nii.gz", "-f", model, "-s", f"output_dir={model}/flair")
    source = nib.load(real_data / "FLAIR.nii.gz")
    anomaly = nib.load(model / "flair/FLAIR/FLAIR_anomaly.nii.gz")
    assert anomaly.shape == source.shape
    assert np.allclose(anomaly.affine, source.affine, atol=1e-4)
    values = anomaly.get_fdata()
    assert np.isfinite(values).all()
    assert values.max() > 0.1
    assert (model / "flair/report/report.html").is_file()
    metrics = json.loads((model / "flair/report/metrics.json").read_text())
    assert metrics["subjects"][0]["name"] == "FLAIR"


def test_one_brain_in_48_orientations_has_one_anomaly_volume(model, real_data):
    scans = sorted((real_data / "nifti_space").glob("*.nii.gz"))
    assert len(scans) == 48
    _command("infer", real_data / "nifti_space", "-f", model, "-s", f"output_dir={model}/space")
    reference = None
    for scan in scans:
        name = scan.name.removesuffix(".nii.gz")
        anomaly = nib.load(model / f"space/{name}/{name}_anomaly.nii.gz")
        source = nib.load(scan)
        assert anomaly.shape == source.shape
        assert np.allclose(anomaly.affine, source.affine, atol=1e-3)
        canonical = nib.as_closest_canonical(anomaly)
        if reference is None:
            reference = canonical
        assert np.allclose(canonical.affine, reference.affine, atol=0.05)
        difference = np.abs(canonical.get_fdata() - reference.get_fdata())
        assert difference.mean() < 1e-4, name
        assert difference.max() < 1e-2, name


def test_a_series_among_the_scans_ends_in_one_line(model, real_data):
    command = [sys.executable, "-m", "monai_dpmm", "infer", real_data / "mpld_asl.nii.gz"]
    result = subprocess.run(
        [*map(str, command), "-f", str(model), "-s", f"output_dir={model}/asl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr
    assert "mpld_asl.nii.gz: must have one channel, got 25" in result.stderr
    assert [path.name for path in (model / "asl").iterdir()] == ["report"]  # which says why
