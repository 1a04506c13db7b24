"""Embed a data set once, for the benchmarks that fit many mixtures to the same embeddings.

Run it from a checkout with the package and its demo extra installed:

    python benchmarks/cohort_embeddings.py --out embeddings.pt
    python benchmarks/cohort_embeddings.py --dataset DIR --out embeddings.pt --set image_size=448

The configs are the demo's. The file (read with weights_only) holds the unit-norm embeddings of each
healthy slice on its patch grid, zero where background ("train", "val": lists of (h, w, D)), and,
for each test subject, those of its slices (S, h, w, D) and their lesion masks (S, H, W).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from monai_dpmm.app.cli import configs_dir
from monai_dpmm.app.options import override
from monai_dpmm.study.embedded_dataset import embedded_dataset


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


def main() -> None:
    """Embed and save."""
    arguments = argparse.ArgumentParser(description="Embed a data set once.")
    arguments.add_argument("--folder", type=Path, default=Path("demo"), help="of the demo cohort")
    arguments.add_argument("--dataset", type=Path, help="another data set's folder")
    arguments.add_argument("--set", action="append", type=override, default=[], help="KEY=VALUE")
    arguments.add_argument("--out", type=Path, required=True)
    args = arguments.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as scans:
        parser = parser_of(args)
        parser["embedding_dir"] = scans
        dataset = embedded_dataset(parser)
        result = {section: dataset.healthy(section) for section in ("train", "val")}
        tests = [{"embeddings": scan.embeddings, "masks": scan.masks} for scan in dataset.tests()]
        torch.save(result | {"test": tests}, args.out)
    print({key: len(value) for key, value in (result | {"test": tests}).items()}, args.out)


if __name__ == "__main__":
    main()
