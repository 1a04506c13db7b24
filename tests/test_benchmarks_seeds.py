"""The benchmarks of embeddings and seeds, one after the other at a tiny size; nothing is timed."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from workflows import SMALL

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script, *arguments):
    command = [sys.executable, BENCHMARKS / script, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_embeddings_keep_their_grids_and_seeds_fit_them(cohort, tmp_path):
    options = SMALL | {"slice_step": 4, "ignore_background": True}
    settings = [part for k, v in options.items() for part in ("--set", f"{k}={json.dumps(v)}")]
    file = tmp_path / "new" / "embeddings.pt"
    run("cohort_embeddings.py", "--dataset", cohort, "--out", file, *settings)
    assert [path.name for path in file.parent.iterdir()] == ["embeddings.pt"]
    data = torch.load(file, weights_only=True)
    grids = data["train"] + data["val"]  # of scans cut to their body: each of a size of its own
    assert len({grid.shape[-1] for grid in grids}) == 1 < len({grid.shape for grid in grids})
    there = data["train"][0].any(-1)
    assert there.any()
    assert not there.all()
    for subject in data["test"]:
        assert len(subject["embeddings"]) == len(subject["masks"])
    assert any(subject["masks"].any() for subject in data["test"])

    few = ["--seeds", "2", "--epochs", "1", "--components", "20", "--variants", "paper", "steady"]
    text = run("seeds.py", file, *few, "--json", tmp_path / "seeds.json")
    assert len(text.splitlines()) == 3
    result = json.loads((tmp_path / "seeds.json").read_text())
    assert [len(seeds) for seeds in result.values()] == [2, 2]
    for found in result["paper"] + result["steady"]:
        assert math.isfinite(found["log_likelihood"])
        assert 1 <= found["components"] <= 20
        assert 0 <= found["auroc"] <= 1

    few = ["--patches", "200", "--held-out", "50", "--components", "4", "--passes", "1"]
    run("peers.py", "--embeddings", file, *few, "--json", tmp_path / "peers.json")
    result = json.loads((tmp_path / "peers.json").read_text())
    assert (result["patches"], result["features"]) == (200, data["val"][0].shape[-1])

    few = ["--seeds", "1", "--epochs", "1", "--components", "20", "--floors", "0.001", "--bank"]
    text = run("gap.py", file, *few, "--json", tmp_path / "gap.json")
    result = json.loads((tmp_path / "gap.json").read_text())
    assert len(result) == 3 == len(text.splitlines()) - 1
    for (found,) in result.values():
        assert 0 <= found["aupr"] <= 1
        assert 0 <= found["best_dice"] <= 1
