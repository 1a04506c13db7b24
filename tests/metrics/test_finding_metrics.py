"""What a reader is shown, beside the label: counted by hand, and in an evaluation."""

import math

import numpy as np
import pytest
import torch

from monai_dpmm import AnomalyMetrics, anomaly_findings
from monai_dpmm.metrics.finding_metrics import finding_counts, finding_record
from monai_dpmm.transforms.regions import connected_regions

AFFINE = np.diag([10.0, 10.0, 10.0, 1.0])  # 1 ml a voxel


class _Detector:
    false_positive_rates = torch.tensor([0.05])
    thresholds = torch.tensor([0.5])


def _item(findings, lesions, smallest=0.0):
    """A line of 12 voxels: (first, last, score) of each finding, (first, last) of each lesion."""
    anomaly, label = torch.zeros(12, 1, 1), torch.zeros(12, 1, 1)
    for first, last, score in findings:
        anomaly[first : last + 1] = score
    for first, last in lesions:
        label[first : last + 1] = 1
    mask = (anomaly > 0.5).float()
    found = anomaly_findings(anomaly, mask, AFFINE, smallest=smallest, threshold=0.5)
    maps = {"pred": anomaly[None], "pred_mask": mask[None], "label": label[None]}
    return maps | {"findings": found, "score": float(anomaly.max())}


def _record(item):
    lesions = connected_regions(item["label"][0] > 0)
    return finding_record(item["findings"]["lesions"], item["pred_mask"][0], lesions)


def test_lesions_that_findings_touch_are_found():
    item = _item([(0, 3, 0.9), (6, 6, 0.8)], [(2, 2), (4, 4), (9, 10)])
    metrics, ratios = _record(item)  # the first finding touches one; voxel 4 lies beside it
    assert metrics == {"findings": 2, "lesions_found": 1, "false_findings": 1}
    assert ratios == {
        "finding_sensitivity": (1, 3),
        "first_finding_precision": (1, 1),
        "false_findings_per_healthy_scan": (0, 0),
        "false_findings_per_ill_scan": (1, 1),
    }


def test_a_finding_may_find_several_lesions_and_several_the_same_one():
    metrics, _ = _record(_item([(0, 6, 0.9)], [(0, 1), (5, 8)]))
    assert metrics == {"findings": 1, "lesions_found": 2, "false_findings": 0}
    metrics, _ = _record(_item([(0, 1, 0.9), (3, 4, 0.9)], [(0, 8)]))
    assert metrics == {"findings": 2, "lesions_found": 1, "false_findings": 0}


def test_only_findings_that_are_listed_count_and_the_ranked_first_is_first():
    findings, lesions = [(0, 0, 0.99), (3, 8, 0.7)], [(0, 0)]
    _, ratios = _record(_item(findings, lesions))  # excess 0.49 and 1.2: the false one is first
    assert ratios["first_finding_precision"] == (0, 1)
    assert ratios["finding_sensitivity"] == (1, 1)
    metrics, ratios = _record(_item(findings, lesions, smallest=2))
    assert metrics == {"findings": 1, "lesions_found": 0, "false_findings": 1}
    assert ratios["finding_sensitivity"] == (0, 1)


def test_a_healthy_scan_and_one_without_findings():
    metrics, ratios = _record(_item([(0, 1, 0.9), (5, 5, 0.9)], []))
    assert metrics == {"findings": 2, "lesions_found": 0, "false_findings": 2}
    assert ratios["false_findings_per_healthy_scan"] == (2, 1)
    assert ratios["first_finding_precision"] == ratios["finding_sensitivity"] == (0, 0)
    metrics, ratios = _record(_item([], [(3, 4)]))
    assert metrics == {"findings": 0, "lesions_found": 0, "false_findings": 0}
    assert ratios["first_finding_precision"] == (0, 1)


def test_an_evaluation_sums_over_scans_and_comes_with_intervals():
    items = [
        _item([(0, 3, 0.9), (6, 6, 0.8)], [(2, 2), (9, 10)]),
        _item([(0, 0, 0.6), (3, 8, 0.95)], [(0, 0)]),
        _item([(0, 1, 0.7), (5, 5, 0.7)], []),
        _item([], []),
    ]
    metrics = AnomalyMetrics(_Detector(), bootstrap=200, findings_key="findings", score_key="score")
    metrics.update(items)
    found = metrics.compute()
    expected = {
        "lesions_found": 2,
        "lesions": 3,
        "first_findings_true": 1,
        "scans_with_lesions": 2,
        "healthy_scans": 2,
        "finding_sensitivity": 2 / 3,
        "first_finding_precision": 0.5,
        "false_findings_per_healthy_scan": 1,
        "false_findings_per_ill_scan": 1,
    }
    assert dict(list(found.items())[: len(expected)]) == pytest.approx(expected)
    assert found["image_auroc"] == 1  # 0.9 and 0.95 against 0.7 and 0
    low, high = metrics.intervals["false_findings_per_healthy_scan"]
    assert 0 <= low < 1 < high <= 2
    assert metrics.subjects[0]["false_findings"] == 1
    assert [subject["score"] for subject in metrics.subjects] == [item["score"] for item in items]


def test_without_findings_nothing_is_said_of_them():
    item = _item([(0, 3, 0.9)], [(2, 2)])
    metrics = AnomalyMetrics(_Detector())
    metrics.update([item])
    assert not any("finding" in name for name in metrics.compute())
    assert finding_counts([{"dice": (1.0, 2.0)}]) == {}


def test_healthy_scans_alone_have_no_sensitivity():
    metrics = AnomalyMetrics(_Detector(), findings_key="findings")
    metrics.update([_item([(0, 3, 0.9)], [])])
    found = metrics.compute()
    assert math.isnan(found["finding_sensitivity"])
    assert found["false_findings_per_healthy_scan"] == 1
    assert (found["lesions"], found["healthy_scans"]) == (0, 1)
