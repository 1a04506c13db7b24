"""Whether a scan is like the healthy scans at all, asked before anyone reads its heat map.

A heat map means something where the scan is of the kind that the mixture was fitted to. A scan of
another sequence, window, body part or orientation, or one ruined by motion, lies on other
prototypes than healthy scans do, and everywhere; a lesion does so in its own place only.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from monai.transforms import Transform
from monai.utils import TransformBackends
from scipy.stats import t as student
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.network.geometry import slice_axes
from monai_dpmm.transforms.healthy_maps import rank_p_value

__all__ = [
    "MIN_SCANS",
    "CheckBaselined",
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


def scan_reference(
    usages: Sequence[Tensor], baselines: Sequence[float] | None = None
) -> dict[str, Any]:
    """What `ScanCheck` must know of healthy scans, of their `prototype_usage`, as JSON.

    "usage", the mean of the scans, as whole numbers of 100,000 in one line for each part;
    "distances", of each scan from the mean of the others; and their "baselines", where they are
    known. A new scan is compared with the mean of all, which is nearer to healthy scans, so the
    distances are not too small for it.

    Raises:
        ValueError: for fewer than 3 scans, or other than one baseline for each.
    """
    if len(usages) < MIN_SCANS:
        raise InputError(f"usages must be of at least {MIN_SCANS} scans, got {len(usages)}")
    if baselines is not None and len(baselines) != len(usages):
        raise InputError(f"baselines must be of {len(usages)} scans, got {len(baselines)}")
    total = torch.stack(list(usages)).sum(0)
    distances = [usage_distance(u, (total - u) / (len(usages) - 1)) for u in usages]
    rounded = (total / len(usages) * _SCALE).round().long()
    lines = [" ".join(map(str, row)) for row in rounded.tolist()]
    known = {} if baselines is None else {"baselines": list(baselines)}
    return {"usage": lines, "distances": distances} | known


class ScanCheck(Transform):
    """Whether a scan is unlike the healthy scans, at a stated false-alarm rate, with a p-value.

    The p-value is exact, whatever the distances' distribution, where it can be: the share of the
    n + 1 scans, this one included, that are at least as far from the others ("rank"). It is never
    below 1 / (n + 1). Where that is more than the false-alarm rate, for fewer than 19 healthy scans
    at 5 %, distances are taken as normal instead: Student's t with n - 1 degrees of freedom
    ("student"), an assumption and not a guarantee.

    Where baselines are known, how far a scan's own lies from theirs counts as well: the larger of
    both distances, each in units of its healthy mean, is ranked; of two tails of Student's t the
    smaller counts twice.

    Args:
        reference: of `scan_reference`; None where a model was not calibrated.
        false_alarm_rate: share of healthy scans that may be called suspicious, in (0, 1).
        axis: see `prototype_usage`; of several the first that was used, whose component map it is.

    Raises:
        ValueError: for a rate out of range.
    """

    backend: ClassVar = [TransformBackends.TORCH]

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

    def finding(self, distance: float, baseline: float | None = None) -> dict[str, Any]:
        """The finding of a scan at a distance from the mean usage of the healthy scans.

        With the baseline of its map, where theirs are known, also that "baseline", and
        "healthy_baselines" [lowest, highest].
        """
        distances, baselines = self.reference["distances"], self.reference.get("baselines")
        exact = 1 / (len(distances) + 1) <= self.false_alarm_rate
        found = {
            "false_alarm_rate": self.false_alarm_rate,
            "method": "rank" if exact else "student",
            "distance": distance,
            "healthy_distances": [min(distances), max(distances)],
            "scans": len(distances),
        }
        if baseline is None or not baselines:
            p_value, by_baseline = _p_value(distance, distances, exact), False
        else:
            p_value, by_baseline = _joint_p_value(distance, distances, baseline, baselines, exact)
            found |= {"baseline": baseline, "healthy_baselines": [min(baselines), max(baselines)]}
        found = {"suspicious": p_value <= self.false_alarm_rate, "p_value": p_value, **found}
        return found | {"reason": _sentence(found, by_baseline)}


class CheckScand(Transform):
    """Data with the finding of `ScanCheck` at "scan_check", before the volumes are inverted.

    Args:
        anomaly_key: key of the anomaly volume (1, X, Y, Z).
        component_key: key of the component map.
        output_key: where the finding goes; None where the model was not calibrated.
        **kwargs: see `ScanCheck`.
    """

    backend: ClassVar = [TransformBackends.TORCH]

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


class CheckBaselined(Transform):
    """Data whose finding of `CheckScand` also takes the scan's baseline into account.

    It comes after the map's baseline is known, see `RefineAnomalyd`. Data without a baseline or
    without a finding stay as they are.

    Args:
        baseline_key: key of the baseline, a float.
        key: key of the finding.
        **kwargs: see `ScanCheck`.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self, baseline_key: Hashable = "baseline", key: Hashable = "scan_check", **kwargs: Any
    ) -> None:
        self.baseline_key = baseline_key
        self.key = key
        self.check = ScanCheck(**kwargs)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the finding."""
        found, baseline = data.get(self.key), data.get(self.baseline_key)
        if found is None or baseline is None:
            return dict(data)
        return {**data, self.key: self.check.finding(found["distance"], baseline)}


def _shares(scores: Tensor, labels: Tensor, count: int) -> Tensor:
    """Shares of the labels 0 to K - 1, without those of the highest scores: (n,) twice -> (K,)."""
    if not len(scores):  # no foreground: a scan of nothing is as far from all as can be
        return torch.full((count,), -1.0 / count, dtype=torch.float64)
    limit = scores.kthvalue(max(1, math.ceil(KEPT * len(scores)))).values
    counts = torch.bincount(labels[scores <= limit].as_subclass(Tensor), minlength=count).double()
    return counts.cpu() / counts.sum().cpu()


def _p_value(distance: float, healthy: Sequence[float], exact: bool) -> float:
    ranked = rank_p_value(distance, healthy) if exact else None
    return _student_p(distance, healthy) if ranked is None else ranked


def _joint_p_value(
    distance: float,
    distances: Sequence[float],
    baseline: float,
    baselines: Sequence[float],
    exact: bool,
) -> tuple[float, bool]:
    """P-value of usage and baseline together, and whether the baseline is the odder of the two.

    Baselines are compared as usages are, see `scan_reference`: each with the mean of the others.
    """
    if not exact:
        tail = _student_p(baseline, baselines)
        of_usage, of_baseline = _student_p(distance, distances), 2 * min(tail, 1 - tail)
        return min(1.0, 2 * min(of_usage, of_baseline)), of_baseline < of_usage
    n, total = len(baselines), math.fsum(baselines)
    others = [abs(one - (total - one) / (n - 1)) for one in baselines]
    usage, shift = _mean(distances), _mean(others)
    joint = [max(d / usage, o / shift) for d, o in zip(distances, others, strict=True)]
    own = distance / usage, abs(baseline - total / n) / shift
    return _p_value(max(own), joint, exact), own[1] > own[0]


def _mean(values: Sequence[float]) -> float:
    """Mean of distances, above 0."""
    return max(math.fsum(values) / len(values), 1e-6)


def _student_p(distance: float, healthy: Sequence[float]) -> float:
    """Probability of a next normal draw beyond the distance."""
    n, mean = len(healthy), math.fsum(healthy) / len(healthy)
    deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in healthy) / (n - 1))
    deviation = max(deviation, 1e-6)
    return float(student.sf((distance - mean) / (deviation * math.sqrt(1 + 1 / n)), n - 1))


def _sentence(found: Mapping[str, Any], by_baseline: bool) -> str:
    how = "exact" if found["method"] == "rank" else "their distances taken as normal"
    against = f"(p = {found['p_value']:.2g} against {found['scans']} scans, {how})"
    if by_baseline:
        low, high = found["healthy_baselines"]
        return (
            f"the scan as a whole scores {found['baseline']:.2f} (its median), healthy scans"
            f" {low:.2f} to {high:.2f} {against}"
        )
    low, high = (100 * share for share in found["healthy_distances"])
    return (
        f"{100 * found['distance']:.0f} % of the scan lies on other prototypes than healthy scans,"
        f" which differ by {low:.0f} to {high:.0f} % from each other {against}"
    )
