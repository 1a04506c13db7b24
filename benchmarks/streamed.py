"""Fits to scans that come once, against fits to a store that is drawn from at will.

    python benchmarks/streamed.py EMBEDDINGS [--seeds 3] [--json FILE]

EMBEDDINGS is a folder of a training (`embedding_dir`): every fifth scan is held back, the others
are fitted, slices of the first direction alone. "drawn" takes every batch from all scans' slices,
as a training with `keep_embeddings=true` does; "streamed" takes scans one after another in random
order, as with `keep_embeddings=false`, where each pass would embed all of them again. Printed is
the mean log-likelihood of held-out patches, nats, and its standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from em_step import grid
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from monai_dpmm.engines import embedding_file
from monai_dpmm.engines.engines import EMTrainer
from monai_dpmm.engines.slices import SliceDataLoader, collate_patches
from monai_dpmm.engines.streaming import StreamedBatches
from monai_dpmm.mixture.dpmm import DPMM

FITS = (  # how scans come, schedule, step size, passes
    ("drawn", "ema", 0.2, 5),
    ("drawn", "ema", 0.05, 5),
    ("drawn", "exp", 0.6, 5),
    ("drawn", "exp", 0.6, 1),
    ("streamed", "ema", 0.2, 1),
    ("streamed", "exp", 0.6, 1),
    ("streamed", "exp", 0.6, 2),
    ("streamed", "exp", 0.6, 5),
    ("streamed", "exp", 0.8, 1),
)


class Kept(Dataset[Any]):
    """Scans of a store, of the first direction that each has, unit-norm."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        item = embedding_file.read(self.paths[index])[0]
        return {"image": F.normalize(item["image"], dim=-1), "direction": 0}

    def streamed(self, indices: Sequence[int]) -> Iterator[Any]:
        """See `monai_dpmm.StoredEmbeddings`."""
        return map(self.__getitem__, indices)


class _Same(Dataset[Any]):
    def __getitem__(self, index: Any) -> Any:
        return index


def loader(way: str, scans: Any, batch: int, seed: int) -> DataLoader[Any]:
    """Batches of one way."""
    if way == "drawn":
        return SliceDataLoader(scans, batch, shuffle=True, seed=seed)
    order: Any = StreamedBatches(scans, batch, shuffle=True, seed=seed)
    return DataLoader(_Same(), None, sampler=order, collate_fn=collate_patches)


def main() -> None:
    """Fit, compare, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, metavar="EMBEDDINGS")
    parser.add_argument("--components", type=int, default=200)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--floor", type=float, default=1e-3, help="of the variances")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(args.store.glob("[!.]*.safetensors"))
    train, held = Kept([p for i, p in enumerate(paths) if i % 5]), Kept(paths[::5])
    patches = collate_patches([{"image": g} for scan in held for g in scan["image"][::4]])["image"]
    found: dict[str, list[float]] = {}
    features = patches.shape[1]
    for way, schedule, step, passes in FITS:
        name = f"{way}, {schedule} {step:g}, {passes} passes"
        for seed in range(args.seeds):
            mixture = DPMM(
                features,
                args.components,
                schedule=schedule,
                step_size=step,
                seed=seed,
                variance_floor=args.floor,
                initialization="k-means++",
            )
            EMTrainer("cpu", passes, loader(way, train, args.batch, seed), mixture).run()
            found.setdefault(name, []).append(float(mixture.log_prob(patches).mean()))
    rows = [[f"{len(train)} scans, {len(held)} held out", "nats", "deviation"]]
    for name, values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append([name, f"{statistics.mean(values):.2f}", f"{spread:.2f}"])
    print(grid(rows))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
