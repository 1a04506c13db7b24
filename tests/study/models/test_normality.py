"""Baselines by hand, against scikit-learn, and behind one interface."""

import builtins
import math

import numpy as np
import pytest
import torch
from oracle import clustered
from sklearn.mixture import GaussianMixture

from monai_dpmm.study.models.bank import BankModel, KMeansModel
from monai_dpmm.study.models.mixture import FINITE, MixtureModel
from monai_dpmm.study.models.padim import PaDiM

# Two slices of 1 x 3 patches; the first has background.
SLICES = [
    torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]]),
    torch.tensor([[[-1.0, 0.0], [0.6, 0.8], [0.8, 0.6]]]),
]
TEST = torch.tensor([[[[0.0, -1.0], [0.0, 0.0], [0.0, 2.0]]]])


def grids(slices=24, grid=(3, 4), features=6, seed=0):
    """Healthy slices on the unit sphere, with some background."""
    x = clustered(slices * math.prod(grid), features, 5, seed=seed).view(slices, *grid, features)
    x = torch.nn.functional.normalize(x, dim=-1)
    x[::3, 0, 0] = 0
    return x


def test_a_full_bank_by_hand():
    model = BankModel(2)
    assert model.prototypes == 0
    model.fit(SLICES, SLICES)
    assert model.prototypes == 5
    torch.testing.assert_close(model.score(TEST, "cosine"), torch.tensor([[[1.0, 0.0, 0.0]]]))
    expected = torch.tensor([[[math.sqrt(2), 0.0, 1.0]]])
    torch.testing.assert_close(model.score(TEST, "euclidean"), expected)


def test_a_one_shot_bank_holds_the_patches_of_one_slice():
    sizes = set()
    for seed in range(8):
        model = BankModel(2, slices=1, seed=seed)
        model.fit(SLICES, SLICES)
        kept = model.module.prototypes
        assert any(torch.equal(kept, s[s.any(-1)]) for s in SLICES)
        sizes.add(model.prototypes)
    assert sizes == {2, 3}


def test_a_coreset_of_three_by_hand():
    for seed in range(5):
        model = BankModel(2, size=3, seed=seed)
        model.fit(SLICES, SLICES)
        kept = model.module.prototypes
        assert [-1, 0] in kept.tolist()  # farthest from all others, or the first
        assert model.prototypes == 3


def test_k_means_by_hand():
    patches = torch.tensor([[0.0, 0], [0, 2], [10, 0], [10, 2], [10, 1]])[None, None]
    model = KMeansModel(2, 2, seed=1)
    model.fit([patches[0] + 1], [])
    assert sorted(model.module.prototypes.tolist()) == [[1, 2], [11, 2]]
    assert model.prototypes == 2
    x = torch.tensor([[[[1.0, 5.0], [0.0, 0.0], [11.0, 1.0]]]])
    torch.testing.assert_close(model.score(x, "euclidean"), torch.tensor([[[3.0, 0.0, 1.0]]]))


def test_the_finite_mixture_is_scikit_learns():
    slices = grids()
    x = slices[slices.any(-1)]
    options = {"schedule": "none", "variance_floor": 1e-4, "components": 4, **FINITE}
    model = MixtureModel(6, options, epochs=1, batch_size=len(slices))
    model.module.initialize(x)
    start = {
        "means_init": model.module.means.numpy(),
        "precisions_init": 1 / (x.var(0, correction=0) + 1e-4).expand(4, 6).numpy(),
        "weights_init": np.full(4, 0.25),
    }
    theirs = GaussianMixture(4, covariance_type="diag", reg_covar=1e-4, max_iter=1, tol=0, **start)
    with pytest.warns(UserWarning, match="did not converge"):
        theirs.fit(x.double().numpy())
    model.fit(list(slices), list(slices))
    np.testing.assert_allclose(model.module.weights, theirs.weights_, atol=1e-6)
    np.testing.assert_allclose(model.module.means, theirs.means_, atol=1e-5)
    expected = theirs.score_samples(x.double().numpy())
    scores = model.score(slices, "mixture")[slices.any(-1)]
    np.testing.assert_allclose(-scores, expected, rtol=1e-4, atol=1e-4)
    assert float(model.module.concentration) == 1


def test_the_best_epoch_is_kept():
    slices = list(grids())
    other = list(grids(seed=9))
    likelihoods = []
    for epochs in (1, 2, 3, 4):
        model = MixtureModel(6, {"components": 8, "step_size": 0.9}, epochs=epochs, batch_size=2)
        model.fit(slices, other)
        likelihoods.append(model._log_likelihood(other))
    assert likelihoods == sorted(likelihoods)  # an epoch that is worse changes nothing


def test_a_mixture_has_one_score_for_background_and_it_is_the_lowest():
    slices = grids()
    model = MixtureModel(6, {"components": 4, "variance_floor": 1e-3}, epochs=2)
    model.fit(list(slices), list(slices))
    assert model.prototypes == int(model.module.num_surviving)
    for kind in ("cosine", "euclidean", "likelihood"):
        scores = model.score(slices, kind)
        background = ~slices.any(-1)
        assert scores.shape == slices.shape[:-1]
        assert len(scores[background].unique()) == 1
        assert scores[background][0] <= scores.min()


def test_padim_is_a_model_like_the_others():
    slices = grids(40)
    model = PaDiM(6, (3, 4), seed=3)
    assert model.prototypes == 0
    model.fit(list(slices), [])
    assert model.prototypes == 12
    assert model.module is model
    assert torch.equal(model.score(slices, "mahalanobis"), model.score(slices))
    with pytest.raises(ValueError, match="kind must be mahalanobis for PaDiM, got 'cosine'"):
        model.score(slices, "cosine")


def test_slices_of_background_only_score_as_background():
    model = BankModel(2)
    model.fit(SLICES, SLICES)
    assert not model.score(torch.zeros(2, 1, 3, 2), "cosine").any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BankModel(2, slices=0), "slices must be at least 1, got 0"),
        (lambda: BankModel(2, slices=3).fit(SLICES, SLICES), "at most the 2 healthy ones, got 3"),
        (lambda: MixtureModel(2, {}, epochs=0), "epochs must be at least 1, got 0"),
        (lambda: MixtureModel(2, {}, batch_size=0), "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_k_means_without_scikit_learn(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'monai-dpmm\[evaluation\]'"):
        KMeansModel(2, 2)
