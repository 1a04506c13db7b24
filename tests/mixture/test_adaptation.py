"""New data for a fitted mixture: what fades, what stays, and components that start again."""

import copy

import pytest
import torch
from oracle import clustered

from monai_dpmm.mixture.adaptation import revive
from monai_dpmm.mixture.dpmm import DPMM

D = 16
KINDS = ["diagonal", "full", "spherical", "von_mises_fisher"]
every_kind = pytest.mark.parametrize("covariance", KINDS)


def old(n=2000, seed=0):
    return clustered(n, D, 5, spread=0.2, seed=seed, dtype=torch.float64)


def new(n=2000, seed=0):
    """Patches of clusters that the old data do not have."""
    return clustered(n, D, 7, spread=0.2, seed=100 + seed, dtype=torch.float64)


def fitted(x, **options):
    """A mixture of 5 to 10 components and the last; 19 and more have vanished."""
    model = DPMM(D, **{"components": 30, "variance_floor": 1e-3, **options}).double()
    model.initialize(x)
    for _ in range(30):
        model.step(x)
    model.average_weight[10:] = 0
    model.m_step(model.e_step(x[:0]))
    model.log_weights[10:29] = -torch.inf
    model.log_weights -= model.log_weights.logsumexp(0)
    model.prune()
    assert 5 <= len(model.active) <= 11
    return model


def continued(model, x, steps=40):
    for _ in range(steps):
        model.step(x)
    return model


@every_kind
def test_revived_components_take_what_the_others_cannot(covariance):
    stuck = fitted(old(), component_kind=covariance)
    revived = copy.deepcopy(stuck)
    gone = 30 - len(stuck.active)
    assert revive(revived, new()) == gone
    assert len(revived.active) == 30
    continued(stuck, new())
    continued(revived, new())
    held_out = new(seed=1)
    assert revived.log_prob(held_out).mean() > stuck.log_prob(held_out).mean() + 0.2
    assert revived.score(held_out).mean() < stuck.score(held_out).mean()


@every_kind
def test_what_has_not_vanished_stays_where_it_is(covariance):
    model = fitted(old(), component_kind=covariance)
    before, there = copy.deepcopy(model), model.active
    revive(model, new())
    assert torch.equal(model.offsets[there], before.offsets[there])
    assert torch.equal(model.average_weight, before.average_weight)
    for (name, a), b in zip(
        model.covariance.named_buffers(), before.covariance.buffers(), strict=True
    ):
        assert torch.equal(a[there], b[there]), name
    share = model.weights[there] / before.weights[there]
    torch.testing.assert_close(share, share[:1].expand_as(share))
    alpha = float(before.concentration)
    assert float(share[0]) == pytest.approx(1 - alpha / (2000 + alpha), rel=1e-9)
    assert float(model.weights.sum()) == pytest.approx(1, abs=1e-12)


def test_revived_means_are_new_patches_far_from_the_old_means():
    model = fitted(old())
    there = model.active
    gone = torch.ones(30, dtype=torch.bool)
    gone[there] = False
    x = torch.cat([old(seed=5), new()])
    revive(model, x)
    means = model.means[gone]
    to_patches = torch.cdist(means, x)
    assert to_patches.min(1).values.max() < 1e-6
    assert (to_patches.argmin(1) >= 2000).double().mean() > 0.7  # of the new clusters


def test_nothing_vanished_is_nothing_to_revive():
    x = old()
    model = DPMM(D, 6, initial_weights="uniform").double()
    model.initialize(x)
    model.step(x)
    means = model.means.clone()
    assert revive(model, new()) == 0
    assert torch.equal(model.means, means)


def test_fewer_new_patches_than_vanished_components():
    model = fitted(old())
    before = len(model.active)
    assert revive(model, new(3)) == 3
    assert len(model.active) == before + 3


def test_the_same_seed_and_step_revive_alike():
    one = fitted(old())
    two = copy.deepcopy(one)
    revive(one, new())
    revive(two, new())
    assert torch.equal(one.means, two.means)


def test_old_data_fade_by_the_schedule():
    """After t steps of rate γ the old moments count for (1 - γ)^t."""
    x, y = old(), new()
    model = DPMM(D, 1, step_size=0.2).double()
    model.initialize(x)
    continued(model, x, 60)
    continued(model, y, 5)
    expected = 0.8**5 * x.mean(0) + (1 - 0.8**5) * y.mean(0)
    torch.testing.assert_close(model.means[0], expected, rtol=1e-4, atol=1e-6)


def test_old_and_new_patches_count_alike_with_a_harmonic_schedule():
    """γ_t = 1 / t is the plain mean over all batches of both sites."""
    x, y = old(), new()
    model = DPMM(D, 1, schedule="exp", step_size=1.0).double()
    model.initialize(x)
    continued(model, x, 30)
    continued(model, y, 10)
    torch.testing.assert_close(model.means[0], 0.75 * x.mean(0) + 0.25 * y.mean(0))


@pytest.mark.parametrize("x", [torch.zeros(0, D), torch.full((3, D), float("nan"))])
def test_patches_that_are_none(x):
    with pytest.raises(ValueError, match="x must hold finite patches, at least one, got shape"):
        revive(fitted(old()), x)


def test_an_unfitted_mixture():
    with pytest.raises(RuntimeError, match="DPMM is not fitted"):
        revive(DPMM(D, 4), old().float())
