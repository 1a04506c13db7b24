"""Weighted counts against resampled pixels, and intervals against scipy's bootstrap."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from monai_dpmm.metrics.bootstrap import (
    ImageHistograms,
    drawn_counts,
    group_numbers,
    interval,
    pixel_statistics,
    ranking_statistics,
    ratio_statistics,
)
from monai_dpmm.metrics.score_histogram import ScoreHistogram
from monai_dpmm.transforms.regions import connected_regions


def image(seed, shape=(40, 40), draw=torch.randn):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(shape, dtype=torch.bool)
    if seed % 4:
        labels[5:12, 3 : 6 + seed % 7] = labels[20:22, 20:22] = True
    scores = draw(shape, generator=generator) + (1 + seed % 3) * labels
    return scores, labels, connected_regions(labels)


def narrow(shape, generator):
    return 0.1 + 0.02 * torch.rand(shape, generator=generator)


def heavy(shape, generator):
    return torch.exp(6 * torch.randn(shape, generator=generator))


def counted(images, max_bins=2**18):
    histogram = ScoreHistogram(max_bins)
    for scores, labels, regions in images:
        own = ScoreHistogram(max_bins)
        own.update(scores, labels, regions)
        histogram.merge(own)
    return histogram


def kept(images, max_bins=4096):
    histograms = ImageHistograms(max_bins)
    for one in images:
        histograms.add(counted([one]))
    return histograms


@pytest.mark.parametrize("draw", [torch.randn, narrow, heavy])
def test_weighted_counts_are_the_resampled_pixels(draw):
    images = [image(seed, draw=draw) for seed in range(9)]
    histograms = kept(images)
    assert histograms.ignored_bits > 0
    weights = drawn_counts(9, 5, seed=1)
    found = pixel_statistics(histograms.images, histograms.ignored_bits, weights)
    for number, row in enumerate(weights.int().tolist()):
        pool = counted([one for one, times in zip(images, row, strict=True) for _ in range(times)])
        expected = [pool.auroc(), pool.aupr(), pool.aupro(), pool.best_dice()]
        for name, value in zip(("auroc", "aupr", "aupro", "best_dice"), expected, strict=True):
            assert float(found[name][number]) == pytest.approx(value[0], abs=1e-3), name


def test_with_as_many_bins_as_scores_they_are_exact():
    images = [image(seed, (8, 25)) for seed in range(4)]
    histograms = kept(images, 1000)
    assert histograms.ignored_bits == 0
    weights = torch.tensor([[1.0, 2, 0, 1], [1, 1, 1, 1]])
    found = pixel_statistics(histograms.images, 0, weights, max_bins=1000)
    for number, row in enumerate(weights.int().tolist()):
        drawn = [one for one, times in zip(images, row, strict=True) for _ in range(times)]
        scores, labels = (torch.cat([one[i].flatten() for one in drawn]) for i in range(2))
        assert float(found["auroc"][number]) == pytest.approx(roc_auc_score(labels, scores))
        expected = average_precision_score(labels, scores)
        assert float(found["aupr"][number]) == pytest.approx(expected, abs=1e-6)


def test_what_is_kept_does_not_depend_on_order_or_processes():
    images = [image(seed, draw=heavy) for seed in range(6)]
    whole, back = kept(images, 200), kept(images[::-1], 200)
    assert whole.ignored_bits == back.ignored_bits
    assert all(map(torch.equal, whole.images, back.images[::-1]))
    assert max(map(len, whole.images)) <= 200
    parts = [kept(images[i::2], 200) for i in range(2)]
    bits = max(part.ignored_bits for part in parts)
    together = [parts[i % 2].images[i // 2] for i in range(6)]
    weights = drawn_counts(6, 3)
    one = pixel_statistics(whole.images, whole.ignored_bits, weights, max_bins=200)
    other = pixel_statistics(together, bits, weights, max_bins=200)
    for name, values in one.items():
        assert torch.equal(values, other[name])


def test_image_level_curves_of_a_resample():
    scores = torch.tensor([0.3, 0.1, 0.3, 0.8, 0.5])
    labels = torch.tensor([False, False, True, True, False])
    weights = torch.tensor([[1.0, 1, 1, 1, 1], [0, 2, 1, 1, 2], [3, 2, 0, 0, 1]])
    found = ranking_statistics(scores, labels, weights)
    for number in range(2):
        repeats = weights[number].int()
        drawn = labels.repeat_interleave(repeats), scores.repeat_interleave(repeats)
        assert found["auroc"][number] == pytest.approx(roc_auc_score(*drawn))
        assert found["aupr"][number] == pytest.approx(average_precision_score(*drawn))
    assert found["auroc"][2].isnan()  # drew no anomalous image
    assert found["aupr"][2].isnan()


def test_ratios_of_what_adds_up():
    parts = torch.tensor([[[1, 2], [0, 0]], [[3, 4], [1, 1]], [[0, 6], [0, 0]]])
    weights = torch.tensor([[1.0, 1, 1], [2, 0, 1]])
    found = ratio_statistics(parts, weights)
    assert found[:, 0].tolist() == pytest.approx([4 / 12, 2 / 10])
    assert found[0, 1] == 1
    assert found[1, 1].isnan()


def test_every_resample_draws_as_many_and_each_group_once_on_average():
    counts = drawn_counts(30, 4000, seed=3)
    assert (counts.sum(1) == 30).all()
    assert counts.mean(0) == pytest.approx(torch.ones(30), abs=0.1)
    assert counts.var() == pytest.approx(1 - 1 / 30, abs=0.03)  # binomial
    assert torch.equal(counts, drawn_counts(30, 4000, seed=3))
    assert not torch.equal(counts, drawn_counts(30, 4000, seed=4))


def test_the_interval_is_scipys():
    values = torch.randn(60, generator=torch.Generator().manual_seed(0)).double().exp()
    parts = torch.stack([values, torch.ones(60)], dim=1)[:, None]
    found = interval(ratio_statistics(parts, drawn_counts(60, 20_000))[:, 0])
    expected = scipy.stats.bootstrap(
        (values.numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    assert found == pytest.approx(tuple(expected), abs=0.02)


def test_undefined_resamples_are_left_out_of_the_interval():
    assert interval(torch.tensor([math.nan, 1, 2, math.nan, 3]), 0.5) == (1.5, 2.5)
    assert all(map(math.isnan, interval(torch.tensor([math.nan, math.nan]))))


def test_groups_are_numbered_in_order_of_appearance():
    assert group_numbers(["b", "a", "b", 3]).tolist() == [0, 1, 0, 2]
