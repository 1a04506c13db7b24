import json

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from sklearn.metrics import precision_recall_curve, roc_curve

from monai_dpmm.metrics.froc import Froc
from monai_dpmm.metrics.score_histogram import ScoreHistogram
from monai_dpmm.study.figures.scores import (
    OperatingPoint,
    curve_figure,
    score_figure,
    tradeoff_figure,
)

POINTS = [
    OperatingPoint("1 % of healthy patches", 2.3, 4.0, 0.5),
    OperatingPoint("5 % of healthy patches", 1.6, 30.0, 0.75),
    OperatingPoint("mask", 2.25),
]


@pytest.fixture(scope="module")
def pixels():
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(20_000, generator=generator) < 0.05
    scores = torch.randn(20_000, generator=generator) + 2 * labels
    return scores, labels


@pytest.fixture
def pool(pixels):
    histogram = ScoreHistogram()
    histogram.update(*pixels)
    return histogram


def _line(axes, label):
    return next(line for line in axes.lines if line.get_label().startswith(label))


def test_curves_lie_on_those_of_scikit_learn(pool, pixels):
    scores, labels = (x.numpy() for x in pixels)
    roc, pr = curve_figure(pool, POINTS).axes
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(labels, scores)
    for line, exact in (
        (_line(roc, "AUROC"), (fpr, tpr)),
        (_line(pr, "AUPR"), (recall, precision)),
    ):
        drawn, exact = np.transpose(line.get_data()), np.transpose(exact)
        assert cKDTree(exact).query(drawn)[0].max() < 1e-6  # on the curve
        assert cKDTree(drawn).query(exact)[0].max() < 2e-3  # all along it
        assert len(drawn) < 8000


def test_operating_points_are_those_of_the_thresholds(pool, pixels):
    scores, labels = pixels
    roc, pr = curve_figure(pool, POINTS).axes
    for point in POINTS:
        found = scores > point.threshold
        sensitivity = float(found[labels].float().mean())
        x, y = _line(roc, point.name).get_data()
        assert (x[0], y[0]) == pytest.approx((float(found[~labels].float().mean()), sensitivity))
        x, y = _line(pr, point.name).get_data()
        assert (x[0], y[0]) == pytest.approx((sensitivity, float(labels[found].float().mean())))
    assert roc.get_xscale() == "log"
    assert roc.get_xlim()[0] < 0.01


def test_a_froc_curve_is_that_of_the_thresholds(pool):
    false = torch.tensor([0.0, 0.2, 3.0, 40.0], dtype=torch.float64)
    curve = Froc(torch.tensor([9.0, 8.0, 7.0, 6.0]), false, torch.tensor([0.25, 0.5, 0.75, 0.875]))
    *_, axes = curve_figure(pool, POINTS, curve).axes
    x, y = axes.lines[0].get_data()
    low, high = axes.get_xlim()
    assert axes.get_xscale() == "log"
    assert (low, high) == (x[0], x[-1])
    np.testing.assert_allclose(y, [0.25, 0.5, 0.75, 0.875, 0.875])  # 0.25 needs no false finding
    np.testing.assert_allclose(x[1:-1], [0.2, 3, 40], rtol=1e-6)
    for point in POINTS[:2]:
        found = _line(axes, point.name).get_data()
        assert (found[0][0], found[1][0]) == (point.false_findings, point.sensitivity)
        assert low < point.false_findings < high


def test_a_threshold_above_all_scores_has_no_precision(pool):
    _, pr = curve_figure(pool, [OperatingPoint("0.1 %", 1e3)]).axes
    assert not [line for line in pr.lines if line.get_label().startswith("0.1 %")]


def test_histograms_have_area_one_and_show_the_thresholds(pool, pixels):
    (axes,) = score_figure(pool, POINTS).axes
    for steps in axes.patches:
        heights, edges, _ = steps.get_data()
        assert (heights * np.diff(edges)).sum() == pytest.approx(1)
    assert [line.get_xdata()[0] for line in axes.lines] == [1.6, 2.25, 2.3]
    names = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert {"1 %", "5 %", "mask"} <= set(names)
    assert names["1 %"] != names["mask"]  # side by side they would be one on the other
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        f"healthy ({int((~pixels[1]).sum()):,} pixels)",
        f"lesions ({int(pixels[1].sum()):,} pixels)",
    ]


def test_background_is_left_out_and_said_so(pixels):
    scores, labels = pixels
    background = torch.zeros(30_000)
    pool = ScoreHistogram()
    pool.update(torch.cat([scores.abs() + 0.1, background]), torch.cat([labels, background > 0]))
    (axes,) = score_figure(pool, POINTS).axes
    assert axes.get_xlim()[0] > 0.09
    assert any("Left out: 61 % of the healthy pixels" in text.get_text() for text in axes.texts)


@pytest.mark.parametrize("figure", [curve_figure, score_figure])
def test_pixels_of_one_class_are_refused(figure):
    pool = ScoreHistogram()
    pool.update(torch.rand(9), torch.zeros(9, dtype=torch.bool))
    with pytest.raises(ValueError, match="pool must have healthy and anomalous pixels, got 9 and"):
        figure(pool, POINTS)


def _trial(label, auroc, milliseconds, seed=0):
    score = {"auroc": auroc, "aupr": auroc / 2, "milliseconds": milliseconds, "megabytes": 10.0}
    return {"label": label, "seed": seed, "prototypes": 5, "scores": {"cosine": score}}


def test_methods_are_drawn_at_their_means_with_their_ranges():
    trials = [_trial("DPMM", 0.9, 2.0), _trial("DPMM", 0.8, 4.0, 1), _trial("bank", 0.7, 50.0)]
    auroc, memory, *_ = tradeoff_figure(json.loads(json.dumps(trials))).axes
    x, y = _line(auroc, "DPMM").get_data()
    assert (x[0], y[0]) == pytest.approx((3.0, 85.0))
    ranges = [line.get_ydata() for line in auroc.lines if len(line.get_ydata()) == 2]
    assert ranges[0] == pytest.approx((80, 90))
    front = auroc.lines[-1].get_data()
    assert np.shape(front) == (2, 1)  # the bank is worse and slower
    assert _line(memory, "bank").get_xdata()[0] == 10


def test_the_front_joins_what_no_other_beats():
    trials = [_trial("a", 0.7, 1.0), _trial("b", 0.6, 2.0), _trial("c", 0.9, 3.0)]
    front = tradeoff_figure(trials).axes[0].lines[-1]
    np.testing.assert_allclose(front.get_data(), ([1.0, 3.0], [70, 90]))


def test_no_trials_are_refused():
    with pytest.raises(ValueError, match="trials must not be empty, got none"):
        tradeoff_figure([])
