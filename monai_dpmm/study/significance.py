"""Is a difference real? Paired tests and intervals over images and over scans."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from monai_dpmm.errors import InputError
from monai_dpmm.metrics.bootstrap import drawn_counts, interval, ratio_statistics

__all__ = ["bootstrap_interval", "holm", "paired_p_value"]

_RESAMPLES = 9999


def paired_p_value(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p of the mean difference of paired values, by permutation within the pairs.

    Exact where the 2^n permutations are at most 9,999, else by so many random ones.

    Raises:
        ValueError: for lists of different lengths or without values.
    """
    from scipy.stats import permutation_test

    if len(first) != len(second) or not len(first):
        raise InputError(
            f"paired values must be as many as each other, got {len(first)} and {len(second)}"
        )
    if np.array_equal(first, second) or len(first) == 1:
        return 1.0

    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.mean(x - y, axis=axis)

    result = permutation_test(
        (first, second),
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, by Holm's step-down method (1979), in their order."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1)
    return corrected.tolist()


def bootstrap_interval(groups: Iterable[Sequence[float]]) -> tuple[float, float]:
    """95 % interval of the mean of all values, whole groups drawn with replacement (percentiles).

    Images of one scan are alike, so scans are what is drawn. NaN for fewer than two.
    """
    parts = [[[math.fsum(values), len(values)]] for values in groups]
    if len(parts) < 2:
        return math.nan, math.nan
    counts = drawn_counts(len(parts), _RESAMPLES)
    return interval(ratio_statistics(torch.tensor(parts, dtype=torch.float64), counts)[:, 0])
