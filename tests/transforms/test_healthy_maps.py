import json

import numpy as np
import pytest
import torch

from monai_dpmm import anomaly_findings
from monai_dpmm.network.thresholds import thresholds_at
from monai_dpmm.transforms.healthy_maps import HealthyFindings, PooledScores, rank_p_value
from monai_dpmm.transforms.operating_point import FalsePositiveVolumes

ML = 0.008
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def _scan(seed, shape=(12, 11, 10)):
    generator = torch.Generator().manual_seed(seed)
    anomaly = torch.rand(shape, generator=generator)
    foreground = torch.zeros(shape, dtype=torch.bool)
    foreground[1:, 2:, :8] = True
    return torch.where(foreground, anomaly, -1.0), foreground


def test_p_values_are_ranks_among_healthy_scans_and_this_one():
    assert rank_p_value(3.0, [1, 2, 3, 4]) == 3 / 5
    assert rank_p_value(5.0, [1, 2, 3, 4]) == 1 / 5
    assert rank_p_value(0.0, [1, 2, 3, 4]) == 1
    assert rank_p_value(1.0, []) is None


def test_p_values_of_exchangeable_scans_are_no_smaller_than_they_should_be():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(4000, 10, generator=generator).exp().tolist()
    values = torch.tensor([rank_p_value(one, others) for one, *others in draws])
    for level in (0.1, 0.2, 0.5):
        assert float((values <= level + 1e-6).float().mean()) == pytest.approx(level, abs=0.025)


def test_p_values_hold_although_the_threshold_is_chosen_on_the_same_scans():
    """Of the largest findings of healthy scans, at the threshold that nine others are given."""
    generator, scans = torch.Generator().manual_seed(0), []
    there = torch.ones(12, 12, 12, dtype=torch.bool)
    for _ in range(150):
        noise = torch.randn(1, 1, 12, 12, 12, generator=generator)
        level = 1 + 0.3 * torch.randn((), generator=generator).exp()  # scans differ
        scan = level * torch.nn.functional.avg_pool3d(noise, 3, 1, 1)[0, 0]
        scans.append(scan)
    p_values = []
    for start in range(0, 150, 10):
        group = scans[start : start + 10]
        for left in range(10):
            others, volumes = [s for i, s in enumerate(group) if i != left], FalsePositiveVolumes()
            found = HealthyFindings(1000)
            for scan in others:
                volumes.add(scan, ML)
            for scan in (group[left], *others):
                found.add(scan, there, ML)
            largest = found.summary(volumes.threshold(0.2), 0.0)["largest_findings"]
            p_values.append(rank_p_value(largest[0], largest[1:]))
    p_values = torch.tensor(p_values)
    for level in (0.1, 0.2, 0.5):
        assert float((p_values <= level + 1e-6).float().mean()) < level + 0.06


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99, 2.0])
@pytest.mark.parametrize("smallest", [0.0, 2 * ML])
def test_findings_are_those_of_the_whole_map(threshold, smallest):
    found = HealthyFindings(1000)
    scans = [_scan(seed) for seed in range(3)]
    for anomaly, foreground in scans:
        found.add(anomaly, foreground, ML)
    for (anomaly, _), excess in zip(scans, found.at(threshold, smallest), strict=True):
        options = {"smallest": smallest, "threshold": threshold}
        lesions = anomaly_findings(anomaly, anomaly > threshold, AFFINE, **options)["lesions"]
        expected = [lesion["excess"] for lesion in lesions]
        assert sorted(excess.tolist(), reverse=True) == pytest.approx(expected, rel=1e-4)


def test_of_a_scan_that_is_all_above_the_highest_voxels_count():
    anomaly = torch.linspace(1, 2, 1000).view(10, 10, 10)
    found = HealthyFindings(10 * ML)
    found.add(anomaly, torch.ones(10, 10, 10, dtype=torch.bool), ML)
    (excess,) = found.at(0.0, 0.0)
    assert excess.tolist() == pytest.approx([float(anomaly.flatten()[-10:].sum()) * ML])


def test_summary_of_a_case_worked_by_hand():
    found = HealthyFindings(100)
    for values in ([3.0, 0, 5.0, 4.0, 0], [0.0, 0, 0, 0, 0], [2.0, 2.0, 2.0, 0, 0]):
        found.add(torch.tensor(values).view(5, 1, 1), torch.ones(5, 1, 1, dtype=torch.bool), 0.5)
    summary = found.summary(1.0, 0.0)
    assert summary["findings_per_scan"] == 1
    assert summary["largest_findings"] == [(4 + 3) * 0.5, 0, 3 * 0.5]
    low, high = summary["findings_interval"]
    assert 0 < low < 1 < high
    assert json.loads(json.dumps(summary))["min_lesion_ml"] == 0
    assert found.summary(1.0, 1.0)["findings_per_scan"] == 2 / 3  # the single voxel is too small


def test_pooled_thresholds_are_those_of_all_scores_to_a_bin():
    rates = torch.tensor([0.01, 0.05, 0.1], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    scans = [torch.randn(n, generator=generator) for n in (1000, 5000, 30000)]
    pool, back = PooledScores(), PooledScores()
    for one, other in zip(scans, scans[::-1], strict=True):
        pool.add(one)
        back.add(other)
    found, scores = pool.thresholds(rates), torch.cat(scans)
    assert torch.equal(found, back.thresholds(rates))
    assert torch.allclose(found, thresholds_at(scores, rates), rtol=3e-4)
    for threshold, rate in zip(found, rates, strict=True):
        assert (scores > threshold).double().mean() <= rate


def test_memory_follows_the_scores_and_not_the_voxels():
    pool = PooledScores()
    for seed in range(30):
        pool.add(torch.rand(100_000, generator=torch.Generator().manual_seed(seed)) + 1)
    assert len(pool._bins) + sum(len(bins) for bins, _ in pool._pending) < 2**18
    with pytest.raises(ValueError, match=r"must have been added .* got none"):
        PooledScores().thresholds(torch.tensor([0.1]))
