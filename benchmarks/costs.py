"""What the method costs on this machine: an EM step, scoring, and the stages of a volume.

    python benchmarks/costs.py --threads 1
    python benchmarks/costs.py scan.nii.gz -f brain --json costs.json

Ratios and shares are medians over repeats of one run. The weights of the backbone are random, which
does not change the time; the stages of a volume are those of the model in -f, and are timed where
SCAN is given.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timing import available_device
from workload import StepSize, scoring_cost, stand_in_detector, step_cost, volume_cost

from monai_dpmm.app.workflows import PLANS, merged_config, planned
from monai_dpmm.errors import one_line_errors, printable
from monai_dpmm.files import atomic_write
from monai_dpmm.io.datalist import datalist, existing_file
from monai_dpmm.report.environment import environment

_WIDTH = 44  # of a quantity's name


def costs(
    size: StepSize,
    device: torch.device,
    *,
    backbone: str = "dinov2_vits14",
    image_size: int = 448,
    images: int = 4,
    repeats: int = 5,
    folder: str | Path = ".",
    scan: str | Path | None = None,
) -> dict[str, Any]:
    """What the method costs here: "step", "scoring", "volume" (None without a scan), "environment".

    Args:
        size: of the EM step.
        device: to measure on.
        backbone: architecture whose forward pass scoring is compared with; random weights.
        image_size: pixels of a slice's shorter side.
        images: slices at once.
        repeats: turns whose median ratio counts.
        folder: of the trained model that a volume is scored by.
        scan: whose inference is timed; the first of them, of a folder of scans.

    Raises:
        InputError: where a scan is given and it or the model is missing, before anything runs.
        ValueError: for an unknown backbone.
    """
    if scan is not None:
        existing_file(Path(folder) / "models" / "model.pt")
        scan = datalist(scan, "test")[0]["image"]
    detector = stand_in_detector(backbone, size.components, image_size)
    slices = torch.rand(images, 1, image_size, image_size)
    told = {"backbone": backbone, "image_size": image_size, "images": images, "weights": "random"}
    found = {
        "environment": environment(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "step": step_cost(size, device, repeats),
        "scoring": {**told, **scoring_cost(detector, slices, device, repeats)},
        "volume": None,
    }
    if scan is not None:
        with tempfile.TemporaryDirectory() as results:
            values = {
                "bundle_root": str(folder),
                "dataset_dir": str(scan),
                "output_dir": results,
                "device": f"$torch.device('{device.type}')",
            }
            parser = merged_config(planned(PLANS["infer"][0], [], Path(folder) / "models"), values)
            found["volume"] = volume_cost(parser, str(scan), device)
    return found


def costs_table(found: Mapping[str, Any]) -> str:
    """The costs for the screen, 80 columns wide.

    Ratios and shares; milliseconds of a GPU only.
    """
    here, step, scoring, volume = (found[k] for k in ("environment", "step", "scoring", "volume"))
    on = here["gpu"] if found["device"] == "cuda" else f"CPU, {found['threads']} threads"
    lines = [
        f"Processor: {here['processor']}",
        f"GPU: {here['gpu']}",
        f"Software: Python {here['python']}, torch {here['torch']}, monai {here['monai']}",
        f"Measured on: {on}; medians over {found['repeats']} repeats of one run, {here['date']}",
        "",
        f"One EM step: {step['patches']} patches, {step['features']} features,"
        f" {step['components']} components",
        _line("time / time of its four matrix products", step["ratio"]),
        _line("memory above its input, MB", step["memory_mb"]),
        _line("the input, MB", step["input_mb"]),
        *_times(step),
        "",
        f"Scoring: {scoring['images']} slices of {scoring['image_size']} px,"
        f" {scoring['backbone']} with random weights",
        _line("scoring and upsampling / forward pass", f"{100 * scoring['share']:.2f} %"),
        *_times(scoring),
        "",
    ]
    if volume is None:
        return "\n".join([*lines, "One volume: not timed, no scan was given"])
    stages = [_line(name, f"{100 * share:.1f} %") for name, share in volume["shares"].items()]
    whole = [_line("time / time of embedding alone", volume["to_embedding"]), *_times(volume)]
    return "\n".join([*lines, f"One volume: {printable(volume['scan'])}", *stages, *whole])


def _line(name: str, value: float | str | None) -> str:
    shown = f"{value:.2f}" if isinstance(value, float) else "unknown" if value is None else value
    return f"  {name:{_WIDTH}}{shown:>12}"


def _times(found: Mapping[str, Any]) -> list[str]:
    """Lines of the milliseconds, which a GPU has."""
    names = {"step_ms": "time, ms", "forward_ms": "forward pass, ms", "total_ms": "all stages, ms"}
    return [_line(told, float(found[key])) for key, told in names.items() if key in found]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    one_line_errors()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scan", type=Path, nargs="?", metavar="SCAN")
    parser.add_argument("-f", "--folder", type=Path, default=Path("."), help="of the model")
    for field, told in (("patches", "N"), ("features", "D"), ("components", "K")):
        default = StepSize._field_defaults[field]
        parser.add_argument(f"--{field}", type=int, default=default, help=f"{told} of the EM step")
    parser.add_argument("--backbone", default="dinov2_vits14", help="of random weights")
    parser.add_argument("--image-size", type=int, default=448, help="of a slice's shorter side")
    parser.add_argument("--images", type=int, default=4, help="slices at the backbone at once")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for all numbers")
    args = parser.parse_args(argv)
    device = available_device(args.device)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    found = costs(
        StepSize(args.patches, args.features, args.components),
        device,
        backbone=args.backbone,
        image_size=args.image_size,
        images=args.images,
        repeats=args.repeats,
        folder=args.folder,
        scan=args.scan,
    )
    print(costs_table(found))
    if args.json is not None:
        with atomic_write(args.json) as partial:
            partial.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
