"""Inference on a folder where not all is well: the rest is done, and nothing is half-written."""

import json
import os
import resource
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from workflows import ROOT, run_bundle

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own


@pytest.fixture
def scans(cohort, tmp_path):
    """Two scans that are well, and three that are not."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, name in enumerate("ae"):
        shutil.copy(cohort / f"test/images/test_00{number}.nii.gz", folder / f"{name}.nii.gz")
    (folder / "b.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:5000])
    nib.save(nib.Nifti1Image(np.full((9, 9, 9), 7.0), np.eye(4)), folder / "c.nii.gz")
    (folder / "d.png").write_text("no picture")
    return folder


def _infer(trained, scans, out, **options):
    model = str(trained / "models/model.json")
    settings = {"ckpt_dir": trained / "models", "dataset_dir": scans, "output_dir": out}
    return run_bundle("run", ["inference", model], **settings, **options)


def test_bad_scans_do_not_stop_the_others(trained, scans, tmp_path):
    result = _infer(trained, scans, tmp_path / "out", expect=1)
    start = result.stderr.index("error: 3 of 5 scans were skipped:")
    _, *reasons = result.stderr[start:].splitlines()
    assert [os.path.basename(line.split(": ")[0]) for line in reasons] == [
        *("b.nii.gz", "c.nii.gz", "d.png")
    ]
    assert "Traceback" not in result.stderr
    for name in "ae":
        assert nib.load(tmp_path / f"out/{name}/{name}_anomaly.nii.gz").get_fdata().max() > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "e", "report"}
    assert (tmp_path / "out/report/report.html").is_file()


def test_of_a_folder_of_bad_scans_only_the_report_says_why(trained, scans, tmp_path):
    for name in "ae":
        (scans / f"{name}.nii.gz").unlink()
    result = _infer(trained, scans, tmp_path / "out", expect=1)
    assert "error: 3 of 3 scans were skipped:" in result.stderr
    assert "Traceback" not in result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report"}
    page = (tmp_path / "out/report/report.html").read_text()
    assert all(name in page for name in ("b.nii.gz", "c.nii.gz", "d.png"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_that_cannot_be_written_is_one_line(trained, scans, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    result = _infer(trained, scans / "a.nii.gz", tmp_path / "out", expect=1)
    assert "Traceback" not in result.stderr
    assert "could not be written" in result.stderr


def test_an_output_folder_that_is_a_file_is_one_line(trained, scans, tmp_path):
    (tmp_path / "out").write_text("a file")
    result = _infer(trained, scans / "a.nii.gz", tmp_path / "out", expect=1)
    assert "Traceback" not in result.stderr
    assert f"error: {tmp_path / 'out'}: must be a folder to write to" in result.stderr


def test_a_full_disk_leaves_no_half_of_a_file(trained, scans, tmp_path):
    """Files may not grow beyond 3000 bytes, less than any volume has."""
    files = [str(ROOT / "configs/inference.json"), str(trained / "models/model.json")]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)]
    command += ["--ckpt_dir", str(trained / "models"), "--dataset_dir", str(scans / "a.nii.gz")]
    command += ["--output_dir", str(tmp_path / "out")]
    limited = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
    )
    assert limited.returncode != 0
    assert "Traceback" not in limited.stderr
    assert "could not be written" in limited.stderr
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert [path.name for path in left] in ([], ["metrics.json"])  # small enough, and whole
    assert all(json.loads(path.read_text())["left_out"] for path in left)
