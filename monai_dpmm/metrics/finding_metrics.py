"""Findings of scans beside their labels: lesions found, what comes first, false findings.

A lesion is a connected region of the label. A finding is what the reader is shown: a connected part
of the mask that is not too small, ranked. It finds the lesions that it touches, and is false where
it touches none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_dpmm.transforms.regions import connected_regions

__all__ = ["finding_counts", "finding_record"]

_SUMS = {  # over scans, of the parts of ratios
    "lesions_found": ("finding_sensitivity", 0),
    "lesions": ("finding_sensitivity", 1),
    "first_findings_true": ("first_finding_precision", 0),
    "scans_with_lesions": ("first_finding_precision", 1),
    "healthy_scans": ("false_findings_per_healthy_scan", 1),
}


def finding_record(
    findings: Sequence[Mapping[str, Any]], mask: Tensor, lesions: Tensor
) -> tuple[dict[str, int], dict[str, tuple[float, float]]]:
    """A scan's own counts, and what it adds to the ratios of all: (spatial...), (spatial...) int64.

    Ratios are "finding_sensitivity", lesions found of all; "first_finding_precision", scans with a
    lesion whose first finding is one; and "false_findings_per_healthy_scan" and "..._per_ill_scan".

    Args:
        findings: "lesions" of `anomaly_findings`, ranked.
        mask: that they are parts of, above 0.
        lesions: number of the lesion of each pixel, see `connected_regions`.
    """
    regions = connected_regions(mask > 0)
    count = int(lesions.max())
    own = [int(regions[tuple(finding["peak_voxel"])]) for finding in findings]
    both = (regions > 0) & (lesions > 0)
    touches = torch.zeros(int(regions.max()) + 1, count + 1, dtype=torch.bool)
    touches[regions[both], lesions[both]] = True
    true = [bool(touches[number].any()) for number in own]
    found = int(touches[own].any(0).sum()) if own else 0
    false = len(own) - sum(true)
    metrics = {"findings": len(own), "lesions_found": found, "false_findings": false}
    first = float(true[0]) if true else 0.0
    ill = float(count > 0)
    return metrics, {
        "finding_sensitivity": (float(found), float(count)),
        "first_finding_precision": (first, 1.0) if ill else (0.0, 0.0),
        "false_findings_per_healthy_scan": (false * (1 - ill), 1 - ill),
        "false_findings_per_ill_scan": (false * ill, ill),
    }


def finding_counts(scans: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """Whole numbers behind the ratios of `finding_record`, of all scans: by name.

    "lesions_found" of "lesions", "first_findings_true" of "scans_with_lesions", "healthy_scans".
    Empty where there are no findings.
    """
    if not any("finding_sensitivity" in ratios for ratios in scans):
        return {}
    return {
        name: sum(ratios[ratio][part] for ratios in scans if ratio in ratios)
        for name, (ratio, part) in _SUMS.items()
    }
