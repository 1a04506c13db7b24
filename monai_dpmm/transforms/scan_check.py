"""Whether a scan is like the healthy scans at all, asked before anyone reads its heat map.

A heat map means something where the scan is of the kind that the mixture was fitted to. A scan of
another sequence, window, body part or orientation, or one ruined by motion, lies on other
prototypes than healthy scans do, and everywhere; a lesion does so in its own place only.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Transform
from scipy.stats import t as student
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.network.geometry import slice_axes

__all__ = [
    "MIN_SCANS",
    "CheckScand",
    "ScanCheck",
    "prototype_usage",
    "scan_reference",
    "usage_distance",
]

PARTS = 3
KEPT = 0.8
MIN_SCANS = 3
_SCALE = 100_000  # shares are kept as whole numbers of this


def prototype_usage(anomaly: Tensor, components: Tensor, count: int, axis: int = 2) -> Tensor:
    """Shares of the prototypes in three parts of a scan: (X, Y, Z) twice -> (3, K), rows sum to 1.

    The parts have equal foreground, in the order of the slices, so a scan that is upside down
    differs as well. Of each the fifth with the highest scores is left out: a lesion has little say.

    Args:
        anomaly: anomaly volume, or image (H, W), whose rows are its slices.
        components: component map of the same shape, from 1 to K, 0 where there is no patch.
        count: K.
        axis: spatial axis that the slices were taken along.
    """
    axis = axis if anomaly.ndim == 3 else 0
    scores, labels = (x.movedim(axis, 0).flatten() for x in (anomaly, components))
    there = labels > 0
    parts = zip(*(x[there].tensor_split(PARTS) for x in (scores, labels)), strict=True)
    return torch.stack([_shares(score, label.long() - 1, count) for score, label in parts])


def usage_distance(usage: Tensor, reference: Tensor) -> float:
    """Share of a scan that lies on other prototypes than the reference: (3, K) twice -> [0, 1].

    Total variation distance of the shares, the mean of the parts.
    """
    return float((usage - reference).abs().sum(1).mean() / 2)


def scan_reference(usages: Sequence[Tensor]) -> dict[str, Any]:
    """What `ScanCheck` must know of healthy scans, of their `prototype_usage`, as JSON.

    "usage", the mean of the scans, as whole numbers of 100,000 in one line for each part; and
    "distances", of each scan from the mean of the others. A new scan is compared with the mean of
    all, which is nearer to healthy scans, so the distances are not too small for it.

    Raises:
        ValueError: for fewer than 3 scans.
    """
    if len(usages) < MIN_SCANS:
        raise InputError(f"usages must be of at least {MIN_SCANS} scans, got {len(usages)}")
    total = torch.stack(list(usages)).sum(0)
    distances = [usage_distance(u, (total - u) / (len(usages) - 1)) for u in usages]
    rounded = (total / len(usages) * _SCALE).round().long()
    lines = [" ".join(map(str, row)) for row in rounded.tolist()]
    return {"usage": lines, "distances": distances}


class ScanCheck(Transform):
    """Whether a scan is unlike the healthy scans, at a stated false-alarm rate, with a p-value.

    The p-value is exact, whatever the distances' distribution, where it can be: the share of the
    n + 1 scans, this one included, that are at least as far from the others ("rank"). It is never
    below 1 / (n + 1). Where that is more than the false-alarm rate, for fewer than 19 healthy scans
    at 5 %, distances are taken as normal instead: Student's t with n - 1 degrees of freedom
    ("student"), an assumption and not a guarantee.

    Args:
        reference: of `scan_reference`; None where a model was not calibrated.
        false_alarm_rate: share of healthy scans that may be called suspicious, in (0, 1).
        axis: see `prototype_usage`; of several the first, whose component map it is.

    Raises:
        ValueError: for a rate out of range.
    """

    def __init__(
        self,
        reference: Mapping[str, Any] | None = None,
        false_alarm_rate: float = 0.05,
        axis: int | Sequence[int] = 2,
    ) -> None:
        if not 0 < false_alarm_rate < 1:
            raise InputError(f"false_alarm_rate must lie in (0, 1), got {false_alarm_rate}")
        self.reference = reference
        self.false_alarm_rate = false_alarm_rate
        self.axis = slice_axes(axis)[0]

    def __call__(self, anomaly: Tensor, components: Tensor) -> dict[str, Any] | None:
        """The finding, of volumes (1, X, Y, Z) on the grid of the slices; None without reference.

        A dictionary for JSON of "suspicious", "p_value", "false_alarm_rate", "method" ("rank" or
        "student"), "distance" (see `usage_distance`), "healthy_distances" [lowest, highest],
        "scans", how many healthy scans were compared, and "reason", one sentence.
        """
        if self.reference is None:
            return None
        rows = [[int(n) for n in line.split()] for line in self.reference["usage"]]
        expected = torch.tensor(rows, dtype=torch.float64) / _SCALE
        usage = prototype_usage(anomaly[0], components[0], expected.shape[1], self.axis)
        return self.finding(usage_distance(usage, expected))

    def finding(self, distance: float) -> dict[str, Any]:
        """The finding of a scan at a distance from the mean usage of the healthy scans."""
        healthy = self.reference["distances"]
        exact = 1 / (len(healthy) + 1) <= self.false_alarm_rate
        p_value = _rank_p_value(distance, healthy) if exact else _student_p(distance, healthy)
        found = {
            "suspicious": p_value <= self.false_alarm_rate,
            "p_value": p_value,
            "false_alarm_rate": self.false_alarm_rate,
            "method": "rank" if exact else "student",
            "distance": distance,
            "healthy_distances": [min(healthy), max(healthy)],
            "scans": len(healthy),
        }
        return found | {"reason": _sentence(found)}


class CheckScand(Transform):
    """Data with the finding of `ScanCheck` at "scan_check", before the volumes are inverted.

    Args:
        anomaly_key: key of the anomaly volume (1, X, Y, Z).
        component_key: key of the component map.
        output_key: where the finding goes; None where the model was not calibrated.
        **kwargs: see `ScanCheck`.
    """

    def __init__(
        self,
        anomaly_key: Hashable = "pred_anomaly",
        component_key: Hashable = "pred_component",
        output_key: Hashable = "scan_check",
        **kwargs: Any,
    ) -> None:
        self.anomaly_key = anomaly_key
        self.component_key = component_key
        self.output_key = output_key
        self.check = ScanCheck(**kwargs)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the finding."""
        volumes = (torch.as_tensor(data[key]) for key in (self.anomaly_key, self.component_key))
        return {**data, self.output_key: self.check(*volumes)}


