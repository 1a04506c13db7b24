"""Moments less those of some patches give the mixture of the others."""

import copy

import pytest
import torch

from monai_dpmm import DPMM
from monai_dpmm.mixture.leave_one_out import exact_moments, without

KINDS = ["diagonal", "spherical", "full", "von_mises_fisher"]


def patches(seed, count=300, centres=4, features=6):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(centres, features, generator=torch.Generator().manual_seed(99))
    kinds = torch.randint(centres, (count,), generator=generator)
    noise = 0.3 * torch.randn(count, features, generator=generator)
    return torch.nn.functional.normalize(means[kinds] + noise, dim=1)


def fitted(x, **options):
    mixture = DPMM(6, components=8, variance_floor=1e-3, **options)
    mixture.initialize(x)
    for part in x.split(100) * 4:
        mixture.step(part)
    return mixture


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", ["ema", "exp", "none"])
def test_it_is_a_step_of_plain_em_on_the_others(kind, schedule):
    scans = [patches(seed) for seed in range(4)]
    mixture = fitted(torch.cat(scans), component_kind=kind, schedule=schedule)
    plain = DPMM(6, components=8, variance_floor=1e-3, component_kind=kind, schedule="none")
    own = [exact_moments(mixture, x) for x in scans]
    total = own[0] + own[1] + own[2] + own[3]
    for left_out in range(4):
        plain.load_state_dict(mixture.state_dict())
        plain.step(torch.cat([x for i, x in enumerate(scans) if i != left_out]))
        result = without(mixture, total, own[left_out])
        there = plain.surviving
        assert torch.equal(result.surviving, there)
        assert torch.allclose(result.means[there], plain.means[there], atol=1e-5)
        assert torch.allclose(result.weights, plain.weights, atol=1e-6)
        assert float(result.concentration) == pytest.approx(float(plain.concentration), rel=1e-5)
        x = patches(7)
        assert torch.allclose(result.log_prob(x), plain.log_prob(x), atol=2e-3)


def test_the_fitted_mixture_stays():
    scans = [patches(0), patches(1)]
    mixture = fitted(torch.cat(scans), place_grid=(2, 2, 2))
    before = copy.deepcopy(mixture.state_dict())
    own = [exact_moments(mixture, x) for x in scans]
    without(mixture, own[0] + own[1], own[1], mixture.places.counts)
    for name, value in mixture.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_only_one_scan_has_is_new_without_it():
    usual, rare = patches(0), torch.nn.functional.normalize(-torch.ones(40, 6), dim=1)
    rare = torch.nn.functional.normalize(rare + 0.01 * torch.randn(40, 6), dim=1)
    mixture = fitted(torch.cat([usual, rare])[torch.randperm(340)], initialization="k-means++")
    own = [exact_moments(mixture, x) for x in (usual, rare)]
    result = without(mixture, own[0] + own[1], own[1])
    assert float(result.weights.sum()) == pytest.approx(1)
    assert int(result.num_surviving) < int(mixture.num_surviving)
    assert float(mixture.score(rare).mean()) < 0.01
    assert float(result.score(rare).mean()) > 0.1
    assert torch.allclose(result.score(usual), mixture.score(usual), atol=0.1)


def test_counts_of_places_are_those_of_the_others():
    scans = [(patches(seed), torch.rand(300, 3)) for seed in range(3)]
    mixture = fitted(torch.cat([x for x, _ in scans]), place_grid=(2, 3, 2))
    counts = [mixture.place_counts(*scan) for scan in scans]
    mixture.places.counts.copy_(sum(counts))
    own = [exact_moments(mixture, x) for x, _ in scans]
    result = without(mixture, own[0] + own[1] + own[2], own[1], counts[1])
    expected = (counts[0] + counts[2]).float()
    assert torch.allclose(result.places.counts, expected, atol=1e-3)
