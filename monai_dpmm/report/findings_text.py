"""What the findings of an evaluation are worth, in words, for the screen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["findings_text"]


def findings_text(
    metrics: Mapping[str, Any], intervals: Mapping[str, Sequence[float]] | None = None
) -> str:
    """Lines that say what findings are worth; empty where that was not measured.

    Args:
        metrics: of `AnomalyMetrics`.
        intervals: of some of them, (low, high) by name.
    """
    if "lesions" not in metrics:
        return ""
    bounds = intervals or {}
    parts = []
    if metrics["lesions"]:
        parts += [
            f"Lesions found: {metrics['lesions_found']:.0f} of {metrics['lesions']:.0f}"
            + _percent(bounds.get("finding_sensitivity")),
            f"Scans whose first finding is a lesion: {metrics['first_findings_true']:.0f} of the"
            f" {metrics['scans_with_lesions']:.0f} with lesions"
            + _percent(bounds.get("first_finding_precision")),
        ]
    names = {"healthy": "a healthy scan", "ill": "a scan with lesions"}
    for kind, words in names.items():
        name = f"false_findings_per_{kind}_scan"
        if (rate := _number(metrics.get(name))) is not None:
            parts.append(f"False findings in {words}: {rate:.1f}{_bounds(bounds.get(name))}")
    if (auroc := _number(metrics.get("image_auroc"))) is not None:
        parts.append(
            "Healthy scans and scans with lesions told apart by their score (AUROC; 1 is always,"
            f" 0.5 is by chance): {auroc:.2f}{_bounds(bounds.get('image_auroc'), 2)}"
        )
    return "\n".join(parts)


def _number(value: Any) -> float | None:
    """A number that is defined."""
    return None if value is None or math.isnan(value) else float(value)


def _bounds(interval: Sequence[Any] | None, digits: int = 1, unit: str = "") -> str:
    """An interval in words; none of one that has no width, as of resamples that all agree."""
    low, high = (_number(side) for side in interval or (None, None))
    if low is None or high is None or low == high:
        return ""
    return f" (95 % interval {low:.{digits}f} to {high:.{digits}f}{unit})"


def _percent(interval: Sequence[Any] | None) -> str:
    shares = [None if side is None else 100 * side for side in interval or ()]
    return _bounds(shares or None, 0, " %")
