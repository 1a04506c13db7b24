"""Starts of a mixture: k-means++ against its definition, weights, and what both are for."""

import math
from itertools import accumulate

import pytest
import torch
from oracle import clustered
from torch.nn import functional as F

from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.em import stick_breaking
from monai_dpmm.mixture.initialization import INITIAL_STICKS, INITIALIZATIONS


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chosen(x, count, seed=0, kind="k-means++"):
    return INITIALIZATIONS[kind](x, count, seeded(seed))


def by_definition(x, count, seed):
    """Greedy k-means++, one patch and one distance at a time."""
    candidates = 2 + int(math.log(count))
    draws = torch.rand(count, candidates, generator=seeded(seed), dtype=torch.float64).tolist()

    def squares(indices):
        return [
            min((float((patch - x[i]).square().sum()) for i in indices), default=1.0) for patch in x
        ]

    indices = []
    for row in draws:
        totals = list(accumulate(squares(indices)))
        places = [next(i for i, t in enumerate(totals) if t >= draw * totals[-1]) for draw in row]
        indices.append(min(places, key=lambda place: sum(squares([*indices, place]))))
    return indices


@pytest.mark.parametrize("seed", range(5))
def test_k_means_plus_plus_is_its_definition(seed):
    x = clustered(60, 5, 4, seed=seed, dtype=torch.float64)
    assert chosen(x, 12, seed).tolist() == by_definition(x, 12, seed)


@pytest.mark.parametrize("seed", range(10))
def test_k_means_plus_plus_finds_every_far_cluster(seed):
    centres = 100 * torch.eye(8)
    label = torch.arange(8).repeat_interleave(torch.tensor([500, 200, 100, 50, 20, 10, 5, 2]))
    x = centres[label] + 0.01 * torch.randn(len(label), 8, generator=seeded(seed))
    assert label[chosen(x, 8, seed)].unique().numel() == 8
    assert label[chosen(x, 8, seed, "random")].unique().numel() < 8


@pytest.mark.parametrize("kind", ["random", "k-means++"])
def test_no_patch_is_chosen_twice(kind):
    x = clustered(300, 16, 6)
    assert chosen(x, 300, kind=kind).unique().numel() == 300


def test_distance_tells_patches_far_from_the_origin_apart():
    x = clustered(200, 16, 6)
    model = DPMM(16, 20, initialization="k-means++")
    model.initialize(x)
    shifted = DPMM(16, 20, initialization="k-means++")
    shifted.initialize(x + 100)
    torch.testing.assert_close(shifted.means - 100, model.means, rtol=0, atol=1e-4)


def test_duplicates_only():
    x = clustered(1, 16, 6).expand(50, 16)
    model = DPMM(16, 20, initialization="k-means++", initial_weights="uniform")
    model.initialize(x)
    torch.testing.assert_close(model.means, x[:20])
    assert torch.isfinite(model.step(x))


@pytest.mark.parametrize("initialization", ["random", "k-means++"])
def test_a_seed_decides_the_choice(initialization):
    x = clustered(300, 16, 6)
    means = []
    for seed in (0, 0, 1):
        model = DPMM(16, 20, initialization=initialization, seed=seed)
        model.initialize(x)
        means.append(model.means)
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])


@pytest.mark.parametrize("components", [1, 2, 7, 500])
def test_uniform_sticks_give_equal_weights(components):
    weights = stick_breaking(*INITIAL_STICKS["uniform"](components, 2.0, seeded())).exp()
    expected = torch.full((components,), 1 / components, dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("concentration", [0.5, 2.0, 30.0])
def test_beta_sticks_follow_their_prior(concentration):
    log_v, log_rest = INITIAL_STICKS["beta"](20_000, concentration, seeded())
    torch.testing.assert_close(log_v.exp() + log_rest.exp(), torch.ones(20_000).double())
    prior = torch.distributions.Beta(1.0, concentration)
    assert float(log_v.exp().mean()) == pytest.approx(float(prior.mean), rel=0.03)
    assert float(log_v.exp().var()) == pytest.approx(float(prior.variance), rel=0.05)


def test_equal_weights_keep_more_components_than_falling_ones():
    x = clustered(2000, 16, 40, spread=0.1)
    survivors = {}
    for initial_weights in ("beta", "uniform"):
        model = DPMM(16, 60, initial_weights=initial_weights)
        model.initialize(x)
        for _ in range(100):
            model.step(x)
        survivors[initial_weights] = int(model.num_surviving)
    assert survivors["uniform"] > survivors["beta"]


def test_sticks_choose_the_number_of_components_and_equal_weights_do_not():
    """Twice the truncation is no tenth more components: the truncation is a bound, as intended."""
    x = F.normalize(clustered(3000, 24, 60, spread=0.4), dim=1)
    x = x[torch.randperm(3000, generator=seeded())]

    def survivors(initial_weights, components):
        counts = []
        for seed in range(2):
            model = DPMM(
                24,
                components,
                initial_weights=initial_weights,
                variance_floor=1e-3,
                step_size=0.05,
                seed=seed,
            )
            model.initialize(x)
            for batch in x.split(500) * 3:
                model.step(batch)
            counts.append(int(model.num_surviving))
        return sum(counts) / 2

    few, many = (survivors("beta", components) for components in (300, 600))
    assert few < 200
    assert many == pytest.approx(few, rel=0.1)
    assert survivors("uniform", 600) > 590
