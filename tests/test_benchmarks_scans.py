"""The benchmarks of whole scans run at a tiny size and write what they print."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    cohort = make_demo_cohort(tmp_path / "data", train=1, val=1, test=1, spacing=8.0)
    options = ["--dataset", cohort, "--image-size", 32, "--components", 8, "--epochs", 1]
    result, printed = _run("fusion.py", tmp_path / "fusion.json", *options, "--seeds", 2)
    ways = {(row["models"], row["scored"]) for row in result["rows"]}
    assert len(ways) == 12
    assert len(result["rows"]) == 24
    assert all(0 < row["auroc"] < 1 for row in result["rows"])
    assert len(printed.splitlines()) == 13
    assert set(result["seconds"]) == {"0", "1", "2"}


def test_scan_check(trained, cohort, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    data = tmp_path / "cohort"
    shutil.copytree(cohort, data)
    for scan in (cohort / "train").iterdir():
        shutil.copy(scan, data / "val")
    other = cohort / "test/images/test_000.nii.gz"
    options = ["--folder", tmp_path, "--dataset", data, "--healthy", 4, "--spacing", 5]
    result, printed = _run(
        *("scan_check.py", tmp_path / "check.json", *options),
        *("--calibration", 3, "--others", other),
    )
    groups = result["findings"]
    assert [len(members) for members in groups.values()] == [4, 3, 17, 1]
    assert 0 <= result["false_alarms"]["3"] <= 1
    again = groups["test, with lesions or healthy"]["test_000.nii.gz"]
    assert groups["other scans"]["test_000.nii.gz"] == again
    wrong = groups["one healthy scan gone wrong"]
    assert wrong["upside down"]["distance"] > wrong["left to right"]["distance"]
    assert "of 17 suspicious" in printed
