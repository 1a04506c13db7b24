"""Weights by place: counts add up, one bin is the paper's mixture, left is not right."""

import copy

import pytest
import torch
from fitted_mixtures import D, K, batches, fitted
from oracle import clustered
from torch.nn import functional as F

from monai_dpmm.mixture import scores as scores_module
from monai_dpmm.mixture.adaptation import revive
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.federation import merged
from monai_dpmm.mixture.place_choice import calibrate_places, place_gains, place_scale
from monai_dpmm.mixture.places import Places
from monai_dpmm.mixture.scores import SCORES

GRIDS = [(8, 10, 8), (3, 4), (1, 5), (2, 1, 3)]
every_grid = pytest.mark.parametrize("grid", GRIDS)
PLACED = [kind for kind, score in SCORES.items() if score.place is not None]


def places_of(n, d, seed=0, dtype=torch.float64):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def placed(grid=(3, 4), **options):
    """A mixture with the counts of its own patches, these and their places."""
    x = torch.cat(batches())
    u = places_of(len(x), len(grid))
    model = fitted(x, place_grid=grid, **options)
    model.places.counts += model.place_counts(x, u)
    return model, x, u


def dense_weights(places, u):
    """Weights w_b(u) of all bins, one axis after the other: (n, d) -> (n, G)."""
    result = torch.ones(len(u), 1, dtype=u.dtype)
    for side, t in zip(places.grid, u.unbind(1), strict=True):
        centres = torch.arange(side, dtype=u.dtype)
        hat = (1 - ((t * side - 0.5).clamp(0, side - 1)[:, None] - centres).abs()).clamp_min(0)
        result = (result[:, :, None] * hat[:, None]).flatten(1)
    return result


@every_grid
def test_weights_of_a_place_are_those_of_the_dense_grid_and_sum_to_one(grid):
    places, u = Places(K, grid), places_of(200, len(grid))
    u[:3] = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)[:, None]
    bins, weights = places.corners(u)
    assert bins.shape == (200, 2 ** len(grid))
    torch.testing.assert_close(weights.sum(1), torch.ones(200, dtype=torch.float64))
    found = torch.zeros(200, places.bins, dtype=torch.float64).scatter_add_(1, bins, weights)
    torch.testing.assert_close(found, dense_weights(places, u))


@every_grid
@pytest.mark.parametrize("kind", PLACED)
def test_scores_are_those_of_brute_force(grid, kind):
    model, x, u = placed(grid, weight_threshold=0.01)
    model.places.scale.fill_(0.05)
    r = model.responsibilities(x)
    w = dense_weights(model.places, u)
    counts = r.T @ w
    torch.testing.assert_close(model.places.counts, counts.to(model.places.counts))
    beta, pi = 30.0, model.weights
    local = (w @ ((counts.T + beta * pi) / (counts.sum(0)[:, None] + beta))).log()
    torch.testing.assert_close(local.exp().sum(1), torch.ones(len(x), dtype=torch.float64))
    log_density = model.component_log_prob(x)
    cosine = 1 - F.normalize(x, dim=1) @ F.normalize(model.means, dim=1).T
    distances = {
        "cosine": cosine - 0.05 * local,
        "likelihood": -(log_density + local),
        "mixture": -(log_density + local),
    }[kind][:, model.surviving]
    expected = -(-distances).logsumexp(1) if kind == "mixture" else distances.min(1).values
    scores, index = model.nearest(x, kind, u)
    torch.testing.assert_close(scores, expected)
    survivors = model.surviving.nonzero()[:, 0]
    assert torch.equal(index, survivors[distances.argmin(1)])
    assert float(scores.min()) >= float(model.lowest_score(kind))
    if kind == "mixture":
        torch.testing.assert_close(model.log_prob(x, u), -expected)
    torch.testing.assert_close(
        model.place_log_weight(index, u), local.gather(1, index[:, None])[:, 0]
    )


@pytest.mark.parametrize("kind", PLACED)
def test_one_bin_is_the_papers_mixture_exactly(kind):
    model, x, u = placed((1, 1, 1))
    assert torch.equal(model.score(x, kind, u), model.score(x, kind))
    assert torch.equal(model.assign(x, kind, u), model.assign(x, kind))
    assert torch.equal(model.log_prob(x, u), model.log_prob(x))


def test_without_places_nothing_changes():
    x = torch.cat(batches())
    plain, model = fitted(x), fitted(x, place_grid=(3, 4))
    own = {name for name in model.state_dict() if name.startswith("places.")}
    assert own == {f"places.{name}" for name in ("counts", "strength", "scale", "used")}
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for kind in SCORES:
        assert torch.equal(model.score(x, kind), plain.score(x, kind))


