import numpy as np
import pytest

from monai_dpmm.report.display import Scan
from monai_dpmm.study.figures.cases import Case, Cases, single_slice

SCAN = Scan.of(np.zeros((3, 3, 3)), np.zeros((3, 3, 3)))


def test_cases_are_spread_from_the_best_to_the_worst_in_bounded_memory():
    cases = Cases(5)
    values = np.random.default_rng(0).permutation(np.linspace(0, 1, 301))
    for value in values:
        cases.add(Case(f"{value:.3f}", float(value), 0.0, SCAN))
    assert len(cases.kept) == 20
    chosen = [case.aupr for case in cases.chosen()]
    np.testing.assert_allclose(chosen, [1, 0.75, 0.5, 0.25, 0], atol=0.12)
    assert chosen[0] == 1
    assert chosen[-1] == 0
    assert [cases.rank(case) for case in cases.chosen()][::4] == [1, 301]


def test_few_cases_are_all_shown():
    cases = Cases(6)
    assert cases.chosen() == []
    for value in (0.2, 0.9):
        cases.add(Case("x", value, 0.0, SCAN))
    assert [case.aupr for case in cases.chosen()] == [0.9, 0.2]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slice_with_the_most_of_the_lesion_is_kept_alone(axis):
    rng = np.random.default_rng(0)
    image, label = rng.random((4, 5, 6)), np.zeros((4, 5, 6), bool)
    label[1, 2, 3] = label[2, 2, 3] = label[1, 3, 3] = label[1, 2, 4] = True
    index = int(label.sum(tuple(i for i in range(3) if i != axis)).argmax())
    one = single_slice(Scan.of(image, image, label=label, axis=axis))
    assert one.image.shape[axis] == 1
    np.testing.assert_array_equal(np.take(one.image, 0, axis), np.take(image, index, axis))
    assert one.mask is None
    assert one.image.base is None  # the volume can go
