"""Benchmarks run at a tiny size and write what they print; nothing is timed here."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PEERS = {"BayesianGaussianMixture", "GaussianMixture"}


def peers(result):
    assert (result["patches"], result["features"], result["held_out"]) == (400, 16, 100)
    assert set(result["ratios"]) == PEERS
    assert set(result["methods"]) == PEERS | {"DirichletProcessMixture"}
    for name, found in result["methods"].items():
        assert found["seconds"] > 0
        assert 1 <= found["surviving"] <= 8
        assert math.isfinite(found["log_likelihood"])
        if name != "BayesianGaussianMixture":  # its score is no likelihood
            assert found["own_score"] == pytest.approx(found["log_likelihood"], abs=1e-3)
    mine = result["methods"]["DirichletProcessMixture"]["log_likelihood"]
    for name, ratio in result["ratios"].items():
        theirs = result["methods"][name]["log_likelihood"]
        assert ratio["log_likelihood_gain"] == pytest.approx(mine - theirs)


def reading(result):
    assert list(result) == ["int16", "float32", "uint8"]
    for found in result.values():
        assert found["ratio"] == pytest.approx(found["ours_s"] / found["nibabel_s"])


def allocator(result):
    (found,) = result["backbones"].values()
    assert found["ratio"] > 0
    assert found["kept"]["user_ms"] > 0


def scoring_share(result):
    assert result["share"] > 0
    assert result["threads"] == 1


def volume_stages(result):
    stages = set(result["seconds"])
    assert {"LoadVolumed", "backbone", "mixture", "RefineAnomalyd", "SaveImageResultsd"} <= stages
    assert min(result["seconds"].values()) >= 0
    assert result["peak_bytes"]["mixture"] >= result["libraries_bytes"] > 1e8


def test_every_benchmark_is_run_by_a_test():
    tests = "".join(file.read_text() for file in Path(__file__).parent.rglob("test_*.py"))
    scripts = {file.stem for file in BENCHMARKS.glob("*.py")}
    named = {one for one in scripts if f'"{one}.py"' in tests or f"\nfrom {one} import" in tests}
    assert named == scripts


@pytest.mark.parametrize(
    ("script", "options", "check"),
    [
        (
            "allocator.py",
            "--backbones efficientnet_lite0_multiscale --image-size 64 --batch 2 --repeats 1",
            allocator,
        ),
        ("scoring_share.py", "--slices 1 --repeats 1 --size 32 --place-grid 3 2 2", scoring_share),
        (
            "volume_stages.py",
            "--backbone efficientnet_lite0 --image-size 64 --shape 60 60 40 --threads 1",
            volume_stages,
        ),
        ("reading.py", "--shape 64 64 48 --repeats 2 --threads 1", reading),
        (
            "peers.py",
            "--patches 400 --held-out 100 --features 16 --components 8 --passes 2 --threads 1",
            peers,
        ),
    ],
)
def test_it_runs_and_writes_its_result(tmp_path, script, options, check):
    file = tmp_path / "result.json"
    command = [sys.executable, BENCHMARKS / script, *options.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "--json", file], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    check(json.loads(file.read_text()))
    assert len(result.stdout.splitlines()) > 1
