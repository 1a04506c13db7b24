import numpy as np

from monai_dpmm.study.figures.prototype_colors import _from_oklab, prototype_colors


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
