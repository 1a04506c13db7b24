"""Spread over seeds: starts, schedules and components, fitted to the same embeddings.

    python benchmarks/cohort_embeddings.py --out embeddings.pt
    python benchmarks/seeds.py embeddings.pt --seeds 10 --json seeds.json

A seed decides the start and the order of the slices, as in training. Each row is a variant of the
mixture: mean ± standard deviation over the seeds of the log-likelihood of the healthy validation
patches (nats), the surviving components, and AUROC and AUPR over all pixels of the test slices, by
the cosine score, maps brought to the slices' own pixels. Curves are made of 65,536 bins of the
score. Several files of embeddings, as of held-back scans, are averaged.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.network.geometry import upsample_scores

BINS = 65_536
SLICES = 12  # a batch, as in the paper
PAPER: dict[str, Any] = {"initialization": "random", "initial_weights": "beta"}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "k-means++": PAPER | {"initialization": "k-means++"},
    "uniform weights": PAPER | {"initial_weights": "uniform"},
    "rate 0.05": PAPER | {"step_size": 0.05},
    "uniform weights, rate 0.05": PAPER | {"initial_weights": "uniform", "step_size": 0.05},
    "steady": {"initialization": "k-means++", "initial_weights": "uniform", "step_size": 0.05},
    "steady, exp 0.6": {
        "initialization": "k-means++",
        "initial_weights": "uniform",
        "schedule": "exp",
        "step_size": 0.6,
    },
    "von Mises-Fisher": PAPER | {"component_kind": "von_mises_fisher"},
    "von Mises-Fisher, steady": {
        "initialization": "k-means++",
        "initial_weights": "uniform",
        "step_size": 0.05,
        "component_kind": "von_mises_fisher",
    },
}
COLUMNS = ("log_likelihood", "components", "auroc", "aupr")


def foreground(slices: list[Tensor]) -> Tensor:
    """Patches that are not background: grids (h, w, D) -> (N, D)."""
    return torch.cat([grid[grid.any(dim=-1)] for grid in slices])


def fitted(slices: list[Tensor], seed: int, args: argparse.Namespace, **options: Any) -> DPMM:
    """A mixture after all epochs."""
    generator = torch.Generator().manual_seed(seed)
    floor = args.variance_floor
    options = {"components": args.components, "variance_floor": floor, "seed": seed} | options
    model = DPMM(slices[0].shape[-1], **options)
    for _ in range(args.epochs):
        for batch in torch.randperm(len(slices), generator=generator).split(SLICES):
            patches = foreground([slices[i] for i in batch])
            if not model.fitted:
                model.initialize(patches)
            model.step(patches)
        model.prune()
    return model


def histogram(model: DPMM, subject: dict[str, Tensor], stride: int) -> Tensor:
    """Pixels of each class and bin of the score, falling scores: (2, bins)."""
    embeddings, masks = subject["embeddings"][::stride], subject["masks"][::stride]
    patches = embeddings.flatten(0, -2)
    scores = (model.score(patches) * patches.any(dim=1)).view(embeddings.shape[:-1])
    pixels = upsample_scores(scores, (int(masks.shape[1]), int(masks.shape[2])))[:, 0]
    bins = (pixels.clamp(0, 1) * (BINS - 1)).long().flip(0).flatten()
    flat = masks.flip(0).flatten()
    return torch.stack([torch.bincount(bins[flat == c], minlength=BINS) for c in (0, 1)]).flip(1)


def quality(counts: Tensor) -> dict[str, float]:
    """Pixel AUROC and AUPR of the histograms of both classes: (2, bins)."""
    false, true = counts.double().cumsum(1)
    rate = torch.stack([false / false[-1], true / true[-1]])
    rate = torch.cat([rate.new_zeros(2, 1), rate], dim=1)
    precision = true / (true + false).clamp_min(1)
    aupr = float((precision * rate[1].diff()).sum())
    return {"auroc": float(torch.trapezoid(rate[1], rate[0])), "aupr": aupr}


def runs(
    data: dict[str, Any], options: dict[str, Any], args: argparse.Namespace
) -> Iterator[dict[str, float]]:
    """One dictionary of numbers for each seed."""
    validation, subjects = foreground(data["val"]), data["test"]
    for seed in range(args.seeds):
        model = fitted(data["train"], seed, args, **options)
        counts = sum(histogram(model, subject, args.stride) for subject in subjects)
        yield {
            "log_likelihood": float(model.log_prob(validation).double().mean()),
            "components": float(model.num_surviving),
            **quality(torch.as_tensor(counts)),
        }


def spread(values: list[float]) -> str:
    """Mean ± standard deviation, with the digits that the size of the numbers asks for."""
    digits = 4 if max(values) < 2 else 1
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def main() -> None:
    """Fit all variants with all seeds, print the table."""
    parser = argparse.ArgumentParser(description="Spread over seeds of the mixture's variants.")
    parser.add_argument("embeddings", type=Path, nargs="+", help="of cohort_embeddings.py")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--components", type=int, default=300)
    parser.add_argument("--variance-floor", type=float, default=1e-3)
    parser.add_argument("--stride", type=int, default=1, help="every so many test slices")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    data = [torch.load(path, weights_only=True) for path in args.embeddings]
    result: dict[str, list[dict[str, float]]] = {}
    print(f"{'variant':28}", *(f"{name:>18}" for name in COLUMNS), f"{'s a fit':>8}")
    for name in args.variants:
        start = time.perf_counter()
        folds = zip(*(runs(fold, VARIANTS[name], args) for fold in data), strict=True)
        result[name] = [
            {c: statistics.mean(run[c] for run in seed) for c in COLUMNS} for seed in folds
        ]
        cells = [spread([run[c] for run in result[name]]) for c in COLUMNS]
        seconds = (time.perf_counter() - start) / args.seeds / len(data)
        print(f"{name:28}", *(f"{cell:>18}" for cell in cells), f"{seconds:8.1f}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
