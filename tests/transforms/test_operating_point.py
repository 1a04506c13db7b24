import math

import pytest
import torch
from monai.data import MetaTensor

from monai_dpmm.transforms.operating_point import (
    FalsePositiveVolumes,
    mean_interval,
    operating_point,
    volume_threshold,
    voxel_ml,
)


class _Detector:
    def __init__(self, factor=10):
        self.thresholds_by_rate = {"0.01": 0.01 * factor, "0.05": 0.05 * factor}


def _healthy(*scans, ml=0.5):
    found = FalsePositiveVolumes()
    for scan in scans:
        found.add(scan, ml)
    return found


@pytest.mark.parametrize("shift", [0.0, -0.5, -300.0])  # log-likelihoods are negative
def test_masks_take_the_volume_and_the_next_lower_threshold_would_take_more(shift):
    scans = [torch.rand(1, 20, 21, 9) * scale + shift for scale in (0.8, 1.0, 1.1)]
    found = _healthy(*scans, ml=0.008)
    for ml in (0.05, 1.0, 7.0):
        threshold = found.threshold(ml)
        volumes = torch.stack([(scan > threshold).sum().double() * 0.008 for scan in scans])
        assert volumes.mean() <= ml + 1e-9
        lower = threshold - 2.5e-4 * max(1, abs(threshold))
        assert torch.stack([(scan > lower).sum() * 0.008 for scan in scans]).mean() > ml
        counted = found.volumes(torch.tensor([threshold]))[:, 0]
        assert torch.allclose(counted, volumes, atol=1e-9)


def test_a_case_worked_by_hand():
    found = _healthy(torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.tensor([0.0, 0.0, 0.0, 2.0]), ml=2)
    assert found.threshold(1.9) == pytest.approx(1.0, rel=2e-4)  # 0 and 1 voxel above
    assert found.threshold(2.0) == pytest.approx(0.5, rel=2e-4)  # 1 and 1
    assert found.threshold(3.0) == pytest.approx(0.25, rel=2e-4)  # 2 and 1
    (one,) = found.calibrated([3.0], _Detector())
    assert (one["ml_per_scan"], one["mean_ml"], one["highest_ml"], one["scans"]) == (3, 3, 4, 2)
    assert one["interval"][0] < 3 < one["interval"][1]
    assert torch.equal(found.volumes(torch.tensor([-1.0, 5.0])), torch.tensor([[8, 0]] * 2))


def test_memory_follows_the_scores_and_not_the_voxels():
    found = _healthy(torch.rand(300_000) * 0.5 + 0.5)
    assert len(found._curves[0][0]) <= 2**13 + 1


def test_the_order_of_scans_does_not_matter():
    scans = [torch.rand(500) for _ in range(4)]
    volumes = [1.0, 20.0]
    ahead, back = (_healthy(*s).calibrated(volumes, _Detector()) for s in (scans, scans[::-1]))
    for one, other in zip(ahead, back, strict=True):
        assert one.pop("interval") == pytest.approx(other.pop("interval"))
        assert one == other


def test_interval_shrinks_with_scans_and_covers_the_mean_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    deviation = math.sqrt(math.log(2))  # a coefficient of variation of 1
    draws = torch.exp(
        deviation * torch.randn(400, 8, generator=generator, dtype=torch.float64) - deviation**2 / 2
    )
    intervals = [mean_interval(draw.tolist()) for draw in draws]
    assert 0.87 < sum(low <= 1 <= high for low, high in intervals) / 400 < 0.97
    few, many = mean_interval([1, 2, 3]), mean_interval([1, 2, 3] * 10)
    assert few[0] < many[0] < 2 < many[1] < few[1]
    assert mean_interval([2.0, 2.0]) == (2.0, 2.0)
    assert mean_interval([2.0]) is None
    assert mean_interval([0.0, 0.0]) is None


def test_interval_of_counts_is_never_surer_than_poisson():
    low, high = mean_interval([4, 4, 4, 4], counts=True)
    assert low < 4 - 1 < 4 + 1 < high  # the deviation of the mean of four
    assert mean_interval([1, 9, 2, 8], counts=True) == mean_interval([1.0, 9.0, 2.0, 8.0])
    assert mean_interval([0, 0, 0], counts=True) == pytest.approx((0, 3.689 / 3), abs=1e-3)
    assert mean_interval([3], counts=True) is None


def test_volume_of_a_voxel_whatever_its_axes():
    affine = torch.tensor([[0, -2.0, 0, 5], [1, 0, 0, 7], [0, 0, 3, -9], [0, 0, 0, 1]])
    assert voxel_ml(affine) == pytest.approx(0.006)
    assert voxel_ml(MetaTensor(torch.zeros(1, 2, 2, 2), affine=affine).affine) == voxel_ml(affine)


def test_a_volume_counts_before_a_rate():
    kept = _healthy(torch.rand(100), torch.rand(100)).calibrated([1.0, 5.0], _Detector())
    known = _Detector().thresholds_by_rate
    assert operating_point(known, 0.01, volume_threshold(5, kept)) == {
        "threshold": kept[1]["threshold"],
        "false_positive_rate": None,
        "false_positive_volume_ml": 5,
    }
    assert operating_point(known, 0.01, volume_threshold(None, kept)) == {
        "threshold": 0.1,
        "false_positive_rate": 0.01,
        "false_positive_volume_ml": None,
    }
    trained_again = _Detector(11).thresholds_by_rate
    with pytest.raises(ValueError, match=r"rate of 0.01 must be the 0.1 .*: calibrate it again"):
        operating_point(trained_again, 0.05, volume_threshold(5, kept))
    with pytest.raises(ValueError, match=r"must be one of 0.01, 0.05, got 0.2"):
        operating_point(known, 0.2)


def test_errors_name_argument_rule_and_value():
    with pytest.raises(ValueError, match="finite and some, got 0 voxels"):
        FalsePositiveVolumes().add(torch.empty(0), 1.0)
    with pytest.raises(ValueError, match="anomaly scores must be finite"):
        FalsePositiveVolumes().add(torch.tensor([1.0, float("nan")]), 1.0)
    with pytest.raises(ValueError, match="at least one healthy scan"):
        FalsePositiveVolumes().threshold(1.0)
    found = _healthy(torch.rand(100))
    for volume in (0, -1.0, 50.0):
        with pytest.raises(ValueError, match=r"positive and less than the 49.5 ml .*, got"):
            found.threshold(volume)
    with pytest.raises(ValueError, match=r"false_positive_volume=2 needs .* monai_dpmm calibrate"):
        volume_threshold(2, [])
    with pytest.raises(ValueError, match="must be one of 1, 5 ml, got 2"):
        volume_threshold(2, found.calibrated([1.0, 5.0], _Detector()))
