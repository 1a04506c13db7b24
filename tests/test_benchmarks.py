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


@pytest.mark.parametrize(
    ("script", "options", "check"),
    [
        ("reading.py", "--shape 64 64 48 --repeats 2", reading),
        (
            "peers.py",
            "--patches 400 --held-out 100 --features 16 --components 8 --passes 2",
            peers,
        ),
    ],
)
def test_it_runs_and_writes_its_result(tmp_path, script, options, check):
    file = tmp_path / "result.json"
    command = [sys.executable, BENCHMARKS / script, *options.split(), "--threads", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "--json", file], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    check(json.loads(file.read_text()))
    assert len(result.stdout.splitlines()) > 3
