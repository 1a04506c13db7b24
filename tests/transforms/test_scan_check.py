import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import stats

from monai_dpmm.transforms.scan_check import (
    CheckBaselined,
    CheckScand,
    ScanCheck,
    prototype_usage,
    scan_reference,
    usage_distance,
)

K = 12


def _scan(generator, shift=0, count=K):
    """A scan whose prototypes follow the place along the last axis, and its scores."""
    place = torch.arange(18) * count // 18 + shift
    jitter = torch.randint(0, 3, (10, 11, 18), generator=generator)
    components = (place + jitter) % count + 1
    components[:2] = 0  # air
    return torch.rand(10, 11, 18, generator=generator), components


def _healthy(number):
    generator = torch.Generator().manual_seed(7)
    return [prototype_usage(*_scan(generator), K) for _ in range(number)]


def test_usage_of_a_case_worked_by_hand():
    components = torch.tensor([[[0.0, 1, 1, 2, 3, 3, 0]]])  # thirds of the foreground: 2, 2, 1
    scores = torch.tensor([[[9.0, 0, 1, 0, 1, 0, 9]]])
    expected = torch.tensor([[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]]).double()
    assert torch.equal(prototype_usage(scores, components, 3), expected)
    assert torch.equal(
        prototype_usage(scores.movedim(2, 0), components.movedim(2, 0), 3, axis=0), expected
    )
    image = prototype_usage(scores[0].T, components[0].T, 3)  # the rows of an image are slices
    assert torch.equal(image, expected)


def test_a_lesion_of_a_fifth_of_each_part_changes_nothing_and_a_larger_one_in_proportion():
    scores, components = torch.rand(10, 10, 30), torch.randint(1, 4, (10, 10, 30))
    before = prototype_usage(scores, components, 5)
    with_lesion, marked = components.clone(), scores.clone()
    marked[:2], with_lesion[:2] = 5.0, 5
    usage = prototype_usage(marked, with_lesion, 5)
    assert usage[:, 4].max() == 0
    assert usage_distance(usage, before) < 0.1
    marked[:5], with_lesion[:5] = 5.0, 5
    larger = usage_distance(prototype_usage(marked, with_lesion, 5), before)
    assert 0.3 < larger <= 0.5


def test_distance_is_a_share():
    one = torch.eye(3, dtype=torch.float64)
    assert usage_distance(one, one) == 0
    assert usage_distance(one, one.roll(1, 0)) == 1
    nothing = prototype_usage(torch.zeros(4, 4, 4), torch.zeros(4, 4, 4), 3)
    assert usage_distance(nothing, one) == pytest.approx(1)


def test_a_scan_upside_down_or_of_other_prototypes_is_suspicious_and_a_healthy_one_is_not():
    generator = torch.Generator().manual_seed(0)
    check = ScanCheck(scan_reference(_healthy(24)))
    scores, components = (x[None].float() for x in _scan(generator))
    assert not check(scores, components)["suspicious"]
    for wrong in (components.flip(3), _scan(generator, shift=4)[1][None].float()):
        finding = check(scores, wrong)
        assert finding["suspicious"]
        assert (finding["method"], finding["p_value"]) == ("rank", 1 / 25)
    assert finding["reason"].startswith(f"{100 * finding['distance']:.0f} % of the scan lies on")
    assert json.loads(json.dumps(finding)) == finding


def test_the_rank_p_value_is_that_of_the_definition_and_student_that_of_a_prediction():
    distances = [0.2, 0.25, 0.22, 0.21]
    reference = {"usage": ["100000"] * 3, "distances": distances}
    rank, student = ScanCheck(reference, 0.25), ScanCheck(reference, 0.05)
    assert rank.finding(0.23)["p_value"] == 2 / 5
    assert rank.finding(0.3)["p_value"] == 1 / 5
    finding = student.finding(0.3)
    scale = np.std(distances, ddof=1) * np.sqrt(5 / 4)
    expected = stats.t(3, loc=np.mean(distances), scale=scale).sf(0.3)
    assert finding["method"] == "student"
    assert finding["p_value"] == pytest.approx(expected)
    assert "taken as normal" in finding["reason"]
    assert "exact" in rank.finding(0.3)["reason"]


def test_a_scan_whose_baseline_is_far_from_healthy_ones_is_suspicious():
    generator = torch.Generator().manual_seed(3)
    for scans, method in ((24, "rank"), (6, "student")):
        baselines = torch.randn(scans, generator=generator).tolist()
        check = ScanCheck(scan_reference(_healthy(scans), baselines))
        usual = float(np.mean(check.reference["distances"]))
        assert not check.finding(usual, 0.1)["suspicious"]
        for shifted in (12.0, -12.0):
            finding = check.finding(usual, shifted)
            assert finding["suspicious"]
            assert finding["method"] == method
            assert f"scores {shifted:.2f} (its median)" in finding["reason"]
            assert finding["healthy_baselines"] == [min(baselines), max(baselines)]
            assert json.loads(json.dumps(finding)) == finding
        other = check.finding(10 * usual, 0.1)
        assert other["suspicious"]
        assert "lies on other prototypes" in other["reason"]


