"""The benchmark of the pixel metrics runs at a tiny size; nothing is timed here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "streaming_metrics.py"


def test_it_runs_and_writes_its_result(tmp_path):
    file = tmp_path / "result.json"
    options = (
        "--pixels 30000 --compare 20000 --image 4000 --rate 0.1 --max-bins 1000 --resamples 20"
    )
    done = subprocess.run(
        [sys.executable, SCRIPT, *options.split(), "--json", file],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert (result["pixels"], result["compare"], result["max_bins"]) == (30_000, 20_000, 1000)
    assert 300 < result["bins"] <= 1000
    assert 0.9 < result["auroc"] < 0.95  # two deviations apart: 0.921
    assert result["auroc_difference"] < 1e-4
    assert result["aupr_difference"] < 1e-3
    assert result["aupro_difference"] < 1e-3
    assert 0 < result["auroc_interval"] < 0.1
    assert 0 < result["kept_mb"] < 8 * 1000 * 40 / 1e6
    expected = result["torchmetrics_seconds"] / result["compared_seconds"]
    assert result["ratio"] == pytest.approx(expected)
    assert "million_pixels_per_second" in done.stdout
