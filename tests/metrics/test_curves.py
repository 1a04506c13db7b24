"""Areas worked by hand, and the laws that resamples of a bootstrap rely on."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from monai_dpmm.metrics.curves import aupr, aupro, auroc, dices, from_the_top

CLEAR = torch.tensor([False] * 4)


def counts(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_sums_from_the_top():
    expected = [[6, 5, 3], [3, 2, 1]]
    assert from_the_top(torch.tensor([[1, 2, 3], [1, 1, 1]])).tolist() == expected


def test_aupro_worked_by_hand():
    """Ten healthy pixels; two regions, of one pixel and of four, which bins three and two reach."""
    healthy, coverage = counts(7, 2, 1, 0), counts(0.5, 0, 0.5, 1)
    # (0, 0.5) at the highest bin, then straight to (0.1, 0.75), (0.3, 0.75) and (1, 1)
    area = 0.1 * (0.5 + 0.75) / 2 + 0.2 * 0.75
    assert aupro(healthy, coverage, CLEAR, 0.3) == (pytest.approx(area / 0.3), 0)
    half_way = 0.1 * (0.5 + 0.75) / 2 + 0.1 * 0.75
    assert aupro(healthy, coverage, CLEAR, 0.2)[0] == pytest.approx(half_way / 0.2)
    within = 0.05 * (0.5 + 0.625) / 2
    assert aupro(healthy, coverage, CLEAR, 0.05)[0] == pytest.approx(within / 0.05)
    whole = area + 0.7 * (0.75 + 1) / 2
    assert aupro(healthy, coverage, CLEAR, 1.0)[0] == pytest.approx(whole)


def test_aupro_of_one_region_is_the_roc_curve_up_to_its_limit():
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randint(0, 9, (50,), generator=generator).double()
    anomalous = torch.randint(0, 9, (50,), generator=generator).double()
    mixed = torch.zeros(50, dtype=torch.bool)
    area = aupro(healthy, anomalous, mixed, 1.0)[0]
    assert area == pytest.approx(float(auroc(healthy, anomalous, mixed)[0]))
    scores = np.repeat(np.tile(np.arange(50), 2), torch.cat([healthy, anomalous]).int())
    labels = np.repeat([0, 1], [int(healthy.sum()), int(anomalous.sum())])
    assert area == pytest.approx(roc_auc_score(labels, scores))
    # scikit-learn's partial area is standardised (McClish): undo it
    least, most = 0.3**2 / 2, 0.3
    partial = (2 * roc_auc_score(labels, scores, max_fpr=0.3) - 1) * (most - least) + least
    assert aupro(healthy, anomalous, mixed, 0.3)[0] == pytest.approx(partial / 0.3)


def test_perfect_and_worst_maps():
    healthy, anomalous = counts(5, 5, 0, 0), counts(0, 0, 1, 2)
    for curve in (auroc, aupr, lambda *x: aupro(*x, 0.3)):
        assert curve(healthy, anomalous, CLEAR)[0] == 1
    assert auroc(healthy.flip(0), anomalous.flip(0), CLEAR)[0] == 0
    assert aupro(healthy.flip(0), anomalous.flip(0), CLEAR, 0.3)[0] == 0
    assert dices(healthy, anomalous).max() == 1


def test_rows_are_independent_and_counts_scale():
    generator = torch.Generator().manual_seed(1)
    healthy, anomalous = torch.randint(0, 5, (2, 6, 20), generator=generator).double()
    mixed = torch.rand(20, generator=generator) < 0.3
    for curve in (auroc, lambda *x: aupro(*x, 0.3)):
        together = curve(healthy, anomalous, mixed)
        for i in range(6):
            alone = curve(3 * healthy[i], 7 * anomalous[i], mixed)
            for a, b in zip(alone, together, strict=True):
                assert a == pytest.approx(float(b[i]))
    labels = np.repeat([0, 1], [int(healthy[0].sum()), int(anomalous[0].sum())])
    scores = np.repeat(np.tile(np.arange(20), 2), torch.cat([healthy[0], anomalous[0]]).int())
    clear = torch.zeros(20, dtype=torch.bool)
    expected = average_precision_score(labels, scores)
    assert aupr(healthy, anomalous, clear)[0][0] == pytest.approx(expected)


def test_the_error_bounds_any_order_within_a_bin():
    """Whether the pixels of a mixed bin rank well or badly, the area stays within the error."""
    healthy, coverage = counts(6, 4), counts(1, 3)
    value, error = aupro(healthy, coverage, torch.tensor([True, True]), 0.3)
    clear = torch.zeros(4, dtype=torch.bool)
    best = aupro(counts(6, 0, 4, 0), counts(0, 1, 0, 3), clear, 0.3)[0]
    worst = aupro(counts(0, 6, 0, 4), counts(1, 0, 3, 0), clear, 0.3)[0]
    assert value - error <= worst <= best <= value + error + 1e-12
    assert best == pytest.approx(float(value + error))


def test_what_is_not_defined_is_nan():
    none, some = counts(0, 0, 0, 0), counts(1, 0, 2, 0)
    for curve in (auroc, aupr, lambda *x: aupro(*x, 0.3)):
        for pair in ((none, some), (some, none), (none, none)):
            assert math.isnan(curve(*pair, CLEAR)[0])
    assert dices(none, none).isnan().all()
