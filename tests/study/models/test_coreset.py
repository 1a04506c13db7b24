"""The coreset by hand, against its definition, and for its promise: no patch is far from it."""

import itertools
import math

import pytest
import torch
from oracle import clustered

from monai_dpmm.study.models import coreset as module
from monai_dpmm.study.models.coreset import coreset, coreset_size, projected_features


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chosen(x, size, seed=0, **options):
    return coreset(x, size, generator=seeded(seed), **options)


def radius(x, indices):
    """Largest distance of a patch to the nearest of those chosen."""
    return float(torch.cdist(x.double(), x[indices].double()).amin(1).max())


def by_definition(x, count, first):
    """Greedy k-center, one patch and one distance at a time."""
    indices = [first]
    while len(indices) < count:
        reach = [min(float((patch - x[i]).square().sum()) for i in indices) for patch in x]
        indices.append(reach.index(max(reach)))
    return indices


def test_by_hand():
    x = torch.tensor([[0.0], [1.0], [2.2], [7.0], [10.0]])
    orders = {0: [0, 4, 3, 2, 1], 1: [1, 4, 3, 2, 0], 4: [4, 0, 3, 2, 1]}
    seen = set()
    for seed in range(20):
        indices = chosen(x, 5, seed).tolist()
        seen.add(indices[0])
        if indices[0] in orders:
            assert indices == orders[indices[0]]
    assert seen == set(range(5))


@pytest.mark.parametrize("pool", [1, 3, 20, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_its_definition_whatever_the_pool(pool, seed, monkeypatch):
    monkeypatch.setattr(module, "_POOL", pool)
    monkeypatch.setattr(module, "_CHUNK", 17)
    x = clustered(60, 5, 4, seed=seed, dtype=torch.float64)
    indices = chosen(x, 25, seed).tolist()
    assert indices == by_definition(x, 25, indices[0])


def test_few_passes_over_all_patches_suffice(monkeypatch):
    passes = []
    approach = module._approach
    monkeypatch.setattr(module, "_approach", lambda *args: (passes.append(1), approach(*args)))
    chosen(clustered(20_000, 16, 40), 1000)
    assert len(passes) < 50


@pytest.mark.parametrize("seed", range(5))
def test_the_radius_is_at_most_twice_the_smallest_possible(seed):
    x = torch.randn(14, 2, generator=seeded(seed))
    best = min(radius(x, list(some)) for some in itertools.combinations(range(14), 4))
    assert best <= radius(x, chosen(x, 4, seed)) <= 2 * best + 1e-6


@pytest.mark.parametrize("size", [10, 50, 200])
def test_it_covers_better_than_random_patches(size):
    x = clustered(2000, 16, 40)
    randoms = [radius(x, torch.randperm(2000, generator=seeded(s))[:size]) for s in range(5)]
    assert radius(x, chosen(x, size)) < min(randoms)


def test_more_patches_extend_a_coreset_and_lower_its_radius():
    x = clustered(500, 8, 6)
    large = chosen(x, 100)
    assert torch.equal(large[:30], chosen(x, 30))
    radii = [radius(x, large[:count]) for count in range(1, 100)]
    assert all(a >= b for a, b in itertools.pairwise(radii))


@pytest.mark.parametrize("count", [1, 2, 50, 300])
def test_no_patch_is_chosen_twice(count):
    x = clustered(200, 16, 6).repeat(2, 1)[:300]  # with duplicates
    assert chosen(x, count).unique().numel() == count


def test_duplicates_only():
    assert chosen(torch.ones(50, 4), 50).sort().values.tolist() == list(range(50))


def test_far_from_the_origin_the_choice_is_the_same():
    x = clustered(300, 16, 6)
    assert torch.equal(chosen(x + 100, 20), chosen(x, 20))


def test_the_order_of_patches_decides_no_more_than_the_first():
    x = clustered(300, 8, 6)
    order = torch.randperm(300, generator=seeded(5))
    indices = chosen(x, 40)
    moved = module._projected(x[order], 100, seeded())
    start = (order == indices[0]).nonzero()[0]
    greedy = module._k_center_greedy(moved, moved.square().sum(1), 40, start)
    assert torch.equal(order[greedy], indices)


def test_a_seed_decides_the_choice_and_the_global_one_does_not():
    x = clustered(300, 16, 6)
    first = chosen(x, 20)
    torch.manual_seed(123)
    assert torch.equal(chosen(x, 20), first)
    assert not torch.equal(chosen(x, 20, seed=1), first)


def test_the_projection_is_as_small_as_the_lemma_allows():
    lemma = pytest.importorskip("sklearn.random_projection").johnson_lindenstrauss_min_dim
    for n, distortion in itertools.product((2, 1000, 7_700_000), (0.1, 0.5, 0.9)):
        assert projected_features(n, distortion) == int(lemma(n, eps=distortion))


def test_the_projection_keeps_distances():
    x = clustered(400, 2000, 6)
    features = projected_features(400, 0.9)
    assert features < 200
    projected = module._projected(x, features, seeded())
    assert projected.shape == (400, features)
    ratio = (torch.pdist(projected) / torch.pdist(x)).square()
    assert float((ratio - 1).abs().max()) < 0.9
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05)


def test_selection_on_the_projection_covers_nearly_as_well():
    x = clustered(1000, 1024, 40)
    assert projected_features(1000) < 1024
    exact = module._projected(x, 1024, seeded())
    greedy = module._k_center_greedy(exact, exact.square().sum(1), 50, torch.tensor([0]))
    randoms = [radius(x, torch.randperm(1000, generator=seeded(s))[:50]) for s in range(5)]
    found = radius(x, chosen(x, 50))
    assert found < 1.15 * radius(x, greedy)
    assert found < min(randoms)


def test_half_precision_is_compared_in_float32():
    x = clustered(300, 16, 6).half()
    assert torch.equal(chosen(x, 40), chosen(x.float(), 40))


@pytest.mark.parametrize(
    ("size", "count"), [(1, 1), (150, 150), (1000, 1000), (0.1, 100), (1.0, 1000), (1e-9, 1)]
)
def test_sizes_are_numbers_or_fractions(size, count):
    assert coreset_size(1000, size) == count
    assert len(chosen(torch.randn(1000, 3), size)) == count


@pytest.mark.parametrize("size", [0, -1, 11])
def test_a_number_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match=f"size must be from 1 to the 10 patches, got {size}"):
        chosen(torch.randn(10, 3), size)


@pytest.mark.parametrize("size", [0.0, -0.1, 1.5, math.nan])
def test_a_fraction_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\], got"):
        chosen(torch.randn(10, 3), size)


@pytest.mark.parametrize("distortion", [0.0, 1.0])
def test_a_distortion_out_of_range_is_refused(distortion):
    with pytest.raises(ValueError, match=r"distortion must lie in \(0, 1\), got"):
        chosen(torch.randn(10, 3), 2, distortion=distortion)


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 3, 4)])
def test_patches_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"x must be \(N, D\) with N at least 1, got shape"):
        chosen(torch.zeros(shape), 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_patches_that_are_not_finite_are_refused(value):
    x = torch.randn(10, 3)
    x[4, 1] = value
    with pytest.raises(ValueError, match="x must be finite"):
        chosen(x, 2)
