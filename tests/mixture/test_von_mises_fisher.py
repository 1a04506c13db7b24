"""Components on the sphere: Bessel functions, densities, concentrations, EM against an oracle."""

import mpmath
import pytest
import torch
from oracle import SphereOracle, clustered
from scipy.stats import vonmises_fisher
from torch.nn import functional as F

from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.von_mises_fisher import VonMisesFisher, kappa_of, log_bessel

D, K = 8, 12
float64 = {"dtype": torch.float64}


def started(x, **options):
    model = DPMM(x.shape[1], **{"components": K, "component_kind": "von_mises_fisher", **options})
    model.to(x.dtype).initialize(x)
    return model


def fitted(x, steps=5, **options):
    model = started(x, **options)
    for _ in range(steps):
        model.step(x)
    return model


def sphere(n=256, features=D, seed=0, dtype=torch.float64, spread=0.3):
    return clustered(n, features, 6, spread=spread, seed=seed, dtype=dtype)


@pytest.mark.parametrize("features", [2, 3, 8, 99, 100, 152, 384, 1536])
def test_bessel_functions_are_those_of_arbitrary_precision(features):
    order = features / 2 - 1
    z = torch.tensor([1e-8, 1e-3, 0.5, 3.0, 30.0, 300.0, 3e3, 1e5, 1e6], **float64)
    log_value, ratio = log_bessel(order, z)
    with mpmath.workdps(40):
        for i, value in enumerate(map(mpmath.mpf, z.tolist())):
            low, high = mpmath.besseli(order, value), mpmath.besseli(order + 1, value)
            expected = float(mpmath.log(low) - order * mpmath.log(value))
            assert float(log_value[i]) == pytest.approx(expected, rel=1e-10, abs=1e-10)
            assert float(ratio[i]) == pytest.approx(float(high / low / value), rel=1e-9)


@pytest.mark.parametrize("features", [2, 8, 152, 384])
def test_kappa_inverts_the_mean_resultant_length(features):
    rho = torch.tensor([0, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.99, 0.9999, 0.999999], **float64)
    kappa = kappa_of(rho, features)
    assert (kappa.diff() > 0).all()
    torch.testing.assert_close(
        kappa * log_bessel(features / 2 - 1, kappa)[1], rho, rtol=1e-7, atol=1e-12
    )


@pytest.mark.parametrize("features", [2, 8, 100])
@pytest.mark.parametrize("kappa", [0.5, 20.0, 900.0])
def test_densities_are_those_of_scipy(features, kappa):
    x = sphere(features=features)
    component = VonMisesFisher(1, features, 1e-6).double()
    component.concentration.fill_(kappa)
    mean = 0.3 * x[:1]  # a direction, whatever its length
    density = component.density(mean)
    expected = torch.from_numpy(vonmises_fisher(x[0].numpy(), kappa).logpdf(x.numpy()))
    torch.testing.assert_close(density.log_prob(x)[:, 0], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(density.log_norm, density.log_prob(x[:1])[0])


@pytest.mark.parametrize("kappa", [0.0, 3.0, 50.0])
def test_a_density_integrates_to_one(kappa):
    component = VonMisesFisher(1, 3, 1e-6).double()
    component.concentration.fill_(kappa)
    height = torch.linspace(-1, 1, 200_001, **float64)
    x = torch.stack([height, (1 - height**2).sqrt(), torch.zeros_like(height)], dim=1)
    pole = torch.tensor([[1.0, 0, 0]], **float64)
    density = component.density(pole).log_prob(x)[:, 0].exp()
    assert float(2 * torch.pi * torch.trapezoid(density, height)) == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["ema", "exp", "none"])
@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-3)])
def test_fifty_steps_are_those_of_the_oracle(schedule, learn, dtype, tolerance):
    rate = 0.6 if schedule == "exp" else 0.2
    data = [sphere(seed=i, dtype=dtype) for i in range(4)]
    model = started(data[0], schedule=schedule, step_size=rate, learn_concentration=learn)
    oracle = SphereOracle(
        model.weights,
        model.means,
        model.covariance.kappa,
        alpha=float(model.concentration),
        floor=1e-6,
        schedule=schedule,
        rate=rate,
        learn=learn,
    )
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    for t in range(50):
        x = data[t % len(data)]
        torch.testing.assert_close(model.step(x), oracle.step(x), **close)
        torch.testing.assert_close(model.weights, oracle.weights, **close)
        there = oracle.s > 1e-6
        torch.testing.assert_close(model.means[there].double(), oracle.means[there], **close)
        kappa = model.covariance.kappa[there].double()
        torch.testing.assert_close(kappa, oracle.kappa[there], rtol=10 * tolerance, atol=0)
        assert float(model.concentration) == pytest.approx(oracle.alpha, rel=tolerance)
    assert there.sum() >= 5