def _shares(scores: Tensor, labels: Tensor, count: int) -> Tensor:
    """Shares of the labels 0 to K - 1, without those of the highest scores: (n,) twice -> (K,)."""
    if not len(scores):  # no foreground: a scan of nothing is as far from all as can be
        return torch.full((count,), -1.0 / count, dtype=torch.float64)
    limit = scores.kthvalue(max(1, math.ceil(KEPT * len(scores)))).values
    counts = torch.bincount(labels[scores <= limit].as_subclass(Tensor), minlength=count).double()
    return counts.cpu() / counts.sum().cpu()


def _rank_p_value(distance: float, healthy: Sequence[float]) -> float:
    return (1 + sum(other >= distance for other in healthy)) / (len(healthy) + 1)


def _student_p(distance: float, healthy: Sequence[float]) -> float:
    """Probability of a next normal draw beyond the distance."""
    n, mean = len(healthy), math.fsum(healthy) / len(healthy)
    deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in healthy) / (n - 1))
    deviation = max(deviation, 1e-6)
    return float(student.sf((distance - mean) / (deviation * math.sqrt(1 + 1 / n)), n - 1))


def _sentence(found: Mapping[str, Any]) -> str:
    low, high = (100 * share for share in found["healthy_distances"])
    how = "exact" if found["method"] == "rank" else "their distances taken as normal"
    return (
        f"{100 * found['distance']:.0f} % of the scan lies on other prototypes than healthy scans,"
        f" which differ by {low:.0f} to {high:.0f} % from each other (p = {found['p_value']:.2g}"
        f" against {found['scans']} scans, {how})"
    )
