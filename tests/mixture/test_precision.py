"""Precision cannot be lost from outside, by autocast or casts, and memory is bounded."""

import pytest
import torch
from oracle import clustered
from torch.backends import mkldnn

from monai_dpmm.mixture import scores as scores_module
from monai_dpmm.mixture.dpmm import DPMM

COVARIANCES = ["diagonal", "full", "spherical", "von_mises_fisher"]


def fitted(covariance="diagonal"):
    x = clustered(512, 16, 6)
    model = DPMM(16, 12, component_kind=covariance)
    model.initialize(x)
    for _ in range(5):
        model.step(x)
    return model, x


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_autocast_changes_nothing(covariance):
    model, x = fitted(covariance)
    expected, moments = model.log_prob(x), model.e_step(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.log_prob(x), expected)
        assert torch.equal(model.component_log_prob(x).exp(), model.component_log_prob(x).exp())
        for a, b in zip(model.e_step(x), moments, strict=True):
            assert torch.equal(a, b)
        assert model.score(x).dtype == torch.float32


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
@pytest.mark.parametrize("method", ["e_step", "log_prob", "component_log_prob", "score"])
def test_products_are_of_full_precision_whatever_the_program_allows(method, allowed, monkeypatch):
    model, x = fitted()
    product = torch.addmm if method != "score" else torch.nn.functional.normalize
    seen = []

    def noting(*args, **kwargs):
        seen.append((torch.backends.cuda.matmul.fp32_precision, mkldnn.matmul.fp32_precision))
        return product(*args, **kwargs)

    monkeypatch.setattr(torch, "addmm", noting)
    monkeypatch.setattr(torch.nn.functional, "normalize", noting)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(allowed)
        getattr(model, method)(x)
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen
    assert set(seen) == {("ieee", "ieee")}


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_below_float32_leaves_the_state_as_it_was(covariance, dtype):
    model, x = fitted(covariance)
    expected = model.log_prob(x)
    outer = torch.nn.Sequential(torch.nn.Linear(2, 2), model).to(dtype)
    assert outer[0].weight.dtype == dtype
    assert model.means.dtype == torch.float32
    assert torch.equal(model.log_prob(x), expected)
    assert torch.isfinite(model.step(x.to(dtype)))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_component_log_densities_are_chunked(covariance, monkeypatch):
    model, x = fitted(covariance)
    expected = model.component_log_prob(x)
    monkeypatch.setattr(scores_module, "_CHUNK", 100)
    torch.testing.assert_close(model.component_log_prob(x), expected)


def test_num_surviving_counts_the_survivors():
    model, _ = fitted()
    assert int(model.num_surviving) == int((model.weights > 1e-6).sum())