def test_the_joint_p_value_is_that_of_the_larger_ratio():
    reference = {
        "usage": ["100000"] * 3,
        "distances": [1.0, 2.0, 3.0, 2.0],  # mean 2
        "baselines": [0.0, 3.0, 0.0, 3.0],  # 2 from the mean of the others, each
    }
    check = ScanCheck(reference, 0.25)
    assert check.finding(1.0, 1.5)["p_value"] == 1  # ratios 0.5 and 0; theirs are 1, 1, 1.5, 1
    assert check.finding(2.5, 1.5)["p_value"] == 2 / 5  # 1.25
    assert check.finding(2.5, 1.5 + 3.2)["p_value"] == 1 / 5  # 1.6
    assert check.finding(2.5)["p_value"] == 2 / 5  # distances alone: 3 is farther
    student = ScanCheck(reference, 0.05)
    tail = stats.t(3, loc=1.5, scale=np.sqrt(3) * np.sqrt(5 / 4)).sf(9.0)
    assert student.finding(2.0, 9.0)["p_value"] == pytest.approx(4 * tail)


@pytest.mark.slow
def test_false_alarms_with_baselines_are_as_many_as_stated():
    generator, alarms = torch.Generator().manual_seed(1), {4: 0, 19: 0}
    for scans in alarms:
        for _ in range(2000):
            draws = torch.randn(2, scans + 1, generator=generator)
            usage, baseline = draws[0].exp().tolist(), draws[1].tolist()
            reference = {"usage": [], "distances": usage[1:], "baselines": baseline[1:]}
            alarms[scans] += ScanCheck(reference).finding(usage[0], baseline[0])["suspicious"]
    assert 60 < alarms[19] < 160  # of 2000, of which 100 are expected
    assert alarms[4] < 300  # the usages here are far from normal


@pytest.mark.slow
def test_false_alarms_are_as_many_as_stated():
    generator = torch.Generator().manual_seed(1)
    alarms = {4: 0, 19: 0}
    for scans in alarms:
        for _ in range(120):
            usages = [prototype_usage(*_scan(generator), K) for _ in range(scans + 1)]
            reference = scan_reference(usages[:-1])
            check = ScanCheck(reference)
            rows = [[int(n) for n in line.split()] for line in reference["usage"]]
            expected = torch.tensor(rows) / 100_000
            distance = usage_distance(usages[-1], expected)
            alarms[scans] += check.finding(distance)["suspicious"]
    assert alarms[4] <= 14  # of 120, of which 6 are expected
    assert alarms[19] <= 14


def test_as_a_dictionary_transform():
    scores, components = (x[None].float() for x in _scan(torch.Generator().manual_seed(0)))
    data = {"pred_anomaly": MetaTensor(scores), "pred_component": MetaTensor(components), "x": 1}
    reference = scan_reference(_healthy(4))
    result = CheckScand(reference=reference)(data)
    assert result["scan_check"] == ScanCheck(reference)(scores, components)
    assert result["x"] == 1
    assert CheckScand()(data)["scan_check"] is None
    along = CheckScand(reference=reference, axis=[0, 2])(data)["scan_check"]
    assert along["distance"] > result["scan_check"]["distance"]


def test_the_baseline_completes_the_finding():
    reference = scan_reference(_healthy(4), [0.0, 0.1, 0.2, 0.1])
    scores, components = (x[None].float() for x in _scan(torch.Generator().manual_seed(0)))
    data = CheckScand(reference=reference)({"pred_anomaly": scores, "pred_component": components})
    complete = CheckBaselined(reference=reference)
    assert complete(data) == data  # nothing was taken off the map
    finding = complete({**data, "baseline": 7.0})["scan_check"]
    assert finding["suspicious"]
    assert finding["distance"] == data["scan_check"]["distance"]
    assert complete({"scan_check": None, "baseline": 7.0})["scan_check"] is None


def test_errors_name_argument_rule_and_value():
    with pytest.raises(ValueError, match="baselines must be of 4 scans, got 3"):
        scan_reference(_healthy(4), [0.0] * 3)
    with pytest.raises(ValueError, match="usages must be of at least 3 scans, got 2"):
        scan_reference(_healthy(2))
    for rate in (0, 1, 5):
        with pytest.raises(ValueError, match=rf"false_alarm_rate must lie in \(0, 1\), got {rate}"):
            ScanCheck(None, rate)
    with pytest.raises(ValueError, match="axis must be 0, 1 or 2"):
        ScanCheck(None, axis=3)
