import copy

import numpy as np
import pytest
from fitted_mixtures import batches, fitted

from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.report.prototype_colors import (
    _from_oklab,
    colors_of,
    prototype_colors,
    read_colors,
    written_colors,
)


def _means(count=40, features=6):
    return np.random.default_rng(0).normal(size=(count, features)) * [5, 3, 2, 1, 1, 1]


def test_colours_are_colours_and_do_not_depend_on_the_order():
    means, weights = _means(), np.linspace(1, 2, 40)
    colors = prototype_colors(means, weights)
    assert colors.shape == (40, 3)
    assert colors.min() >= 0
    assert colors.max() <= 1
    assert len(np.unique(colors.round(6), axis=0)) == 40
    turned = prototype_colors(means[::-1], weights[::-1])
    np.testing.assert_allclose(turned[::-1], colors, atol=1e-8)


def test_lightness_follows_the_first_principal_component():
    means = _means()
    luminance = prototype_colors(means, np.ones(40)) @ (0.2126, 0.7152, 0.0722)
    first = np.linalg.svd(means - means.mean(0))[2][0]
    ranks = [np.argsort(np.argsort(x)) for x in (means @ first, luminance)]
    assert abs(np.corrcoef(ranks)[0, 1]) > 0.85


def test_similar_prototypes_have_similar_colours():
    means = np.repeat(_means(8), 5, axis=0)
    means += np.random.default_rng(1).normal(size=means.shape) * 1e-3
    colors = prototype_colors(means, np.ones(40)).reshape(8, 5, 3)
    within = colors.std(axis=1).mean()
    assert within < 0.4 * colors.reshape(-1, 3).std(axis=0).mean()


def test_oklab_has_black_white_and_grey():
    lab = np.array([[0.0, 0, 0], [1, 0, 0], [0.5, 0, 0]])
    np.testing.assert_allclose(_from_oklab(lab)[:2], [[0, 0, 0], [1, 1, 1]], atol=1e-3)
    assert np.ptp(_from_oklab(lab)[2]) < 1e-3


def test_few_features_and_one_prototype_have_colours():
    assert prototype_colors(np.zeros((1, 4)), np.ones(1)).shape == (1, 3)
    assert prototype_colors(np.arange(6.0).reshape(3, 2), np.ones(3)).shape == (3, 3)


def test_a_colour_means_the_same_in_all_directions():
    (one, *_) = batches()
    first = fitted(one)
    apart, again = colors_of([first, copy.deepcopy(first)])
    assert len(apart) == len(again) == first.components
    same = np.abs(apart - again).sum(1)
    others = np.abs(apart[:, None] - again).sum(2).mean()
    assert same.mean() < others / 4


def test_a_direction_without_a_fit_has_no_colours():
    (one, *_) = batches()
    empty = DPMM(8, components=12)
    assert [len(colors) for colors in colors_of([empty, fitted(one)])] == [0, 12]
    assert [len(colors) for colors in colors_of([empty])] == [0]


def test_written_colours_read_back():
    colors = np.random.default_rng(0).random((7, 3))
    np.testing.assert_allclose(read_colors(written_colors(colors)), colors, atol=0.5 / 255)
    assert written_colors(np.array([[1.0, 0.5, 0.0]])) == "ff8000"
    assert read_colors("").shape == (0, 3)


@pytest.mark.parametrize("text", ["ff80", "ff8000,", "red", "ff8000  ff8000", "FF8000"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="colours must be written as"):
        read_colors(text)
