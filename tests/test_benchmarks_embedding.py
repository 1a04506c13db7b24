"""Benchmarks of backbones, stores and places run at a tiny size and write what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NETWORK = ("backbone_architecture=efficientnet_lite0", "image_size=96", "components=20")


def _run(script, file, *options):
    command = [sys.executable, BENCHMARKS / script, *map(str, options), "--json", file]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(file.read_text()), result.stdout


def test_backbone(tmp_path):
    ways = ("bfloat16", "products", "products-bfloat16")
    options = ["--image-size", 56, "--batch", 2, "--repeats", 1, "--ways", *ways]
    result, printed = _run("backbone.py", tmp_path / "backbone.json", *options)
    found = result["batches"]["2"]
    assert list(found) == ["float32", *ways]
    assert found["float32"]["error"] == 0
    assert 0 < found["bfloat16"]["error"] < 0.05
    assert all(way["ratio"] > 0 for way in found.values())
    assert len(printed.splitlines()) == 6


def test_store(tmp_path):
    options = ["--slices", 25, 50, "--components", 4, "--repeats", 1]
    result, printed = _run("store.py", tmp_path / "store.json", *options)
    assert result["gb"] == pytest.approx(50 * 1024 * 384 * 2e-9, rel=0.05)
    assert len(result["memory"]) == len(result["first"]) == 2
    assert result["epoch"]["ratio"] > 0
    assert "epoch from the store / in memory" in printed


def test_streamed(trained, tmp_path):
    options = [trained / "embeddings", "--components", 8, "--seeds", 2]
    result, printed = _run("streamed.py", tmp_path / "streamed.json", *options)
    assert len(result) == len(printed.splitlines()) - 1 == 9
    assert {len(values) for values in result.values()} == {2}
    assert result["drawn, exp 0.6, 5 passes"] > result["drawn, exp 0.6, 1 passes"]


def test_map_precision(trained, cohort, tmp_path):
    options = [cohort, "-f", trained, "--scans", 1]
    result, printed = _run("map_precision.py", tmp_path / "precision.json", *options)
    ways = result["ways"]
    assert list(ways) == ["float32", "float16 kept", "bfloat16"]
    assert ways["float32"]["largest"] == 0
    assert 0 < ways["float16 kept"]["mean"] < ways["bfloat16"]["mean"]
    assert len(printed.splitlines()) == 4
    result, _ = _run("map_precision.py", tmp_path / "far.json", *options, "--spacing-mm", 10, 20)
    assert 0 == result["ways"]["float32"]["mean"] < result["ways"]["10 mm"]["mean"]
    assert result["ways"]["10 mm"]["mean"] < result["ways"]["20 mm"]["mean"]


def test_placed_steps(cohort, tmp_path):
    settings = [word for setting in (*NETWORK, "slice_step=3") for word in ("-s", setting)]
    options = [cohort, "-f", tmp_path, *settings, "--seeds", 1, "--fits", 2]
    result, printed = _run("placed_steps.py", tmp_path / "placed.json", *options)
    assert [record["way"] for record in result] == ["after", "inside"]
    assert all(record["placed"] > record["plain"] for record in result)
    assert all(0 < record[kind] < 1 for record in result for kind in ("cosine", "likelihood"))
    assert "| inside |" in printed
