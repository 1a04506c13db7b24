"""PaDiM by hand and against NumPy's covariances."""

import math

import numpy as np
import pytest
import torch

from monai_dpmm.study.models import padim as module
from monai_dpmm.study.models.padim import PaDiM


def fitted(slices, **options):
    model = PaDiM(slices.shape[3], tuple(slices.shape[1:3]), **options)
    model.fit(list(slices))
    return model


def healthy(slices=20, grid=(2, 3), features=5, seed=0):
    x = torch.randn(slices, *grid, features, generator=torch.Generator().manual_seed(seed))
    return x * torch.arange(1, features + 1) + 3


def test_by_hand():
    # one place, patches (1, 2), (3, 2), (1, 4), (3, 4): mean (2, 3), covariance 4/3 I, mean square
    # (1 + 9 + 1 + 9 + 4 + 4 + 16 + 16) / 8 = 7.5, so 4/3 + 0.1 * 7.5 = 25/12 on the diagonal
    slices = torch.tensor([[1.0, 2], [3, 2], [1, 4], [3, 4]])[:, None, None]
    model = fitted(slices, regularization=0.1)
    torch.testing.assert_close(model.means, torch.tensor([[2.0, 3]]))
    expected = torch.tensor([0, 1, 5]) / math.sqrt(25 / 12)
    x = torch.tensor([[2.0, 3], [2, 4], [5, 7]])[:, None, None]
    torch.testing.assert_close(model.score(x), expected[:, None, None])


def test_distances_are_those_of_each_places_covariance(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 7)
    slices, x = healthy(), healthy(4, seed=1)
    scores = fitted(slices, selected=3, regularization=0.01, seed=5).score(x)
    chosen = PaDiM(5, (2, 3), selected=3, seed=5).chosen
    ridge = 0.01 * slices[..., chosen].square().mean().item()
    for i, j in np.ndindex(2, 3):
        there = slices[:, i, j, chosen].double().numpy()
        precision = np.linalg.inv(np.cov(there.T) + ridge * np.eye(3))
        offset = x[:, i, j, chosen].double().numpy() - there.mean(0)
        expected = np.sqrt(np.einsum("sa,ab,sb->s", offset, precision, offset))
        np.testing.assert_allclose(scores[:, i, j], expected, rtol=1e-4)


def test_features_are_selected_by_seed():
    first, again, other = (PaDiM(50, (1, 1), selected=10, seed=s).chosen for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) == 10
    assert len(PaDiM(5, (1, 1)).chosen) == 5


def test_a_scale_changes_no_score():
    slices, x = healthy(), healthy(3, seed=1)
    torch.testing.assert_close(fitted(100 * slices).score(100 * x), fitted(slices).score(x))


def test_background_is_left_out_and_scores_0():
    slices = healthy(12)
    slices[::3, 0, 1] = 0
    x = healthy(3, seed=1)
    scores = fitted(slices).score(x)
    only = slices[slices[:, 0, 1].any(1)][:, :1, 1:2]
    model = PaDiM(5, (1, 1), regularization=0.01 * float(_mean_square(slices) / _mean_square(only)))
    model.fit(list(only))
    torch.testing.assert_close(scores[:, :1, 1:2], model.score(x[:, :1, 1:2]))
    x[1, 0, 0] = 0
    assert fitted(slices).score(x)[1, 0, 0] == 0


def _mean_square(slices):
    return slices[slices.any(-1)].square().mean()


def test_a_place_that_no_slice_covers_takes_the_gaussian_of_all_patches():
    slices = healthy(30)
    slices[:, 1, 2] = 0
    model = fitted(slices)
    patches = slices[slices.any(-1)].double().numpy()
    ridge = 0.01 * (patches**2).mean()
    covariance = model.factors[5] @ model.factors[5].T
    np.testing.assert_allclose(model.means[5], patches.mean(0), rtol=1e-5)
    expected = np.cov(patches.T) + ridge * np.eye(5)
    np.testing.assert_allclose(covariance, expected, rtol=1e-4, atol=1e-4)


def test_its_state_gives_the_same_scores():
    model, x = fitted(healthy(), selected=3), healthy(2, seed=1)
    other = PaDiM(5, (2, 3), selected=3, seed=9)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.score(x), model.score(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features must be at least 1, got 0"),
        ({"grid": (0, 2)}, "grid must be at least 1, got 0"),
        ({"selected": 0}, "selected must be at least 1, got 0"),
        ({"regularization": 0}, "regularization must be positive, got 0"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        PaDiM(**{"features": 4, "grid": (2, 2)} | options)


def test_wrong_slices():
    model = PaDiM(5, (2, 3))
    with pytest.raises(RuntimeError, match="not fitted"):
        model.score(healthy(1))
    with pytest.raises(ValueError, match=r"slices must be of shape \(2, 3, 5\), got \(3, 2, 5\)"):
        model.fit(list(healthy(grid=(3, 2))))
    with pytest.raises(ValueError, match="at least 2 patches, all finite, got 0"):
        model.fit([torch.zeros(2, 3, 5)])
    with pytest.raises(ValueError, match="at least 2 patches, all finite"):
        model.fit([torch.full((2, 3, 5), torch.nan)])
