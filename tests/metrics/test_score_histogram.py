"""The histogram's metrics against the exact curves of torchmetrics, and its laws."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from monai_dpmm.metrics.image_metrics import dice_score
from monai_dpmm.metrics.score_histogram import MAX_BINS, ScoreHistogram

PIXELS = 2**19


def counted(scores, labels, max_bins=MAX_BINS):
    histogram = ScoreHistogram(max_bins)
    histogram.update(scores, labels)
    return histogram


def exact(scores, labels):
    """AUROC and AUPR by torchmetrics, of ranks: it squashes scores outside [0, 1]."""
    ranks = scores.unique(return_inverse=True)[1].double() / len(scores)
    curves = binary_auroc, binary_average_precision
    return [float(curve(ranks, labels.long(), validate_args=False)) for curve in curves]


def normal(noise, labels, _):
    return noise + 2 * labels


def weak(noise, labels, _):
    return noise + 0.5 * labels


def narrow(noise, labels, _):
    return 0.10 + 0.02 * torch.sigmoid(noise + 1.5 * labels)


def narrower(noise, labels, _):
    return 0.11 + 1e-4 * torch.sigmoid(noise + 1.5 * labels)


def cosine(noise, labels, _):
    return 0.05 + 0.5 * torch.sigmoid(noise - 2 + 2.5 * labels)


def likelihood(noise, labels, _):
    return -900 + 50 * torch.exp(0.5 * noise) + 40 * labels


def log_normal(noise, labels, _):
    return torch.exp(3 * noise + 3 * labels)


def cauchy(_, labels, unit):
    return torch.tan(math.pi * (unit - 0.5)) + 3 * labels


def sixty_decades(_, labels, unit):
    return torch.exp(138 * (unit - 0.5) + 12 * labels)


def levels(noise, labels, _):
    return ((noise + 2 * labels) * 20 + 100).round().clamp(0, 255)


def half_of_zeros(noise, labels, unit):
    return (noise + 2 * labels).abs() * (unit > 0.5 - 0.4 * labels)


def equal(noise, *_):
    return torch.full_like(noise, 0.3)


def separated(_, labels, unit):
    return 0.5 * unit + 0.5 * labels


def inverted(_, labels, unit):
    return -0.5 * unit - 0.5 * labels


CASES = [normal, weak, narrow, narrower, cosine, likelihood, log_normal, cauchy, sixty_decades]
CASES += [levels, half_of_zeros, equal, separated, inverted]


def pixels(case, rate, count=PIXELS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(count, generator=generator) < rate
    noise, unit = torch.randn(count, generator=generator), torch.rand(count, generator=generator)
    return case(noise, labels.float(), unit), labels


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 0.001])
@pytest.mark.parametrize("case", CASES)
def test_it_is_within_1e_4_of_torchmetrics(case, rate):
    scores, labels = pixels(case, rate)
    histogram = counted(scores, labels)
    assert len(histogram.bins) <= MAX_BINS
    found = histogram.auroc(), histogram.aupr()
    for estimate, expected in zip(found, exact(scores, labels), strict=True):
        assert estimate.value == pytest.approx(expected, abs=1e-5)
        assert estimate.error < 1e-4
        assert abs(estimate.value - expected) <= estimate.error + 2e-6  # torchmetrics' rounding


@pytest.mark.parametrize("max_bins", [2, 3, 5, 60, 1000])
@pytest.mark.parametrize("case", CASES)
def test_the_error_bounds_the_difference_however_coarse_the_bins(case, max_bins):
    scores, labels = pixels(case, 0.1, 3000, seed=1)
    histogram = counted(scores, labels, max_bins)
    assert len(histogram.bins) <= max_bins
    auroc, aupr = histogram.auroc(), histogram.aupr()
    assert abs(auroc.value - roc_auc_score(labels, scores)) <= auroc.error + 1e-12
    assert abs(aupr.value - average_precision_score(labels, scores)) <= aupr.error + 1e-12


def test_scores_that_waste_the_bins_are_told_by_the_error():
    def wasteful(noise, labels, unit):
        tiny = torch.exp(-70 * (2 * unit - 1))
        return torch.where(unit > 0.5, 0.05 * tiny, narrow(noise, labels, unit))

    scores, labels = pixels(wasteful, 0.01)
    histogram = counted(scores, labels, 2**14)
    found = histogram.auroc(), histogram.aupr()
    for estimate, expected in zip(found, exact(scores, labels), strict=True):
        assert abs(estimate.value - expected) < estimate.error
        assert estimate.error > 1e-4


def test_it_is_exact_up_to_as_many_scores_as_bins():
    scores, labels = pixels(normal, 0.2, 1000)
    for max_bins in (1000, None):
        histogram = counted(scores, labels, max_bins)
        assert histogram.auroc() == (pytest.approx(roc_auc_score(labels, scores), abs=1e-12), 0)
        expected = average_precision_score(labels, scores)
        assert histogram.aupr() == (pytest.approx(expected, abs=1e-12), 0)


def test_signs_zeros_and_denormals_are_in_order():
    scores = torch.tensor([-3e38, -2.0, -1e-45, -0.0, 0.0, 1e-45, 1e-38, 7.0, 3e38])
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1]).bool()
    histogram = counted(scores, labels)
    assert histogram.bins[:, 2:4].tolist() == [[1, 0]] * 3 + [[1, 1]] + [[0, 1]] * 4
    assert histogram.auroc().value == pytest.approx(roc_auc_score(labels, scores))


def runs_of(labels):
    """Runs of anomalous pixels as regions, numbered from 1."""
    starts = labels & ~torch.cat([labels.new_zeros(1), labels[:-1]])
    return starts.cumsum(0) * labels


def exact_aupro(scores, regions, limit=0.3):
    """From the definition: every score a threshold, the curve straight between them."""
    scores, regions = scores.double().numpy(), regions.numpy()
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    sizes = np.bincount(regions)
    share = np.where(regions > 0, 1 / sizes[regions] / (len(sizes) - 1), 0)
    rates = np.append(0, np.cumsum(regions[order] == 0)[last] / sizes[0])
    overlap = np.append(0, np.cumsum(share[order])[last])
    ends = np.append(rates[rates < limit], limit)
    heights = np.append(overlap[rates < limit], overlap_at(limit, rates, overlap))
    return float(np.trapezoid(heights, ends)) / limit


def overlap_at(limit, rates, overlap):
    after = int(np.argmax(rates >= limit))
    part = (limit - rates[after - 1]) / (rates[after] - rates[after - 1])
    return overlap[after - 1] + part * (overlap[after] - overlap[after - 1])


def test_the_oracle_of_aupro_on_a_case_worked_by_hand():
    """Regions of one and of two pixels: overlap 1/2 at no alarm, 3/4 at a rate of 1/4, then all."""
    scores = torch.tensor([9.0, 5, 7, 6, 2, 1, 0])
    regions = torch.tensor([1, 0, 0, 2, 2, 0, 0])
    # by score: region 1; healthy; region 2, half; healthy; region 2, whole; two healthy
    area = 0.25 * 0.5 + 0.05 * 0.75
    assert exact_aupro(scores, regions) == pytest.approx(area / 0.3)
    histogram = ScoreHistogram()
    histogram.update(scores, regions > 0, regions)
    assert histogram.aupro() == (pytest.approx(area / 0.3), 0)
    assert histogram.aupro(1.0).value == pytest.approx(0.125 + 0.1875 + 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 0.001])
@pytest.mark.parametrize("case", CASES)
def test_aupro_is_within_1e_4_of_exact(case, rate):
    scores, labels = pixels(case, rate)
    histogram = ScoreHistogram()
    histogram.update(scores, labels, runs_of(labels))
    estimate = histogram.aupro()
    assert estimate.error < 1e-4
    assert estimate.value == pytest.approx(exact_aupro(scores, runs_of(labels)), abs=1e-5)


@pytest.mark.parametrize("max_bins", [2, 5, 60, 1000])
@pytest.mark.parametrize("case", CASES)
def test_the_error_bounds_aupro_however_coarse_the_bins(case, max_bins):
    scores, labels = pixels(case, 0.1, 3000, seed=1)
    histogram = ScoreHistogram(max_bins)
    histogram.update(scores, labels, runs_of(labels))
    value, error = histogram.aupro()
    assert abs(value - exact_aupro(scores, runs_of(labels))) <= error + 1e-10


@pytest.mark.parametrize("max_bins", [50, 3000, None])
def test_regions_of_images_add_up_in_any_order(max_bins):
    """Each image counts its own regions, numbered from 1."""
    total, back = ScoreHistogram(max_bins), ScoreHistogram(max_bins)
    images = [pixels(case, 0.05, 5000, seed=i) for i, case in enumerate((normal, cosine, levels))]
    for some, of in ((total, images), (back, images[::-1])):
        for scores, labels in of:
            own = ScoreHistogram(max_bins)
            own.update(scores, labels, runs_of(labels))
            some.merge(own)
    assert torch.equal(total.bins, back.bins)
    offsets = np.cumsum([0, *(int(runs_of(labels).max()) for _, labels in images)])
    regions = [
        torch.where(labels, runs_of(labels) + int(offset), 0)
        for (_, labels), offset in zip(images, offsets, strict=False)
    ]
    expected = exact_aupro(torch.cat([scores for scores, _ in images]), torch.cat(regions))
    value, error = total.aupro()
    assert value == pytest.approx(expected, abs=error + 1e-9)


def test_large_and_small_regions_count_the_same():
    regions = torch.ones(3_000_001, dtype=torch.int64)
    regions[-1] = 2
    histogram = ScoreHistogram()
    histogram.update(torch.zeros(3_000_001), regions > 0, regions)
    assert int(histogram.bins[0, 4]) == pytest.approx(2 * 2**40, rel=1e-5)


def test_coarse_bins_hold_the_same_pixels():
    scores, labels = pixels(normal, 0.1, 3000)
    histogram = counted(scores, labels)
    coarse = histogram.coarse(16)
    assert len(coarse) < len(histogram.bins) / 2
    assert torch.equal(coarse[:, 2:].sum(0), histogram.bins[:, 2:].sum(0))
    assert torch.equal(histogram.coarse(0), histogram.bins)
    assert histogram.ignored_bits == 0
    assert counted(scores, labels, 50).ignored_bits > 16


@pytest.mark.parametrize("max_bins", [50, 3000, None])
def test_the_sum_does_not_depend_on_order_parts_and_who_adds(max_bins):
    scores, labels = pixels(log_normal, 0.05, 20_000)
    whole = counted(scores, labels, max_bins)
    shuffled = torch.randperm(20_000, generator=torch.Generator().manual_seed(2))
    total = ScoreHistogram(max_bins)
    for part in shuffled.tensor_split([1, 40, 41, 9000, 9000]):
        total.merge(counted(scores[part], labels[part], max_bins))
    other_way = counted(scores[shuffled[:7000]], labels[shuffled[:7000]], max_bins)
    other_way.merge(counted(scores[shuffled[7000:]], labels[shuffled[7000:]], max_bins))
    pieces = ScoreHistogram(max_bins)
    for some, of_them in zip(scores.split(999), labels.split(999), strict=True):
        pieces.update(some, of_them)
    for histogram in (total, other_way, pieces):
        assert torch.equal(histogram.bins, whole.bins)
        assert histogram.aupr() == whole.aupr()


def test_many_small_updates_keep_within_the_memory():
    histogram = ScoreHistogram(1000)
    for seed in range(30):
        histogram.update(*pixels(cauchy, 0.01, 40_000, seed=seed))
        assert sum(map(len, histogram._pending)) <= 2**19
    assert len(histogram.bins) <= 1000
    assert int(histogram.bins[:, 2:].sum()) == 30 * 40_000


def test_merging_leaves_the_other_as_it_was():
    one, other = (counted(*pixels(normal, 0.1, 500, seed=seed), 100) for seed in (0, 1))
    before = copy.deepcopy(other.bins)
    one.merge(other)
    one.update(*pixels(cauchy, 0.1, 500))
    assert torch.equal(other.bins, before)
    assert int(other.bins[:, 2:].sum()) == 500


@pytest.mark.parametrize("case", [normal, levels, log_normal, half_of_zeros, separated])
def test_best_dice_is_that_of_its_threshold_and_of_no_other_exceeded(case):
    scores, labels = pixels(case, 0.05, 3000)
    exact_best = max(dice_score(scores >= score, labels) for score in scores.unique())
    for max_bins in (None, 300):
        best = counted(scores, labels, max_bins).best_dice()
        assert best.value == pytest.approx(dice_score(scores > best.threshold, labels), abs=1e-6)
        assert best.value <= exact_best + 1e-6
    assert counted(scores, labels).best_dice().value == pytest.approx(exact_best, abs=1e-6)


def test_best_dice_may_take_all_pixels():
    scores = torch.tensor([-1.0, -1.0, -2.0])
    best = counted(scores, torch.ones(3, dtype=torch.bool)).best_dice()
    assert best.value == 1
    assert (scores > best.threshold).all()


def test_one_class_has_no_curve():
    for labels in (torch.zeros(5).bool(), torch.ones(5).bool()):
        histogram = counted(torch.rand(5), labels)
        curves = (*histogram.auroc(), *histogram.aupr())
        assert all(map(math.isnan, curves))
    for histogram in (ScoreHistogram(), counted(torch.rand(5), torch.zeros(5).bool())):
        assert all(map(math.isnan, (*histogram.auroc(), *histogram.best_dice())))


@pytest.mark.parametrize(
    ("scores", "named"),
    [
        (torch.tensor([0.1, math.nan]), "1 NaN and 0 infinite ones of 2"),
        (torch.tensor([math.inf, -math.inf]), "0 NaN and 2 infinite ones of 2"),
        (torch.tensor([1e300, 0], dtype=torch.float64), "0 NaN and 1 infinite ones of 2"),
    ],
)
def test_scores_must_be_finite(scores, named):
    histogram = ScoreHistogram()
    with pytest.raises(ValueError, match=f"scores must be finite, got {named}"):
        histogram.update(scores, torch.zeros(2).bool())
    assert len(histogram.bins) == 0


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"the scores' shape \(2, 3\), got \(3, 2\)"):
        ScoreHistogram().update(torch.rand(2, 3), torch.zeros(3, 2).bool())
    with pytest.raises(ValueError, match=r"regions must have the scores' shape \(2,\), got \(3,\)"):
        ScoreHistogram().update(torch.rand(2), torch.zeros(2).bool(), torch.zeros(3))
    with pytest.raises(ValueError, match=r"limit must lie in \(0, 1\], got 0"):
        ScoreHistogram().aupro(0)
    with pytest.raises(ValueError, match="max_bins must be at least 2, got 1"):
        ScoreHistogram(1)
    with pytest.raises(ValueError, match="max_bins of merged histograms must agree, got 7 and 8"):
        ScoreHistogram(7).merge(ScoreHistogram(8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pixels_on_a_gpu_give_the_same_bins():
    scores, labels = pixels(cauchy, 0.01)
    assert torch.equal(counted(scores.cuda(), labels.cuda()).bins, counted(scores, labels).bins)
