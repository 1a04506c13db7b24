"""Scores and components of patches: against brute force, in one pass, traced."""

from typing import get_args

import pytest
import torch
from fitted_mixtures import D, K, batches, fitted, sigma_of
from oracle import clustered

from monai_dpmm.mixture import scores as scores_module
from monai_dpmm.mixture.scores import SCORES, ScoreKind

every_kind = pytest.mark.parametrize(
    "covariance", ["diagonal", "full", "spherical", "von_mises_fisher"]
)
every_covariance = pytest.mark.parametrize("covariance", ["diagonal", "full", "spherical"])
every_score = pytest.mark.parametrize("kind", SCORES)


def test_the_scores_that_type_checkers_know_are_those_there_are():
    assert get_args(ScoreKind) == tuple(SCORES)


def brute_force(model, x):
    """Distances to every surviving component, (N, survivors) float64, by kind."""
    x, keep = x.double(), model.surviving
    means, sigma = model.means[keep].double(), sigma_of(model)[keep].double()
    gaussians = torch.distributions.MultivariateNormal(means, sigma, validate_args=False)
    log_prob = gaussians.log_prob(x[:, None])
    offsets = x[:, None] - means
    solved = torch.linalg.solve(sigma, offsets[..., None])[..., 0]
    return {
        "cosine": 1 - torch.cosine_similarity(x[:, None], means, dim=2),
        "euclidean": offsets.norm(dim=2),
        "likelihood": -log_prob,
        "mahalanobis": (offsets * solved).sum(2).sqrt(),
        "mixture": -(log_prob + model.log_weights[keep]),
    }


@every_covariance
@every_score
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-3)])
def test_scores_are_those_of_brute_force(covariance, kind, dtype, tolerance):
    model = fitted(batches(dtype=dtype)[0], component_kind=covariance, weight_threshold=0.02)
    assert 2 < int(model.surviving.sum()) < K
    x = torch.cat([clustered(50, D, 9, dtype=dtype), clustered(50, D, 6, seed=5, dtype=dtype)])
    distances = brute_force(model, x)[kind]
    expected = -torch.logsumexp(-distances, 1) if kind == "mixture" else distances.min(1).values
    score = model.score(x, kind)
    torch.testing.assert_close(score.double(), expected, rtol=tolerance, atol=tolerance)
    index = model.assign(x, kind)
    assert index.dtype == torch.int64
    assert model.surviving[index].all()
    column = model.surviving.cumsum(0)[index] - 1
    own = distances.gather(1, column[:, None])[:, 0]
    torch.testing.assert_close(own, distances.min(1).values, rtol=tolerance, atol=tolerance)


@every_kind
@every_score
def test_score_and_component_are_those_of_one_pass(covariance, kind):
    x = batches()[0]
    model = fitted(x, component_kind=covariance)
    scores, index = model.nearest(x, kind)
    assert torch.equal(model.score(x, kind), scores)
    assert torch.equal(model.assign(x, kind), index)
    if kind == "mixture":
        torch.testing.assert_close(scores, -model.log_prob(x))
        assert torch.equal(index, model.responsibilities(x).argmax(1))


def test_no_score_lies_outside_its_range():
    x = batches()[0]
    model, far = fitted(x), torch.cat([x, -3 * x, 1e3 * x.flip(0)])
    for kind, score in SCORES.items():
        assert float(model.score(far, kind).min()) >= float(model.lowest_score(kind)) - 1e-9
        if score.value_range:
            low, high = score.value_range
            assert low == float(model.lowest_score(kind))
            assert float(model.score(far, kind).max()) <= high


def test_cosine_ignores_the_norm_of_a_patch():
    x = batches()[0]
    model = fitted(x)
    torch.testing.assert_close(model.score(17 * x), model.score(x))


def test_a_planted_anomaly_scores_highest():
    data = batches(dtype=torch.float32, spread=0.05)
    model = fitted(data[0], steps=50)
    x = data[1].clone()
    x[123] = torch.nn.functional.normalize(-x.mean(0), dim=0)
    for kind in SCORES:
        assert int(model.score(x, kind).argmax()) == 123, kind


class Score(torch.nn.Module):
    def __init__(self, model, kind):
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, x):
        return self.model.score(x, self.kind), self.model.assign(x, self.kind)


@every_score
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_traced_score_holds_for_any_number_of_patches(kind, monkeypatch):
    x = batches(dtype=torch.float32)[0]
    model = fitted(x)
    monkeypatch.setattr(scores_module, "_CHUNK", 64)
    traced = torch.jit.trace(Score(model, kind), x[:10])
    for n in (1, 10, 200):
        scores, index = traced(x[:n])
        torch.testing.assert_close(scores, model.score(x[:n], kind), rtol=1e-5, atol=1e-5)
        assert torch.equal(index, model.assign(x[:n], kind))


@every_score
def test_an_unknown_score_names_the_known_ones(kind):
    model = fitted(batches()[0])
    for method in (model.score, model.assign):
        with pytest.raises(ValueError, match=f"kind must be one of .*{kind}.*, got 'l1'"):
            method(torch.rand(4, D), "l1")
