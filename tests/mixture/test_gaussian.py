"""Covariances: densities against torch.distributions, moments against dense sums, rounding."""

import math

import pytest
import torch
from oracle import clustered
from torch.distributions import Independent, MultivariateNormal, Normal

from monai_dpmm.mixture.gaussian import DiagonalCovariance, FullCovariance, SphericalCovariance

FLOOR = 1e-6
KINDS = [DiagonalCovariance, FullCovariance, SphericalCovariance]
every_kind = pytest.mark.parametrize("kind", KINDS)


def random_covariance(kind, components=5, features=7):
    """A covariance in float64 with random parameters, and the (K, D, D) matrices it stands for."""
    covariance = kind(components, features, FLOOR).double()
    if kind is FullCovariance:
        root = torch.randn(components, features, features, dtype=torch.float64)
        sigma = root @ root.mT / features + 0.1 * torch.eye(features, dtype=torch.float64)
        covariance.cholesky.copy_(torch.linalg.cholesky(sigma))
        return covariance, sigma
    covariance.variance.uniform_(0.1, 2)
    variance = covariance.variance.reshape(components, -1).expand(-1, features)
    return covariance, torch.diag_embed(variance)


def filled(covariance, variance):
    """The covariance with the same variance everywhere."""
    covariance.reset(torch.full((covariance.second.shape[-1],), variance - covariance.floor))
    return covariance


@every_kind
def test_densities_are_those_of_torch_distributions(kind):
    covariance, sigma = random_covariance(kind)
    means = torch.randn(5, 7, dtype=torch.float64)
    x = 3 * torch.randn(40, 7, dtype=torch.float64)
    expected = MultivariateNormal(means, sigma).log_prob(x[:, None, :])
    got = covariance.density(means).log_prob(covariance.expand(x))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-11)


@every_kind
def test_densities_of_kept_components_are_their_columns(kind):
    covariance, _ = random_covariance(kind)
    means, x = torch.randn(5, 7, dtype=torch.float64), torch.randn(9, 7, dtype=torch.float64)
    keep = torch.tensor([True, False, True, True, False])
    phi = covariance.expand(x)
    every = covariance.density(means)
    some = covariance.density(means, keep)
    torch.testing.assert_close(some.log_prob(phi), every.log_prob(phi)[:, keep])
    torch.testing.assert_close(some.log_norm, every.log_norm[keep])


@every_kind
def test_log_norm_is_the_density_at_the_mean(kind):
    covariance, _ = random_covariance(kind)
    means = torch.randn(5, 7, dtype=torch.float64)
    density = covariance.density(means)
    at_means = density.log_prob(covariance.expand(means)).diagonal()
    torch.testing.assert_close(density.log_norm, at_means)


def test_matrices_of_the_full_covariance_are_what_was_factored():
    covariance, sigma = random_covariance(FullCovariance)
    torch.testing.assert_close(covariance.covariance, sigma)


@every_kind
def test_reset_is_the_variance_plus_the_floor(kind):
    covariance = kind(3, 4, 0.5).double()
    variance = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    covariance.reset(variance)
    expected = torch.diag(variance + 0.5)
    if kind is SphericalCovariance:
        expected = torch.diag(torch.full((4,), 3.5, dtype=torch.float64))
    means = torch.zeros(3, 4, dtype=torch.float64)
    x = torch.randn(6, 4, dtype=torch.float64)
    reference = MultivariateNormal(means, expected.expand(3, 4, 4)).log_prob(x[:, None])
    torch.testing.assert_close(covariance.density(means).log_prob(covariance.expand(x)), reference)


@every_kind
@pytest.mark.parametrize("components", [1, 5, 35])
def test_moments_are_the_dense_sums(kind, components):
    covariance = kind(components, 6, FLOOR).double()
    x = torch.randn(50, 6, dtype=torch.float64)
    r = torch.rand(50, components, dtype=torch.float64)
    first, second = covariance.moments(r, covariance.expand(x))
    expected = torch.einsum("nk,ni,nj->kij", r, x, x)
    if kind is DiagonalCovariance:
        expected = expected.diagonal(dim1=1, dim2=2)
    elif kind is SphericalCovariance:
        expected = expected.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(first, r.T @ x)
    torch.testing.assert_close(second, expected)


