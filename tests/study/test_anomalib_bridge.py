"""The bridge to anomalib: its lists and maps, and its models where anomalib is at hand."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from slice_trees import LAYOUTS, write_tree

from monai_dpmm.errors import InputError
from monai_dpmm.io.datalist import datalist
from monai_dpmm.study.external_maps import matched_maps

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "anomalib" / "run.py"
PYTHON = "MONAI_DPMM_ANOMALIB_PYTHON"
needs_anomalib = pytest.mark.skipif(
    PYTHON not in os.environ, reason=f"{PYTHON} does not name a python with anomalib"
)


@pytest.fixture(scope="module")
def bridge():
    spec = importlib.util.spec_from_file_location("anomalib_bridge", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def called(python, *arguments, **variables):
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    command = [python, *map(str, arguments)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lists_are_this_packages_with_healthy_validation_images(bridge, tmp_path, layout):
    lists = bridge.image_lists(write_tree(tmp_path, layout))
    for name, section in (("train", "train"), ("healthy", "val"), ("test", "test")):
        assert [str(path) for path in lists[name]] == [
            item["image"] for item in datalist(tmp_path, section)
        ]
    assert not any("bad" in path.name for path in lists["train"] + lists["healthy"])
    assert any("bad" in path.name for path in lists["test"])


def test_volumes_are_refused(bridge, tmp_path):
    for folder in ("train", "val", "test/images"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "scan.nii.gz").touch()
    with pytest.raises(InputError, match=r"scan.nii.gz: must be a picture \(.png"):
        bridge.image_lists(tmp_path)


def test_maps_are_matched_to_images_even_where_names_repeat(bridge, tmp_path):
    images = [tmp_path / "data" / name for name in ("good/1.png", "Ungood/1.png", "Ungood/2.png")]
    paths = bridge.map_paths(images, tmp_path / "maps")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros((2, 2)))
    assert matched_maps(images, tmp_path / "maps") == paths
    assert bridge.map_paths(images[1:], Path("maps")) == [Path("maps/1.npy"), Path("maps/2.npy")]


@pytest.mark.parametrize("leading", [(), (1,), (1, 1)])
def test_a_map_takes_the_size_of_its_image_rows_first(bridge, leading):
    rows = torch.arange(4.0)[:, None].expand(4, 4).expand(*leading, 4, 4)
    resized = bridge.native_map(rows, (8, 12))
    assert (resized.shape, resized.dtype) == ((8, 12), np.float32)
    assert np.ptp(resized, axis=1).max() == 0
    assert resized[:, 0] == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model nothing", "invalid choice: 'nothing'"),
        ("--model stfpm", "--max-epochs must be at least 1 for stfpm, got None"),
        ("--model cflow --max-epochs 0", "--max-epochs must be at least 1 for cflow, got 0"),
        ("--model padim --max-epochs 3", "--max-epochs must not be given for padim"),
        ("--model padim --batch-size 0", "--batch-size must be at least 1, got 0"),
        ("--model padim --textures .", "--textures must not be given for padim"),
        ("--model draem --max-epochs 1", "--textures must be a folder of pictures for draem"),
        ("--model draem --max-epochs 1 --backbone resnet18", "--backbone must not be given"),
    ],
)
def test_wrong_options_are_refused(bridge, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        bridge.arguments(["data", "--out", "maps", *options.split()])
    assert message in capsys.readouterr().err


def test_maps_of_another_run_are_left_alone(tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "a.npy").touch()
    out = tmp_path / "maps"
    ran = called(sys.executable, SCRIPT, tmp_path, "--model", "padim", "--out", out)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == f"error: {out}: must be a new or empty folder"


@needs_anomalib
@pytest.mark.parametrize(
    "options",
    [
        "padim",
        "patchcore --backbone resnet18",
        "cfa --backbone resnet18 --max-epochs 1",
    ],
)
def test_maps_of_anomalib_are_scored(tmp_path, options):
    data, out = write_tree(tmp_path / "data", "brats2021"), tmp_path / "maps"
    model = ["--model", *options.split(), "--no-pretrained", "--batch-size", "4"]
    ran = called(os.environ[PYTHON], SCRIPT, data, "--out", out, *model)
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"data", "maps"}
    maps = sorted(out.rglob("*.npy"))
    assert len(maps) == len(datalist(data, "test")) + len(datalist(data, "val"))
    assert {np.load(path).shape for path in maps} == {(48, 64)}
    command = ["score", out / "test", data, "--healthy", out / "healthy"]
    scored = called(sys.executable, "-m", "monai_dpmm", *command, "--out", tmp_path / "scores")
    assert scored.returncode == 0, scored.stderr
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())["metrics"]
    assert metrics["pixel_auroc"] > 0.9


@needs_anomalib
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("padim", "padim: needs the pretrained weights of resnet18, put https://huggingface.co/"),
        ("cfa --max-epochs 1", "put https://download.pytorch.org/models/wide_resnet50_2-"),
    ],
)
def test_missing_weights_are_told_in_one_line_and_never_replaced(tmp_path, options, message):
    data = write_tree(tmp_path / "data", "brats2021")
    nowhere = {"HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    nowhere |= {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    out = tmp_path / "maps"
    command = [SCRIPT, data, "--out", out, "--model", *options.split()]
    ran = called(os.environ[PYTHON], *command, **nowhere)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert message in ran.stderr.splitlines()[-1]
    assert not out.exists()
