"""Lesions and alarms worked by hand, and the FROC curve against masks labelled one by one."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from monai_dpmm.metrics.froc import froc, lesion_counts, scan_events
from monai_dpmm.transforms.regions import connected_regions

LESIONS = torch.tensor([[1, 1, 0, 0, 0, 2], [1, 1, 0, 0, 0, 2], [0, 0, 0, 0, 0, 0]])


def mask_of(*rows):
    return torch.tensor([[c == "x" for c in row] for row in rows])


@pytest.mark.parametrize(
    ("rows", "iou", "expected"),
    [
        (("......", "......", "......"), 0, (0, 2, 0)),
        (("x.....", "......", "......"), 0, (1, 2, 0)),
        (("x.....", "......", "...x.."), 0, (1, 2, 1)),
        (("xxxxxx", "......", "......"), 0, (2, 2, 0)),  # one alarm may find two lesions
        (("x.....", "x....x", "......"), 0.5, (2, 2, 0)),  # both of them cover a half
        (("x.....", "x....x", "......"), 0.6, (0, 2, 2)),  # found by neither: two false positives
        (("xxxxxx", "xx....", "......"), 0.4, (1, 2, 0)),  # 4 of 8 and 1 of 9
        (("xx....", "xx....", "......"), 1, (1, 2, 0)),
    ],
)
def test_found_lesions_and_false_positives_worked_by_hand(rows, iou, expected):
    assert lesion_counts(mask_of(*rows), LESIONS, iou) == expected


def test_a_scan_without_lesions_has_false_positives_only():
    mask = mask_of("x.x", "...", "x..")
    assert lesion_counts(mask, torch.zeros(3, 3, dtype=torch.int64)) == (0, 0, 3)


def scan(seed, shape=(14, 12, 10), lesions=True, levels=None):
    """Smooth noise with many maxima, and lesions that it partly shows; tied scores by levels."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    scores = torch.from_numpy(gaussian_filter(noise.numpy(), 0.8))
    label = torch.from_numpy(gaussian_filter(noise.flip(0).numpy(), 1.5)) > 0.25
    regions = connected_regions(label & torch.tensor(lesions))
    scores = scores + 0.1 * label
    return (scores if levels is None else (scores * levels).round() / levels), regions


@pytest.mark.parametrize("levels", [None, 20])
@pytest.mark.parametrize("shape", [(14, 12, 10), (20, 31), (9, 12, 1)])
def test_events_count_the_false_positives_of_every_threshold(shape, levels):
    scores, regions = scan(0, shape, levels=levels)
    floor = float(scores.quantile(0.3))
    events = scan_events(scores, regions, floor)
    assert regions.max() >= 1
    assert len(events.scores) > 4
    for threshold in scores[scores >= floor].unique()[::7]:
        counts = lesion_counts(scores > threshold, regions)
        assert int(events.changes[events.scores > threshold].sum()) == counts.false_positives
        assert int((events.peaks > threshold).sum()) == counts.found


def test_froc_worked_by_hand():
    """Two scans: peaks 9 and 4 of lesions; alarms at 8, at 5 (which joins it at 3), and at 6."""
    one = torch.tensor([9.0, 0, 8, 3, 5, 0, 4])
    other = torch.tensor([6.0, 0, 0, 0, 0, 0, 1])
    lesions = torch.tensor([1, 0, 0, 0, 0, 0, 2])
    none = torch.zeros_like(lesions)
    scans = [scan_events(one, lesions, 0.0), scan_events(other, none, 0.0)]
    assert scans[0].peaks.tolist() == [9, 4]
    assert [scans[0].scores.tolist(), scans[0].changes.tolist()] == [[8, 5, 3], [1, 1, -1]]
    curve = froc(scans, 0.0)
    # 4 is reached with 8, 5 and 6 above it; at 3 the first two are one
    assert curve.sensitivity.tolist() == [0.5, 1]
    assert curve.false_positives.tolist() == [0, 1]
    assert curve.thresholds.tolist() == pytest.approx([9, 3])
    assert (one > curve.thresholds[1]).sum() == 5
    assert curve.sensitivity_at(0.9) == 0.5
    assert curve.sensitivity_at(1) == 1
    assert curve.mean_sensitivity() == pytest.approx((3 * 0.5 + 4) / 7)


@pytest.mark.slow
def test_froc_is_the_best_of_all_thresholds():
    scans = [scan(seed, lesions=seed % 3 > 0) for seed in range(5)]
    floor = 0.05
    curve = froc([scan_events(*one, floor) for one in scans], floor)
    points = []
    for threshold in torch.cat([s.flatten() for s, _ in scans]).unique():
        if threshold < floor:
            continue
        counts = [lesion_counts(scores > threshold, regions) for scores, regions in scans]
        found, lesions, alarms = (sum(column) for column in zip(*counts, strict=True))
        points.append((alarms / 5, found / lesions))
    for rate in (0, 0.2, 0.5, 1, 2, 4, 8, 100):
        expected = max((s for alarms, s in points if alarms <= rate), default=0.0)
        assert curve.sensitivity_at(rate) == pytest.approx(expected)
    for threshold, alarms, sensitivity in zip(*curve, strict=True):
        counts = [lesion_counts(scores > threshold, regions) for scores, regions in scans]
        assert float(alarms) == pytest.approx(sum(c.false_positives for c in counts) / 5)
        assert float(sensitivity) == pytest.approx(
            sum(c.found for c in counts) / sum(c.lesions for c in counts)
        )


def test_without_lesions_or_alarms_the_curve_is_empty():
    scores, none = torch.rand(4, 5), torch.zeros(4, 5, dtype=torch.int64)
    for floor in (0.5, 2.0):
        curve = froc([scan_events(scores, none, floor)], floor)
        assert len(curve.sensitivity) == 0
        assert curve.mean_sensitivity() == 0
