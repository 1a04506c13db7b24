"""Paired tests and intervals, by hand and as laws."""

import numpy as np
import pytest

from monai_dpmm.study.significance import bootstrap_interval, holm, paired_p_value


def test_p_by_hand():
    # of the 8 permutations of signs, only (+ + +) and (- - -) are as extreme as 1 + 2 + 3
    assert paired_p_value([2, 4, 6], [1, 2, 3]) == pytest.approx(2 / 8)
    # |±1 ±2 ±3| >= |1 + 2 - 3|: all 8
    assert paired_p_value([1, 2, 0], [0, 0, 3]) == 1


def test_p_is_two_sided_and_does_not_ask_which_is_first():
    generator = np.random.default_rng(0)
    x, y = generator.normal(0.3, 1, 40), generator.normal(0, 1, 40)
    assert paired_p_value(x, y) == pytest.approx(paired_p_value(y, x), abs=0.02)
    assert paired_p_value(x, y, seed=3) == paired_p_value(x, y, seed=3)


def test_a_clear_difference_has_a_small_p_and_none_a_large_one():
    noise = np.random.default_rng(1).normal(0, 0.1, 50)
    assert paired_p_value(noise + 1, np.zeros(50)) == pytest.approx(2 / 10000)
    assert paired_p_value(noise, noise) == 1
    assert paired_p_value([0.3], [0.2]) == 1


@pytest.mark.parametrize(("first", "second"), [([1, 2], [1]), ([], [])])
def test_pairs_are_needed(first, second):
    with pytest.raises(ValueError, match="paired values must be as many as each other"):
        paired_p_value(first, second)


def test_holm_by_hand():
    # sorted 0.01 0.02 0.03 0.04 times 4 3 2 1, never falling: 0.04 0.06 0.06 0.06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_an_interval_draws_whole_scans():
    # scans of one value each: every resample has a mean between 0 and 1
    low, high = bootstrap_interval([[0.0] * 50, [1.0] * 50])
    assert (low, high) == (0, 1)  # 200 independent images would give 0.43 to 0.57
    same = bootstrap_interval([[0.2, 0.4], [0.4, 0.2], [0.3]])
    assert same == pytest.approx((0.3, 0.3))
    assert np.isnan(bootstrap_interval([[1, 2]])).all()


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(2).normal(5, 1, 400)
    low, high = bootstrap_interval([v] for v in values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
