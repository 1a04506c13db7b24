"""Embed a data set once, for the benchmarks that fit many mixtures to the same embeddings.

Run it from a checkout with the package and its demo extra installed:

    python benchmarks/cohort_embeddings.py --out embeddings.pt
    python benchmarks/cohort_embeddings.py --dataset DIR --out embeddings.pt --set image_size=448

The configs are the demo's. The file (read with weights_only) holds the patches of each healthy
slice without its background ("train", "val": lists of (n, D)), and, for each test subject, the
embeddings of its slices (S, h, w, D), zero where background, and their lesion masks (S, H, W).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImage, Orientation
from monai.utils import convert_to_tensor
from torch import Tensor
from tqdm import tqdm

from monai_dpmm import datalist
from monai_dpmm.cli import _override as override
from monai_dpmm.cli import configs_dir
from monai_dpmm.transforms import ExtractSlices


def parser_of(args: argparse.Namespace) -> ConfigParser:
    """The demo's training config with the command line's values."""
    parser = ConfigParser()
    parser.read_config([str(configs_dir() / f"{name}.json") for name in ("train", "demo")])
    parser["bundle_root"] = str(args.folder)
    if args.dataset is not None:
        parser["dataset_dir"] = str(args.dataset)
    for key, value in args.set:
        parser[key] = value
    return parser


def slices_of(scans: list[dict[str, str]], embed: Compose) -> list[Tensor]:
    """Foreground patches of every slice: a list of (n, D)."""
    slices: list[Tensor] = []
    for scan in tqdm(scans, desc="healthy scans"):
        for patches in convert_to_tensor(embed(scan)["image"], track_meta=False):
            there = patches.flatten(0, -2)
            slices.append(there[there.any(dim=1)])
    return [patches for patches in slices if len(patches)]


def subject_of(scan: dict[str, str], embed: Compose, parser: ConfigParser) -> dict[str, Any]:
    """Embeddings of a test subject's slices, and their masks."""
    axcodes = parser.get_parsed_content("orientation")
    slicing = {key: parser.get_parsed_content(f"slice_{key}") for key in ("axis", "step")}
    subject = {"embeddings": convert_to_tensor(embed(scan)["image"], track_meta=False)}
    if "label" in scan:
        label = LoadImage(ensure_channel_first=True)(scan["label"])
        masks = ExtractSlices(**slicing)(Orientation(axcodes, labels=None)(label))
        subject["masks"] = convert_to_tensor(masks, track_meta=False)[:, 0] > 0
    return subject


def main() -> None:
    """Embed and save."""
    arguments = argparse.ArgumentParser(description="Embed a data set once.")
    arguments.add_argument("--folder", type=Path, default=Path("demo"), help="of the demo cohort")
    arguments.add_argument("--dataset", type=Path, help="another data set's folder")
    arguments.add_argument("--set", action="append", type=override, default=[], help="KEY=VALUE")
    arguments.add_argument("--out", type=Path, required=True)
    args = arguments.parse_args()
    parser = parser_of(args)
    embed = Compose(parser.get_parsed_content("embedding").flatten().transforms)
    root = parser.get_parsed_content("dataset_dir")
    fraction = parser.get_parsed_content("val_fraction")
    result = {
        split: slices_of(datalist(root, split, val_fraction=fraction), embed)
        for split in ("train", "val")
    }
    tests = tqdm(datalist(root, "test", labels=True), desc="test scans")
    result["test"] = [subject_of(scan, embed, parser) for scan in tests]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(result, args.out)
    print({key: len(value) for key, value in result.items()}, args.out)


if __name__ == "__main__":
    main()