def test_plain_batch_em_never_lowers_its_objective():
    x = sphere(spread=0.5)
    model = started(
        x,
        components=6,
        schedule="none",
        learn_concentration=False,
        variance_floor=1e-12,
        weight_threshold=0.0,
    )

    def objective():
        rest = 1 - model.weights.cumsum(0)[:-1]
        v = model.weights[:-1] / (rest + model.weights[:-1])
        prior = torch.distributions.Beta(1.0, model.concentration)
        return float(model.log_prob(x).sum() + prior.log_prob(v).sum())

    values = []
    for _ in range(60):
        values.append(objective())
        model.step(x)
    assert torch.tensor(values).diff().min() > -1e-6
    assert values[-1] > values[0] + 50


def test_samples_give_their_distributions_back():
    centres = torch.eye(3, 16, **float64)
    kappas = (30.0, 100.0, 400.0)
    draws = [
        vonmises_fisher(centre.numpy(), kappa).rvs(4000, random_state=i)
        for i, (centre, kappa) in enumerate(zip(centres, kappas, strict=True))
    ]
    x = torch.cat([torch.from_numpy(draw) for draw in draws])
    model = fitted(x, steps=60, components=3, schedule="none", initialization="k-means++")
    cosine = F.normalize(model.means, dim=1) @ centres.T
    nearest = cosine.argmax(0)
    assert cosine.amax(0).min() > 0.999
    torch.testing.assert_close(model.weights, torch.full((3,), 1 / 3, **float64), atol=0.01, rtol=0)
    found = model.covariance.kappa[nearest]
    torch.testing.assert_close(found, torch.tensor(kappas, **float64), rtol=0.1, atol=0)


def test_rotating_the_sphere_rotates_the_means_only():
    x = sphere()
    rotation = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1)))[0]
    one, two = fitted(x), fitted(x @ rotation.double())
    torch.testing.assert_close(two.means, one.means @ rotation.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(two.weights, one.weights, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(two.covariance.kappa, one.covariance.kappa, rtol=1e-5, atol=0)


def test_the_start_is_the_spread_of_the_batch():
    x = sphere()
    model = started(x)
    assert torch.equal(model.origin, torch.zeros(D, **float64))
    kappa = kappa_of(x.mean(0).norm()[None], D)
    expected = (1 / (1 / kappa + 1e-6)).expand(K)
    torch.testing.assert_close(model.covariance.kappa, expected)
    torch.testing.assert_close(model.means.norm(dim=1), torch.ones(K, **float64))


def test_one_component_ranks_patches_as_the_cosine_does():
    x = sphere()
    model = fitted(x, components=1)
    torch.testing.assert_close(
        model.score(x, "likelihood").argsort(), model.score(x, "cosine").argsort()
    )


@pytest.mark.parametrize("kind", ["likelihood", "mahalanobis", "mixture"])
def test_scores_are_those_of_brute_force(kind):
    x = sphere()
    model = fitted(x)
    keep = model.surviving
    log_density = model.component_log_prob(x)[:, keep]
    kappa = model.covariance.kappa[keep]
    cosine = x @ F.normalize(model.means[keep], dim=1).T
    expected = {
        "likelihood": -log_density.amax(1),
        "mahalanobis": (2 * kappa * (1 - cosine)).clamp_min(0).sqrt().amin(1),
        "mixture": -(log_density + model.log_weights[keep]).logsumexp(1),
    }[kind]
    torch.testing.assert_close(model.score(x, kind), expected, rtol=1e-6, atol=1e-6)


def test_identical_patches_stop_at_the_floor():
    x = sphere()[:1].expand(64, D)
    model = fitted(x, components=4, variance_floor=1e-3)
    assert torch.isfinite(model.log_prob(x)).all()
    kappa = model.covariance.kappa[model.surviving]
    torch.testing.assert_close(kappa, torch.full_like(kappa, 1e3), rtol=1e-5, atol=0)


def test_opposite_patches_have_no_direction():
    x = torch.cat([sphere()[:1], -sphere()[:1]])
    model = fitted(x, components=1, schedule="none")
    assert float(model.covariance.kappa) == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(model.log_prob(x)).all()


def test_float32_log_densities_are_exact_at_high_concentration():
    x = sphere(512, 384, dtype=torch.float32)
    for kappa, tolerance in ((1e2, 1e-3), (1e4, 3e-2), (1e6, 2.0)):
        component = VonMisesFisher(40, 384, 1e-6)
        component.concentration.fill_(kappa)
        narrow = component.density(x[:40]).log_prob(x)
        wide = component.double().density(x[:40].double()).log_prob(x.double())
        assert (narrow - wide).abs().max() < tolerance


@pytest.mark.parametrize("scale", [0.5, 1.01, 0.0])
def test_patches_off_the_sphere(scale):
    with pytest.raises(ValueError, match=r"x must be of unit norm for von_mises_fisher, got norms"):
        started(scale * sphere())


def test_one_feature_is_no_sphere():
    with pytest.raises(ValueError, match="features must be at least 2 on a sphere, got 1"):
        DPMM(1, 3, component_kind="von_mises_fisher")
