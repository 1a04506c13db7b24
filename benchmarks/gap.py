"""What brings the mixture nearer to a full memory bank: more prototypes, or their spread.

    python benchmarks/cohort_embeddings.py --out embeddings.pt
    python benchmarks/gap.py embeddings.pt --seeds 3 --stride 2 --bank

Mixtures start as by configs/kmeans_start.json. Each row is a number of components, a variance floor
and a score; mean ± standard deviation over the seeds of AUROC, AUPR and the best Dice over all
pixels of the test slices. The Mahalanobis score divides by a prototype's own spread, the cosine
score, the paper's, does not. Several files of embeddings, as of held-back scans, are averaged.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from seeds import fitted, foreground, spread
from torch import Tensor

from monai_dpmm.metrics.score_histogram import ScoreHistogram
from monai_dpmm.mixture.scores import ScoreKind
from monai_dpmm.network.geometry import upsample_scores
from monai_dpmm.study.models.bank import MemoryBank

STEADY = {"initialization": "k-means++", "initial_weights": "uniform", "step_size": 0.05}
COLUMNS = ("auroc", "aupr", "best_dice")


def quality(
    subjects: list[dict[str, Tensor]], score: Callable[[Tensor], Tensor], stride: int
) -> dict[str, float]:
    """Metrics over all pixels of the test slices; background scores 0."""
    pixels = ScoreHistogram()
    for subject in subjects:
        embeddings, masks = subject["embeddings"][::stride], subject["masks"][::stride]
        there = embeddings.any(dim=-1)
        scores = torch.zeros(there.shape)
        scores[there] = score(embeddings[there])
        shape = (int(masks.shape[1]), int(masks.shape[2]))
        pixels.update(upsample_scores(scores, shape)[:, 0], masks)
    return {name: getattr(pixels, name)().value for name in COLUMNS}


def mean_of(runs: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over files of embeddings."""
    return {name: statistics.mean(run[name] for run in runs) for name in COLUMNS}


def show(name: str, runs: list[dict[str, float]]) -> None:
    """Print a row."""
    print(f"{name:44}", *(f"{spread([run[c] for run in runs]):>18}" for c in COLUMNS), flush=True)


def main() -> None:
    """Fit, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("embeddings", type=Path, nargs="+", help="of cohort_embeddings.py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--components", type=int, nargs="+", default=[600, 1200])
    parser.add_argument("--floors", type=float, nargs="+", default=[1e-3, 3e-3])
    kinds = get_args(ScoreKind)
    parser.add_argument("--scores", nargs="+", choices=kinds, default=["cosine", "mahalanobis"])
    parser.add_argument("--stride", type=int, default=1, help="every so many test slices")
    parser.add_argument("--bank", action="store_true", help="the full memory bank, too")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    args = parser.parse_args()
    data = [torch.load(path, weights_only=True) for path in args.embeddings]
    subjects = [fold["test"] for fold in data]
    fit = argparse.Namespace(components=0, variance_floor=None, epochs=args.epochs)
    result: dict[str, list[dict[str, float]]] = {}
    print(f"{'variant':44}", *(f"{name:>18}" for name in COLUMNS))
    for components in args.components:
        for floor in args.floors:
            options: dict[str, Any] = {**STEADY, "components": components, "variance_floor": floor}
            for seed in range(args.seeds):
                models = [fitted(fold["train"], seed, fit, **options) for fold in data]
                for kind in args.scores:
                    scored = [
                        quality(of, lambda x, m=m, k=kind: m.score(x, k), args.stride)
                        for m, of in zip(models, subjects, strict=True)
                    ]
                    name = f"{components} components, floor {floor:g}, {kind}"
                    result.setdefault(name, []).append(mean_of(scored))
            for kind in args.scores:
                name = f"{components} components, floor {floor:g}, {kind}"
                show(name, result[name])
    if args.bank:
        banks = [MemoryBank(fold["train"][0].shape[-1]) for fold in data]
        for bank, fold in zip(banks, data, strict=True):
            bank.fit(foreground(fold["train"]))
        scored = [quality(of, b.score, args.stride) for b, of in zip(banks, subjects, strict=True)]
        name = f"full bank, {' and '.join(f'{len(b.prototypes):,}' for b in banks)} patches"
        result[name] = [mean_of(scored)]
        show(name, result[name])
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
