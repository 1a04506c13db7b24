"""Areas under curves of pixels that are counted by score: AUROC, AUPR, AUPRO and the best Dice.

All functions take counts (..., B) of B bins in ascending order of score, and `mixed` (B,), whether
a bin holds several scores. Such a bin hides the order of its pixels, which bounds the part of a
curve that lies within it: an area is the middle between the bounds, and comes with how far from it
the exact one can be at most. Leading dimensions are independent, as of the resamples of a
bootstrap. A curve that is not defined, of one class only, is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["aupr", "aupro", "auroc", "dices", "from_the_top"]


def from_the_top(counts: Tensor) -> Tensor:
    """Sum of each entry and all after it: (..., B) -> (..., B)."""
    return counts.flip(-1).cumsum(-1).flip(-1)


def auroc(healthy: Tensor, anomalous: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """Area under the ROC curve and its largest error: (..., B), (..., B), (B,) -> (...) x 2."""
    above = from_the_top(anomalous) - anomalous
    pairs = healthy.sum(-1) * anomalous.sum(-1)  # 0 / 0 is NaN
    within = healthy * anomalous / 2
    return (healthy * above + within).sum(-1) / pairs, within[..., mixed].sum(-1) / pairs


def aupr(healthy: Tensor, anomalous: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision and its largest error: (..., B), (..., B), (B,) -> (...) x 2.

    At an anomalous pixel of a bin the precision is highest if no healthy one of the bin ranks
    above, and lowest if all do and it is the first anomalous one.
    """
    total = anomalous.sum(-1)
    total = total.where(healthy.sum(-1) > 0, torch.nan)
    hits, alarms = from_the_top(anomalous), from_the_top(healthy + anomalous)
    highest = hits / (alarms - healthy).clamp(min=1)
    lowest = (hits - anomalous + 1) / (alarms - anomalous + 1)
    precision = torch.where(mixed, (highest + lowest) / 2, hits / alarms.clamp(min=1))
    error = (anomalous * (highest - lowest))[..., mixed].sum(-1) / 2
    return (anomalous * precision).sum(-1) / total, error / total


def aupro(healthy: Tensor, coverage: Tensor, mixed: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Area under the per-region overlap up to a false-positive rate: (..., B) x 2 -> (...) x 2.

    The per-region overlap at a threshold is the mean over regions of the share of a region that
    lies above it (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021); `coverage`
    holds, per bin, these shares summed over regions, in any unit. The curve of overlap against
    false-positive rate is straight between thresholds; its area up to `limit` is divided by it.
    """
    step = healthy / healthy.sum(-1, keepdim=True)
    rise = coverage / coverage.sum(-1, keepdim=True)
    right = from_the_top(step)
    inside = (limit - (right - step)).clamp(min=0).minimum(step)
    part = inside / step.clamp(min=torch.finfo(step.dtype).tiny)  # of the step, below the limit
    left = from_the_top(rise) - rise
    error = (inside * rise * (1 - part / 2))[..., mixed].sum(-1)
    return (inside * (left + rise * part / 2)).sum(-1) / limit, error / limit


def dices(healthy: Tensor, anomalous: Tensor) -> Tensor:
    """Dice of the masks that start at each bin: (..., B), (..., B) -> (..., B)."""
    hits, alarms = from_the_top(anomalous), from_the_top(healthy + anomalous)
    return 2 * hits / (alarms + anomalous.sum(-1, keepdim=True))