def test_without_counts_every_place_has_the_weights_of_all():
    x = batches()[0]
    model = fitted(x, place_grid=(3, 4))
    u = places_of(len(x), 2)
    torch.testing.assert_close(model.log_prob(x, u), model.log_prob(x))


def test_counts_of_parts_sum_to_the_whole_and_to_the_moments():
    x = torch.cat(batches())
    model, u = fitted(x, place_grid=(3, 4)), places_of(len(x), 2)
    before = copy.deepcopy(model.state_dict())
    whole = model.place_counts(x, u)
    parts = sum(model.place_counts(x[i::3], u[i::3]) for i in range(3))
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(whole.sum(1), model.e_step(x).weight)
    assert not model.place_counts(x[:0], u[:0]).any()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_size_of_a_chunk_changes_nothing(chunk, monkeypatch):
    model, x, u = placed()
    x, u = x[:200], u[:200]
    counts, scores = model.place_counts(x, u), model.score(x, "cosine", u)
    monkeypatch.setattr(scores_module, "_CHUNK", chunk)
    torch.testing.assert_close(model.place_counts(x, u), counts)
    torch.testing.assert_close(model.score(x, "cosine", u), scores)


def test_pruned_components_have_no_counts_and_change_none():
    x = torch.cat(batches())
    model, u = fitted(x, place_grid=(3, 4)), places_of(len(x), 2)
    model.log_weights[2:5] = -torch.inf
    dense = model.place_counts(x, u)
    model.prune()
    assert len(model.active) == K - 3
    torch.testing.assert_close(model.place_counts(x, u), dense)
    assert not dense[2:5].any()


def test_a_loaded_mixture_has_the_places_of_the_saved(tmp_path):
    model, x, u = placed()
    model.places.strength.fill_(10)
    model.places.scale.fill_(0.1)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = DPMM(D, K, place_grid=(3, 4)).double()
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    for kind in PLACED:
        assert torch.equal(other.score(x, kind, u), model.score(x, kind, u))
    other.initialize(x)
    assert not other.places.counts.any()


def test_merging_two_sites_is_the_whole():
    """Two sites with the same components: the counts of each, and weights of both together."""
    model, x, u = placed()
    sites = [copy.deepcopy(model), copy.deepcopy(model)]
    left = u[:, 0] < 0.5
    for site, own in zip(sites, (left, ~left), strict=True):
        site.places.counts.copy_(site.place_counts(x[own], u[own]))
        site.places.strength.fill_(1e-9)
    model.places.strength.fill_(1e-9)
    result = merged(sites, [int(left.sum()), int((~left).sum())])
    torch.testing.assert_close(result.places.counts.sum(), model.places.counts.sum())
    torch.testing.assert_close(result.log_prob(x, u), model.log_prob(x, u))
    with pytest.raises(
        ValueError, match=r"mixtures must have one place_grid, got .*\(3, 4\).*None"
    ):
        merged([model, fitted(x)], [1, 1])


def test_components_that_start_again_have_no_counts_of_their_former_places():
    model = placed()[0]
    model.log_weights[4] = -torch.inf
    model.prune()
    revive(model, clustered(50, D, 3, seed=8, dtype=torch.float64))
    assert not model.places.counts[4].any()
    assert model.places.counts[:4].any()


@pytest.mark.parametrize("kind", PLACED)
def test_what_exists_on_the_left_only_is_anomalous_on_the_right(kind):
    """Two tissues, of which one lies on the left only: the same patch, another place."""
    everywhere, left = F.normalize(torch.eye(D, dtype=torch.float64)[:2], dim=1)
    noise = 0.02 * torch.randn(4000, D, generator=torch.Generator().manual_seed(0)).double()
    u = places_of(4000, 3)
    is_left = (u[:, 0] < 0.4) & (u[:, 1] < 0.5)
    x = F.normalize(torch.where(is_left[:, None], left, everywhere) + noise, dim=1)
    model = fitted(x, steps=30, components=6, place_grid=(8, 4, 2), initialization="k-means++")
    model.places.counts += model.place_counts(x, u)
    calibrate_places(model, [(x, u)])
    inside = (u[:, 0] < 0.3) & (u[:, 1] < 0.4)
    patches, own = x[inside], u[inside]
    mirrored = own * torch.tensor([-1.0, 1, 1]) + torch.tensor([1.0, 0, 0])
    here, there = model.score(patches, kind, own), model.score(patches, kind, mirrored)
    assert (there > here).all()
    assert there.median() > here.quantile(0.75)
    same = model.assign(patches, kind, own) == model.assign(patches, kind)
    assert same.double().mean() > 0.95  # place makes no other prototype of what is where it belongs


