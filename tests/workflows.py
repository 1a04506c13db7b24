"""The bundle's workflows as their users run them: MONAI's command line in a subprocess."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ADDED = (  # to the paper, by `train`
    *("slice_axis", "mask_foreground", "ignore_background", "place_grid", "smoothing_mm"),
    *("subtract_baseline", "percentiles", "leave_one_out"),
)
SMALL = {
    "backbone_architecture": "efficientnet_lite0",
    "image_size": 96,
    "components": 40,
    "max_epochs": 3,
    "slice_step": 2,
}
DEFAULTS = dict(SMALL)  # of a small model in which all that `train` adds to the paper is on
PAPER = json.loads((ROOT / "configs/paper.json").read_text())
# an expression for null, which MONAI's command line takes for no override at all
SMALL |= {k: "$None" if v is None else v for k, v in PAPER.items() if k in ADDED}


def run_bundle(run_id, configs, *, expect=0, **overrides):
    """A run of configs by name or path, which must succeed (expect=0) or fail (expect=1)."""
    files = [str(ROOT / "configs" / f"{c}.json") if "/" not in c else c for c in configs]
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    for key, value in overrides.items():
        command += [f"--{key}", str(value)]
    result = subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=600, check=False
    )
    assert (result.returncode == 0) == (expect == 0), result.stdout + result.stderr
    return result


def with_reference(trained, root):
    """A trained model whose 20 healthy scans use other prototypes than any scan: all are unlike."""
    shutil.copytree(trained / "models", root / "models")
    file = root / "models/model.json"
    settings = json.loads(file.read_text())
    usage = " ".join(["100000"] + ["0"] * (settings["components"] - 1))
    reference = {"usage": [usage] * 3, "distances": [0.001 * i for i in range(20)]}
    file.write_text(json.dumps(settings | {"scan_reference": reference}))
    return root
