"""Error of finished maps by precision of the backbone and of kept embeddings, and by slice spacing.

    python benchmarks/map_precision.py DATASET -f FOLDER [--scans 4] [--json FILE]
    python benchmarks/map_precision.py DATASET -f FOLDER --spacing-mm 3 5

Test scans of a data set with masks are mapped by a trained model in float32, with embeddings that
went through float16 as those of `embedding_dtype=float16` do, and with the backbone in bfloat16
(on CUDA float16, too), or with slices so many mm apart. Compared are maps as they are saved,
smoothed and less their baseline, in the foreground: the largest and the mean difference over the
standard deviation of float32's map, and the area under the precision-recall curve of all scans'
foreground voxels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from em_step import grid
from timing import available_device
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from monai_dpmm.app.workflows import PLANS, merged_config, planned
from monai_dpmm.io.datalist import datalist
from monai_dpmm.io.label_loading import LoadLabeld

WAYS = ("float32", "float16 kept", "bfloat16", "float16")


class Maps:
    """Finished maps of scans by a trained model, in one of the ways.

    Args:
        parser: of the config of inference with the model's settings.
    """

    def __init__(self, parser: Any) -> None:
        self.before = parser.get_parsed_content("preprocessing")
        self.network = parser.get_parsed_content("network")
        self.inferer = parser.get_parsed_content("inferer")
        self.after = parser.get_parsed_content("maps")
        self.embed = self.network.embed
        self.spacing_mm = self.inferer.spacing_mm

    @torch.no_grad()
    def __call__(self, item: dict[str, Any], way: str) -> tuple[Tensor, Tensor]:
        """Map and foreground of a scan: (1, X, Y, Z) each."""
        far = way.endswith(" mm")
        self.inferer.spacing_mm = float(way.removesuffix(" mm")) if far else self.spacing_mm
        self.network.backbone.precision = way if way in ("bfloat16", "float16") else "float32"
        kept = way == "float16 kept"
        self.network.embed = (lambda x: self.embed(x).half().float()) if kept else self.embed
        data = self.before(item)
        image = data["image"][None].to(next(self.network.parameters()).device)
        data["pred"] = self.inferer(image, self.network)[0].cpu()
        data = self.after(data)
        return data["pred_anomaly"].as_tensor(), data["pred_component"].as_tensor() > 0


def main() -> None:
    """Map, compare, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-f", "--folder", type=Path, required=True, help="of the model")
    parser.add_argument("--scans", type=int, default=4)
    parser.add_argument("--spacing-mm", type=float, nargs="+", help="in the place of precisions")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = available_device(args.device)
    torch.set_num_threads(1)
    values = {"bundle_root": str(args.folder), "device": f"$torch.device('{device.type}')"}
    names = planned(PLANS["infer"][0], [], args.folder / "models")
    maps, label = Maps(merged_config(names, values)), LoadLabeld()
    ways = WAYS[: 4 if device.type == "cuda" else 3]
    if args.spacing_mm:
        ways = ("float32", *(f"{spacing:g} mm" for spacing in args.spacing_mm))
    scores: dict[str, list[Tensor]] = {way: [] for way in ways}
    targets, largest, mean = [], dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    items = datalist(args.dataset, "test", labels=True)[: args.scans]
    for item in items:
        target = label(maps.before(item))["label"].as_tensor() > 0
        found = {way: maps(item, way) for way in ways}
        expected, there = found["float32"]
        targets.append(target[there])
        for way, (anomaly, _) in found.items():
            scores[way].append(anomaly[there])
            error = (anomaly - expected)[there].abs() / expected[there].std()
            largest[way] = max(largest[way], float(error.max()))
            mean[way] += float(error.mean()) / len(items)
    result = {
        way: {
            "largest": largest[way],
            "mean": mean[way],
            "aupr": float(binary_average_precision(torch.cat(each), torch.cat(targets).long())),
        }
        for way, each in scores.items()
    }
    rows = [["", "largest error", "mean error", "AUPR"]]
    for way, each in result.items():
        rows.append([way, f"{each['largest']:.1e}", f"{each['mean']:.1e}", f"{each['aupr']:.4f}"])
    print(grid(rows))
    if args.json:
        args.json.write_text(json.dumps({"scans": len(items), "ways": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
