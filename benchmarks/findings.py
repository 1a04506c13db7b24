"""Which statistic ranks findings best, and how small one may be, on scans that were evaluated.

    python -m monai_dpmm demo
    python benchmarks/findings.py --folder demo --dataset demo/data/demo

For each calibrated false-positive volume and smallest finding: lesions found, false findings of a
healthy scan and of one with lesions, and for each statistic of a finding (its volume, its excess
over the threshold, its peak) in how many scans a lesion comes first, and the AUROC of the largest
finding of a scan for telling scans with lesions from healthy ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from monai_dpmm import anomaly_findings, datalist
from monai_dpmm.io.datalist import data_root
from monai_dpmm.io.result_files import result_files
from monai_dpmm.metrics.bootstrap import ranking_statistics
from monai_dpmm.metrics.finding_metrics import finding_record
from monai_dpmm.transforms.regions import connected_regions

STATISTICS = {"volume": "volume_ml", "excess": "excess", "peak": "peak_score"}


def scans(dataset: Path, results: Path) -> list[tuple[Tensor, Tensor, Any]]:
    """Anomaly map, number of each voxel's lesion, and affine of every test scan."""
    found = []
    for item in datalist(dataset, "test", labels=True):
        file = nib.load(result_files(item["image"], results, data_root(dataset))["anomaly"])
        label = torch.from_numpy(np.asarray(nib.load(item["label"]).dataobj) > 0)
        anomaly = torch.from_numpy(file.get_fdata(dtype=np.float32))
        found.append((anomaly, connected_regions(label), file.affine))
    return found


def row(volumes: list[tuple[Tensor, Tensor, Any]], threshold: float, smallest: float) -> dict:
    """What findings of at least so many ml above a threshold are worth."""
    sums = dict.fromkeys(("found", "lesions", "healthy", "ill"), 0.0)
    false = {"healthy": 0.0, "ill": 0.0}
    first, largest = dict.fromkeys(STATISTICS, 0), {name: [] for name in STATISTICS}
    labels = []
    for anomaly, lesions, affine in volumes:
        mask = anomaly > threshold
        listed = anomaly_findings(anomaly, mask, affine, smallest=smallest, threshold=threshold)
        kind = "ill" if bool(lesions.any()) else "healthy"
        labels.append(kind == "ill")
        sums[kind] += 1
        for name, key in STATISTICS.items():
            ranked = sorted(listed["lesions"], key=lambda one, key=key: -one[key])
            counts, ratios = finding_record(ranked, mask, lesions)
            first[name] += int(ratios["first_finding_precision"][0])
            largest[name].append(ranked[0][key] if ranked else 0.0)
        false[kind] += counts["false_findings"]
        sums["found"] += counts["lesions_found"]
        sums["lesions"] += int(lesions.max())
    once, ill = torch.ones(1, len(labels)), torch.tensor(labels)
    areas = {n: ranking_statistics(torch.tensor(v), ill, once) for n, v in largest.items()}
    return {
        "smallest_ml": smallest,
        "lesions_found": sums["found"],
        "lesions": sums["lesions"],
        "scans_with_lesions": sums["ill"],
        "false_healthy": false["healthy"] / max(1, sums["healthy"]),
        "false_ill": false["ill"] / max(1, sums["ill"]),
        "first": first,
        "auroc": {name: float(area["auroc"]) for name, area in areas.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="of model and results")
    parser.add_argument("--dataset", type=Path, default=Path("demo/data/demo"))
    parser.add_argument("--smallest", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2, 0.5])
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    known = json.loads((args.folder / "models/model.json").read_text())["volume_thresholds"]
    volumes = scans(args.dataset, args.folder / "output")
    rows = [
        {"ml": one["ml_per_scan"]} | row(volumes, one["threshold"], smallest)
        for one in known
        for smallest in args.smallest
    ]
    names = list(STATISTICS)
    print("   ml  smallest  found  false healthy / ill  first by / AUROC of " + ", ".join(names))
    for one in rows:
        first = "  ".join(f"{one['first'][name]} / {one['auroc'][name]:.2f}" for name in names)
        print(
            f"{one['ml']:5g} {one['smallest_ml']:9g}  {one['lesions_found']:.0f} of"
            f" {one['lesions']:.0f}  {one['false_healthy']:5.1f} / {one['false_ill']:.1f}"
            f"         {first}"
        )
    if args.json is not None:
        args.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
