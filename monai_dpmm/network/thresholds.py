"""From scores to decisions: thresholds at a false-positive rate, one score for an image."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from monai_dpmm.errors import InputError

__all__ = [
    "DEFAULT_RATES",
    "TOP_FRACTION",
    "image_score",
    "key_scores",
    "order_keys",
    "threshold_of",
    "thresholds_at",
]

DEFAULT_RATES = (0.01, 0.05, 0.1)
TOP_FRACTION = 0.01
_MAGNITUDE = 0x7FFFFFFF


def thresholds_at(scores: Tensor, rates: Tensor) -> Tensor:
    """Scores exceeded by the given fractions of healthy patches: (any shape), (R,) -> (R,).

    The threshold at rate f is the smallest observed score that at most a fraction f of the scores
    lie strictly above, so a mask is `score > threshold` (paper, Sec. 2.2 and Table 2).

    Raises:
        ValueError: where there are fewer scores than one false positive needs (1 / rate), or a
            score is not finite.
    """
    ordered = scores.flatten().sort().values
    count = ordered.numel()
    if count == 0 or not torch.isfinite(ordered[[0, -1]]).all():
        raise InputError(f"scores must be finite and not empty, got {count} of them")
    lowest = rates.min().item()
    if count * lowest < 1 - 1e-6:
        raise InputError(
            f"a false-positive rate of {lowest:g} needs at least {1 / lowest:.0f} healthy"
            f" validation patches, got {count}"
        )
    allowed = torch.floor(rates.double() * count + 1e-9).long()  # 0.29 * 100 is 28.999...
    return ordered[(count - 1 - allowed).to(ordered.device)]


def threshold_of(thresholds: Mapping[str, float], false_positive_rate: float) -> float:
    """Threshold at a calibrated rate, of thresholds by rate: {"0.01": 0.3, ...}.

    Raises:
        ValueError: where no threshold is kept for the rate.
        RuntimeError: where it is NaN, before the detector was calibrated.
    """
    threshold = thresholds.get(f"{false_positive_rate:g}")
    if threshold is None:
        raise InputError(
            f"false_positive_rate must be one of {', '.join(thresholds)}, got {false_positive_rate}"
        )
    if math.isnan(threshold):
        raise RuntimeError("thresholds are not calibrated: run validation on healthy scans first")
    return float(threshold)


def image_score(scores: Tensor, fraction: float = TOP_FRACTION) -> Tensor:
    """Mean of the highest scores of one image or volume: (any shape) -> 0-d tensor.

    As AnomalyDINO scores an image: the mean of the highest 1 % of its patch distances (at least
    one of them).

    Raises:
        ValueError: for a fraction outside (0, 1] or no scores.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction must lie in (0, 1], got {fraction}")
    if scores.numel() == 0:
        raise InputError("scores must not be empty")
    count = max(1, round(fraction * scores.numel()))
    return scores.flatten().topk(count).values.mean()


def order_keys(scores: Tensor) -> Tensor:
    """Integers of 32 bits in the order of float32 scores, ties kept: (n,) -> (n,) int64."""
    bits = (scores.float() + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: one zero, one key
    return (bits ^ ((bits >> 31) & _MAGNITUDE)).long()


def key_scores(keys: Tensor) -> Tensor:
    """The scores of `order_keys`: int64 -> float32."""
    bits = keys.int()
    return (bits ^ ((bits >> 31) & _MAGNITUDE)).view(torch.float32)
