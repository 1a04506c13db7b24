"""Benchmarks of the engine run at a tiny size and report what must be so; nothing is timed here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COVARIANCES = ["diagonal", "full", "spherical", "von_mises_fisher"]
SMALL = ["--features", "16", "--components", "12", "--threads", "1"]
LINUX = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory is read from /proc/self/statm"
)


def run(script, *options):
    command = [sys.executable, BENCHMARKS / script, *SMALL, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def result_of(tmp_path, script, options):
    file = tmp_path / "result.json"
    done = run(script, *options.split(), "--json", file)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert (result["features"], result["components"], result["threads"]) == (16, 12, 1)
    return result, done.stdout


@pytest.mark.parametrize("covariance", ["diagonal", "full", "von_mises_fisher"])
def test_a_late_step_gives_what_the_dense_one_gives(tmp_path, covariance):
    options = f"--patches 300 --repeats 2 --surviving 4 --covariance {covariance}"
    result, shown = result_of(tmp_path, "em_step.py", options)
    assert (result["covariance"], result["surviving"]) == (covariance, 4)
    assert result["late_difference"] < 1e-5
    assert min(result[f"{run}_ms"] for run in ("products", "step", "late")) > 0
    work = 1 + 1.5 * 16 if covariance == "full" else 4 if covariance == "diagonal" else 2
    speed = result["step_tflops"] * result["step_ms"] * 1e9
    assert speed == pytest.approx(work * 2 * 300 * 16 * 12)
    fraction = result["step_tflops"] / result["products_tflops"]
    assert result["matmul_fraction"] == pytest.approx(fraction)
    assert "late_ratio" in shown


def test_without_survivors_there_is_no_late_step(tmp_path):
    result, _ = result_of(tmp_path, "em_step.py", "--patches 300 --repeats 1")
    assert not [name for name in result if name.startswith(("late", "surviving"))]


def test_survivors_out_of_range_are_refused():
    done = run("em_step.py", "--surviving", "13")
    assert done.returncode == 2
    assert "surviving must be from 2 to 12, got 13" in done.stderr


def test_a_missing_device_is_refused():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "em_step.py", "--device", "cuda"],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2
    assert "PyTorch finds no CUDA device" in done.stderr


@LINUX
def test_memory_of_a_step_does_not_grow_with_its_patches(tmp_path):
    options = "--cases step --patches 4096 65536 --images 2 --grid 8"
    result, _ = result_of(tmp_path, "memory.py", options)
    small, large = (result["needed_mb"]["step"][n] for n in ("4096", "65536"))
    assert small >= 0
    assert large - small < 0.4 * (65536 - 4096) * 16 * 4 / 1e6  # a copy of the input would show
    assert set(result["kept_mb"]) == {"step"}
    epoch = result["epochs"]["2"]
    assert epoch["data_mb"] == pytest.approx(2 * 8 * 8 * 16 * 4 / 1e6)
    assert epoch["rest_mb"] >= 0


def test_scaling_draws_its_points(tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "scaling.png"
    ranges = "--patches-range 64 128 --components-range 4 8 --features-range 8 16"
    options = f"--patches 100 --repeats 1 {ranges} --out {out}"
    result, _ = result_of(tmp_path, "scaling.py", options)
    sizes = {name: [p[name] for p in found] for name, found in result["points"].items()}
    assert sizes == {"patches": [64, 128], "components": [4, 8], "features": [8, 16]}
    for p in (p for points in result["points"].values() for p in points):
        assert p["ratio"] == pytest.approx(p["step_ms"] / p["products_ms"])
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_fit_reports_each_epoch(tmp_path):
    options = "--images 20 --patches 32 --batch 6 --epochs 3 --clusters 5"
    result, shown = result_of(tmp_path, "fit.py", options)
    epochs = result["per_epoch"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert result["seconds"] == pytest.approx(sum(epoch["seconds"] for epoch in epochs))
    assert result["step_ms"] == pytest.approx(1e3 * result["seconds"] / (3 * 4))
    assert epochs[-1]["log_likelihood"] > epochs[0]["log_likelihood"]
    for epoch in epochs:
        assert 1 <= epoch["surviving"] <= epoch["active"] <= 12
    assert result["data_gb"] == pytest.approx(20 * 32 * 16 * 4 / 1e9)
    assert len(shown.splitlines()) > 4


def test_fewer_mantissa_bits_cost_more(tmp_path):
    options = "--patches 200 --clusters 5 --variances 1e-2 1e-6"
    result, shown = result_of(tmp_path, "precision.py", options)
    assert set(result["models"]) == {*COVARIANCES, "cosine"}
    for name, found in result["models"].items():
        for errors in found.values():
            error = [errors[kind]["error"] for kind in ("float32", "tf32", "bfloat16")]
            assert error == sorted(error), name
            assert error[1] > 20 * error[0], name
            assert all(e["error"] <= e["error_all"] for e in errors.values())
        if name not in ("full", "cosine"):
            assert found["1e-6"]["tf32"]["error"] > 100 * found["1e-2"]["tf32"]["error"]
            assert found["1e-6"]["float32"]["error"] < 2
    assert "bfloat16" in shown