def test_rules_choose_what_held_out_patches_say():
    """Places that tell something gain nats, those drawn at random lose some."""
    x = torch.cat(batches())
    model = fitted(x, steps=30, place_grid=(4, 4))
    nearest = model.assign(x, "mixture")
    telling = ((nearest[:, None] % torch.tensor([4, 3])) + 0.5) / 4
    telling = telling.double()
    model.places.counts += model.place_counts(x[::2], telling[::2])
    held_out = [(x[1::4], telling[1::4]), (x[3::4], telling[3::4])]
    gains = place_gains(model, held_out, [1.0, 30.0, 1e6])
    assert gains[0] > gains[1] > gains[2] > 0
    assert float(model.places.strength) == 30
    assert calibrate_places(model, held_out, [30.0, 1.0]) == pytest.approx(float(gains[0]))
    assert float(model.places.strength) == 1
    plain = torch.cat([model.score(x) for x, _ in held_out])
    index = torch.cat([model.assign(x) for x, _ in held_out])
    local = model.place_log_weight(index, torch.cat([u for _, u in held_out]))
    expected = (plain.std(correction=0) / local.std(correction=0)).clamp_max(0.02)
    torch.testing.assert_close(model.places.scale.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(place_scale(model, held_out), expected)
    assert float(place_scale(model, [(x, u.double()) for x, u in held_out])) <= 0.02
    random = places_of(len(x), 2)
    model.places.counts.copy_(model.place_counts(x[::2], random[::2]))
    assert float(place_gains(model, [(x[1::2], random[1::2])], [1.0])) < 0


class Score(torch.nn.Module):
    def __init__(self, model, kind):
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, x, u):
        return self.model.nearest(x, self.kind, u)


@pytest.mark.parametrize("kind", PLACED)
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_traced_score_holds_for_any_number_of_patches(kind):
    model, x, u = placed()
    traced = torch.jit.trace(Score(model, kind), (x[:10], u[:10]))
    for n in (1, 10, 200):
        scores, index = traced(x[:n], u[:n])
        expected, nearest = model.nearest(x[:n], kind, u[:n])
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(index, nearest)


@pytest.mark.parametrize("kind", ["cosine", "likelihood"])
def test_an_exported_score_holds_for_any_number_of_patches(kind):
    model, x, u = placed()
    n = torch.export.Dim("n", min=2, max=4096)
    shapes = ({0: n}, {0: n})
    exported = torch.export.export(Score(model, kind), (x[:10], u[:10]), dynamic_shapes=shapes)
    scores, index = exported.module()(x[:200], u[:200])
    expected, nearest = model.nearest(x[:200], kind, u[:200])
    torch.testing.assert_close(scores, expected)
    assert torch.equal(index, nearest)


def test_errors_name_argument_rule_and_value():
    model, x, u = placed()
    for grid in ((3,), (3, 0), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match="place_grid must be two or three numbers"):
            DPMM(D, K, place_grid=grid)
    with pytest.raises(ValueError, match=r"places must be \(1024, 2\), got shape \(1024, 3\)"):
        model.score(x, "cosine", places_of(len(x), 3))
    with pytest.raises(ValueError, match="places must be finite"):
        model.log_prob(x, u * torch.nan)
    with pytest.raises(ValueError, match=r"kind with places must be one of .*, got 'euclidean'"):
        model.score(x, "euclidean", u)
    with pytest.raises(ValueError, match="places must be None for a mixture without a place_grid"):
        fitted(x).score(x, "cosine", u)
    for rule in (place_gains, place_scale):
        with pytest.raises(ValueError, match="batches must hold at least one patch"):
            rule(model, [])
    with pytest.raises(ValueError, match="mixture must have a place_grid"):
        place_gains(fitted(x), [(x, u)])


def test_places_of_pictures_count_for_less():
    """Slices of all levels lie on each other there; their third coordinate is the middle."""
    model, x, u = placed((2, 1, 3))
    assert 0.005 < float(place_scale(model, [(x, u)])) <= 0.02
    u[:, 2] = 0.5
    assert float(place_scale(model, [(x, u)])) == pytest.approx(0.005)


def test_likelihoods_of_several_strengths_are_those_of_each_alone():
    model, x, u = placed(weight_threshold=0.01)
    strengths = [0.5, 30.0, 1e4]
    plain, *each = model.place_log_probs(x, u, strengths)
    assert float(model.places.strength) == 30
    torch.testing.assert_close(plain, model.log_prob(x))
    for found, strength in zip(each, strengths, strict=True):
        model.places.strength.fill_(strength)
        torch.testing.assert_close(found, model.log_prob(x, u))
    assert not torch.allclose(each[0], each[2])
