"""The benchmarks of exports and imports run at a tiny size and write what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script, file, *options):
    command = [sys.executable, BENCHMARKS / script, *map(str, options), "--json", file]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(file.read_text()), result.stdout


def test_export(tmp_path):
    sizes = ["--image-size", 64, "--side", 40, "--components", 8, "--slices", 1]
    options = ["--backbones", "efficientnet_lite0", *sizes, "--repeats", 1, "--threads", 1]
    result, printed = run("export.py", tmp_path / "export.json", *options)
    (found,) = result["results"]
    megabytes, ways = found["megabytes"], found["ways"]
    assert list(megabytes) == ["model.pt", "bundle.zip", "model.ts", "model.onnx"]
    assert all(2 < size < 5 for size in megabytes.values())  # each holds the backbone's weights
    assert list(ways) == ["module", "TorchScript", "ONNX"]
    assert ways["module"]["ratio"] == 1
    assert all(way["seconds"] > 0 and way["difference"] < 1e-4 for way in ways.values())
    assert 0.01 < found["largest_score"] < 2
    assert "efficientnet_lite0, 64 px, 8 components" in printed


def test_import_time(tmp_path):
    options = ["--rows", "its transforms", "--repeats", 1]
    result, printed = run("import_time.py", tmp_path / "import.json", *options)
    assert list(result) == ["its transforms"]
    assert result["its transforms"]["heavy"] == []
    assert 0 < result["its transforms"]["added"] < result["its transforms"]["monai"]
    assert len(printed.splitlines()) == 2
