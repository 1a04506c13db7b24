"""How much of a large lesion is left when slices are levelled and the scan's baseline is taken off.

    python -m monai_dpmm demo
    python benchmarks/baseline.py --folder demo --dataset demo/data/demo

To the anomaly map of each healthy test scan a lesion is added: the voxels of the foreground that
are nearest to a place at a quarter of the body's width, a share of the foreground, score 3 higher.
What is printed is how much of that is left in the lesion, and how far healthy tissue falls, in
hundredths of what was added: the mean over the scans, and the scan where least is left.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from monai_dpmm import datalist
from monai_dpmm.io.datalist import data_root
from monai_dpmm.io.result_files import result_files
from monai_dpmm.network.postprocessing import less_baseline, levelled

ADDED = 3.0
SHARES = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4]


def healthy_maps(dataset: Path, results: Path) -> list[tuple[Tensor, Tensor]]:
    """Anomaly map and foreground of each healthy test scan."""
    found = []
    for item in datalist(dataset, "test", labels=True):
        if np.asarray(nib.load(item["label"]).dataobj).any():
            continue
        files = result_files(item["image"], results, data_root(dataset))
        anomaly, there = (nib.load(files[kind]).get_fdata() for kind in ("anomaly", "component"))
        found.append((torch.from_numpy(anomaly).float(), torch.from_numpy(there) > 0))
    return found


def lesion(there: Tensor, share: float) -> Tensor:
    """The voxels of the foreground nearest to its quarter, so many of it: bool."""
    voxels = there.nonzero().double()
    low, high = voxels.amin(0), voxels.amax(0)
    centre = low + (high - low) * torch.tensor([0.25, 0.5, 0.5])
    nearest = (voxels - centre).norm(dim=1).argsort()[: round(share * len(voxels))]
    mask = torch.zeros_like(there)
    mask[tuple(voxels[nearest].long().T)] = True
    return mask


def steps(anomaly: Tensor, there: Tensor) -> dict[str, Tensor]:
    """The map less its baseline, and with its slices levelled along each axis before."""
    level = torch.stack([levelled(anomaly, there, axis) for axis in range(3)]).mean(0)
    maps = {"baseline": anomaly, "levelled and baseline": level}
    return {name: less_baseline(one, there)[0] for name, one in maps.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="of model and results")
    parser.add_argument("--dataset", type=Path, default=Path("demo/data/demo"))
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    scans = healthy_maps(args.dataset, args.folder / "output")
    rows = []
    for share in SHARES:
        left: dict[str, list[tuple[float, float]]] = {}
        for anomaly, there in scans:
            mask = lesion(there, share)
            before, after = (steps(x, there) for x in (anomaly, anomaly + ADDED * mask))
            for name in before:
                change = (after[name] - before[name]) / ADDED
                parts = (float(change[mask].mean()), float(change[there & ~mask].mean()))
                left.setdefault(name, []).append(parts)
        for name, values in left.items():
            inside, outside = torch.tensor(values).unbind(1)
            rows.append(
                {
                    "share": share,
                    "steps": name,
                    "left": float(inside.mean()),
                    "least": float(inside.min()),
                    "healthy": float(outside.mean()),
                }
            )
    print(f"{len(scans)} healthy scans; of what a lesion adds, % left in it (least), in the rest")
    for row in rows:
        left, least, healthy = (100 * row[key] for key in ("left", "least", "healthy"))
        print(
            f"{100 * row['share']:3.0f} % of the foreground, {row['steps']:22}"
            f" {left:4.0f} ({least:.0f}) {healthy:5.0f}"
        )
    if args.json is not None:
        args.json.write_text(json.dumps({"scans": len(scans), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
