"""The benchmarks of pictures run at a tiny size and write what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow  # processes of their own

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = ("backbone_architecture=efficientnet_lite0", "image_size=64", "max_epochs=1")


def _run(script, *options):
    command = [sys.executable, BENCHMARKS / script, *map(str, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def _settings(*more):
    return [word for setting in (*SMALL, *more) for word in ("-s", setting)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speckle") / "data"
    _run("speckle.py", folder, "--train", 5, "--valid", 3, "--test", 2)
    return folder


def test_pictures_of_speckle_have_lesions_that_scatter_less(pictures):
    assert len(list((pictures / "train/good").glob("*.png"))) == 5
    assert len(list((pictures / "test/good/img").glob("*.png"))) == 2
    for image in (pictures / "test/Ungood/img").glob("*.png"):
        mask = np.asarray(Image.open(image.parents[1] / "label" / image.name)) > 0
        grey = np.asarray(Image.open(image)).astype(float)
        assert 0.01 < mask.mean() < 0.12
        assert grey[mask].mean() < grey[~mask].mean()


def test_truncation(pictures, tmp_path):
    file, folder = tmp_path / "truncation.json", tmp_path / "work"
    options = [pictures, "-f", folder, *_settings("smoothing_mm=4"), "--json", file]
    options += ["--seeds", 1, "--epochs", 1, "--every", 1, "--truncations", 8, 16]
    printed = _run("truncation.py", *options)
    records = json.loads(file.read_text())
    assert {(r["start"], r["truncation"]) for r in records} == {
        (start, truncation) for start in ("paper", "sticks", "equal") for truncation in (8, 16)
    }
    assert all(0 < r["survive"] <= r["truncation"] for r in records)
    assert all(0 < r[split] < 1 for r in records for split in ("validation", "test"))
    assert "| equal | 16 | 16 |" in printed
    assert _run("truncation.py", *options).count("{") == 0  # nothing is run again


def test_left_out(pictures, tmp_path):
    file, folder = tmp_path / "left_out.json", tmp_path / "work"
    options = ["--dataset", pictures, "-f", folder, *_settings("components=8", "slice_axis=2")]
    _run("left_out.py", *options, "--ml", 0.2, "--json", file)
    result = json.loads(file.read_text())
    scans = [way["scans"] for way in result["ways"].values()]
    assert result["tests"] == 2
    assert scans == [3, 8, 8]
    assert all(0 < way["promised_ml"] <= 0.2 for way in result["ways"].values())