@every_kind
def test_maximise_gives_the_weighted_covariance_and_leaves_the_others(kind):
    covariance, before = random_covariance(kind, components=3, features=4)
    x = torch.randn(60, 4, dtype=torch.float64)
    r = torch.rand(60, 3, dtype=torch.float64)
    first, second = covariance.moments(r, covariance.expand(x))
    weight = r.sum(0)
    covariance.blend(second, torch.ones((), dtype=torch.float64))
    means = first / weight[:, None]
    covariance.maximise(weight, means, torch.tensor([True, True, False]))

    offsets = x[:, None] - means
    sigma = torch.einsum("nk,nki,nkj->kij", r, offsets, offsets) / weight[:, None, None]
    if kind is not FullCovariance:
        variance = sigma.diagonal(dim1=1, dim2=2)
        if kind is SphericalCovariance:
            variance = variance.mean(1, keepdim=True).expand(-1, 4)
        sigma = torch.diag_embed(variance)
    expected = sigma + FLOOR * torch.eye(4, dtype=torch.float64)
    expected[2] = before[2]
    reference = MultivariateNormal(means, expected).log_prob(x[:, None])
    torch.testing.assert_close(covariance.density(means).log_prob(covariance.expand(x)), reference)
    assert not covariance.second[2].any()


@every_kind
def test_blend_is_a_moving_average(kind):
    covariance = kind(2, 3, FLOOR).double()
    one = torch.rand_like(covariance.second)
    two = torch.rand_like(covariance.second)
    covariance.blend(one, torch.tensor(0.2, dtype=torch.float64))
    covariance.blend(two, torch.tensor(0.2, dtype=torch.float64))
    torch.testing.assert_close(covariance.second, 0.8 * 0.2 * one + 0.2 * two)


@every_kind
def test_identical_patches_leave_the_floor(kind):
    floor = 1e-3
    covariance = kind(1, 5, floor)
    x = torch.full((64, 5), 0.3)
    first, second = covariance.moments(torch.full((64, 1), 1 / 64), covariance.expand(x))
    covariance.blend(second, torch.ones(()))
    covariance.maximise(torch.ones(1), first, torch.ones(1, dtype=torch.bool))
    peak = covariance.density(first).log_norm
    expected = torch.tensor([-2.5 * math.log(2 * math.pi * floor)])
    torch.testing.assert_close(peak, expected, rtol=1e-4, atol=0)


def test_an_indefinite_matrix_keeps_the_former_factor():
    covariance = FullCovariance(2, 3, 1e-6).double()
    second = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    second[1, 0, 1] = second[1, 1, 0] = 2.0
    covariance.blend(second, torch.ones((), dtype=torch.float64))
    zero = torch.zeros(2, 3, dtype=torch.float64)
    alive = torch.ones(2, dtype=torch.bool)
    covariance.cholesky.mul_(3)
    covariance.maximise(torch.ones(2, dtype=torch.float64), zero, alive)
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(covariance.cholesky[0], eye * (1 + 1e-6) ** 0.5)
    assert torch.equal(covariance.cholesky[1], 3 * eye)


# Largest error of a float32 log-density against float64 at the same float32 parameters, nats, for
# unit-norm patches, D = 384, each within about one standard deviation a feature of its mean.
# Processors differ by a factor of three or so, as their products add up in different orders.
# Full covariances subtract the mean before they square, the others expand the square.
WORST = {
    DiagonalCovariance: {1e-2: 3e-3, 1e-3: 6e-3, 1e-4: 2e-2, 1e-5: 0.2, 1e-6: 2.0},
    SphericalCovariance: {1e-2: 2e-3, 1e-3: 4e-3, 1e-4: 1e-2, 1e-5: 0.1, 1e-6: 1.0},
    FullCovariance: {1e-2: 5e-4, 1e-3: 5e-4, 1e-4: 6e-4, 1e-5: 8e-4, 1e-6: 1e-3},
}


def float32_error(kind, variance):
    """Largest error over the patches of the log-density of their own component, nats."""
    D, K, N = 384, 8, 2048
    generator = torch.Generator().manual_seed(0)
    means = torch.nn.functional.normalize(torch.randn(K, D, generator=generator), dim=1)
    label = torch.arange(N) % K
    noise = torch.randn(N, D, generator=generator)
    x = torch.nn.functional.normalize(means[label] + variance**0.5 * noise, dim=1)
    origin = x.mean(0)
    covariance = filled(kind(K, D, 1e-8), variance)
    phi = covariance.expand(x - origin)
    got = covariance.density(means - origin).log_prob(phi)[torch.arange(N), label]
    if kind is FullCovariance:
        scale = covariance.cholesky.diagonal(dim1=1, dim2=2).double()
    else:
        scale = covariance.variance.double().sqrt().reshape(K, -1).expand(-1, D)
    centred = (means - origin).double() + origin.double()
    exact = Independent(Normal(centred[label], scale[label]), 1).log_prob(x.double())
    return float((got.double() - exact).abs().max())


@every_kind
@pytest.mark.parametrize("variance", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_float32_log_densities_are_as_exact_as_stated(kind, variance):
    assert float32_error(kind, variance) < WORST[kind][variance]


def test_clustered_patches_have_unit_norm():
    x = clustered(32, 5, 3)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(32))
