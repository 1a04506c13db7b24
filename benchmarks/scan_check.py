"""How often the scan check is wrong: on healthy scans, on scans with lesions, on scans gone wrong.

    python -m monai_dpmm demo
    python benchmarks/scan_check.py --folder demo --others SCAN ...

Run it from a checkout with the demo extra installed. The check is that of the demo's model, as its
training calibrated it, at the model's rate of false alarms. It is asked about healthy scans of a
cohort of another seed, about the test scans, with lesions and without, about one healthy scan made
wrong in many ways, and about any other scans.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import GaussianSmooth, Rotate
from monai.utils import convert_to_tensor
from torch import Tensor
from tqdm import tqdm

from monai_dpmm import LoadVolume, datalist, make_demo_cohort, predict
from monai_dpmm.app.release import write_bundle


def ghosted(volume: Tensor) -> Tensor:
    """Every other line of k-space along the second axis at half its strength: a ghost half over."""
    lines = torch.fft.fft(volume, dim=2)
    lines[:, :, ::2] *= 0.5
    return torch.fft.ifft(lines, dim=2).abs()


def moved(volume: Tensor) -> Tensor:
    """Parts of k-space along the second axis from a head at four positions."""
    place = torch.fft.fftfreq(volume.shape[2]).abs()
    total = torch.zeros_like(volume, dtype=torch.complex64)
    for low, angle in ((0.0, 0.0), (0.06, 0.1), (0.15, -0.12), (0.3, 0.07)):
        turned = convert_to_tensor(Rotate((0.0, 0.0, angle))(volume), track_meta=False)
        lines = torch.fft.fftn(turned, dim=(1, 2, 3))
        total = torch.where((place >= low).view(1, 1, -1, 1), lines, total)
    return torch.fft.ifftn(total, dim=(1, 2, 3)).abs()


def noisy(volume: Tensor, level: float = 0.15) -> Tensor:
    """Rician noise, as a share of the 95th percentile."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *volume.shape, generator=generator) * level * high(volume)
    return torch.hypot(volume + noise[0], noise[1])


def high(volume: Tensor, share: float = 0.95) -> Tensor:
    """Quantile of the voxels inside."""
    return torch.quantile(volume[volume > 0][:: max(1, volume.numel() // 10**6)], share)


def ramp(volume: Tensor) -> Tensor:
    """Sensitivity that falls by a factor of 20 along the second axis."""
    return torch.linspace(1.5, -1.5, volume.shape[2]).exp().view(1, 1, -1, 1)


def smooth(volume: Tensor) -> Tensor:
    """Gaussian blur of 2 voxels."""
    return convert_to_tensor(GaussianSmooth(2.0)(volume), track_meta=False)


# Of a skull-stripped scan (1, X, Y, Z) in RAS: INSIDE leaves the zeros around it, WHOLE does not.
INSIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "contrast inverted": lambda v: v.max() + 1 - v,
    "window: saturated above 30 %": lambda v: v.clamp(max=high(v, 0.3)),
    "window: black below 60 %": lambda v: (v - high(v, 0.6)).clamp(min=0) + 1,
    "noise 15 %": noisy,
    "noise 6 %": lambda v: noisy(v, 0.06),
    "motion": lambda v: moved(v) + 1,
    "motion ghost": lambda v: ghosted(v) + 1,
    "blur of 2 voxels": smooth,
    "strong bias field": lambda v: v * ramp(v),
}
WHOLE: dict[str, Callable[[Tensor], Tensor]] = {
    "motion, with air": moved,
    "motion ghost, with air": ghosted,
    "upside down": lambda v: v.flip(3),
    "back to front": lambda v: v.flip(2),
    "left to right": lambda v: v.flip(1),
    "axes 1 and 2 swapped": lambda v: v.transpose(1, 2),
    "axes 2 and 3 swapped": lambda v: v.transpose(2, 3),
    "half of it missing": lambda v: torch.where(
        (torch.arange(v.shape[1]) < v.shape[1] // 2).view(1, -1, 1, 1), v, 0
    ),
}


def wrong_scans(scan: MetaTensor) -> dict[str, MetaTensor]:
    """One scan made wrong in every way, by name."""
    plain = convert_to_tensor(scan, track_meta=False)
    made = {name: torch.where(plain > 0, make(plain), 0) for name, make in INSIDE.items()}
    made |= {name: make(plain) for name, make in WHOLE.items()}
    return {name: MetaTensor(x.contiguous(), affine=scan.affine) for name, x in made.items()}


def measured(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Findings of the check by group and name."""
    data = args.folder / "data" / "demo" if args.dataset is None else args.dataset
    with tempfile.TemporaryDirectory() as temporary:
        held_out = make_demo_cohort(
            Path(temporary) / "held_out",
            train=args.healthy,
            val=1,
            test=1,
            spacing=args.spacing,
            seed=101,
        )
        bundle = write_bundle(Path(temporary) / "checked", args.folder)
        groups: dict[str, dict[str, Any]] = {
            "healthy, other seed": _paths(datalist(held_out, "train")),
            "healthy test scans": _tests(data, ill=False),
            "test scans with lesions": _tests(data, ill=True),
            "one healthy scan gone wrong": wrong_scans(
                LoadVolume()(datalist(held_out, "train")[0]["image"])
            ),
            "other scans": {Path(path).name: path for path in args.others},
        }
        return {
            group: {
                name: _checked(predict(scan, bundle).findings)
                for name, scan in tqdm(scans.items(), desc=group)
            }
            for group, scans in groups.items()
        }


def show(result: dict[str, dict[str, Any]]) -> None:
    """Print the tables."""
    for group, findings in result.items():
        if not findings:
            continue
        alarms = sum(one["suspicious"] for one in findings.values())
        print(f"\n{group}: {alarms} of {len(findings)} suspicious")
        for name, one in findings.items():
            mark = "suspicious" if one["suspicious"] else ""
            print(
                f"  {name:32} {one['distance']:6.3f} {one.get('baseline', math.nan):8.2f}"
                f"  p = {one['p_value']:<8.2g} {mark}"
            )
    one = next(iter(result["healthy, other seed"].values()))
    print(f"\nby {one['scans']} scans, stated false-alarm rate {one['false_alarm_rate']:.0%}")


def _checked(findings: dict[str, Any]) -> dict[str, Any]:
    if "scan_check" not in findings:
        raise SystemExit("the model has no scan check: at least 3 scans must calibrate it")
    return findings["scan_check"]


def _tests(data: Path, ill: bool) -> dict[str, str]:
    """Paths of the test scans with lesions, or of those without."""
    items = datalist(data, "test", labels=True)
    return _paths(
        [item for item in items if bool(np.asarray(nib.load(item["label"]).dataobj).any()) == ill]
    )


def _paths(items: list[dict[str, str]]) -> dict[str, str]:
    return {Path(item["image"]).name: item["image"] for item in items}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="of the trained demo")
    parser.add_argument("--dataset", type=Path, help="its cohort, where it is not in the folder")
    parser.add_argument("--others", nargs="*", default=[], metavar="SCAN", help="paths")
    parser.add_argument("--healthy", type=int, default=24, help="scans of the other cohort")
    parser.add_argument("--spacing", type=float, default=2.0, help="of their voxels, mm")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    result = measured(args)
    show(result)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
