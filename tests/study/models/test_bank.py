"""Memory banks by hand, against a float64 oracle, in bounded memory, and in a mixture's place."""

import math

import pytest
import torch
from oracle import clustered
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.study.models import bank as module
from monai_dpmm.study.models.bank import MemoryBank
from monai_dpmm.study.models.coreset import coreset

KINDS = ["cosine", "euclidean"]


def bank_of(patches, **options):
    bank = MemoryBank(patches.shape[1], **options)
    bank.fit(patches)
    return bank


def distances(x, prototypes, kind):
    """All distances in float64, as the definitions read: (N, D), (P, D) -> (N, P)."""
    x, prototypes = x.double(), prototypes.double()
    if kind == "euclidean":
        return (x[:, None] - prototypes).square().sum(2).sqrt()
    lengths = x.norm(dim=1)[:, None] * prototypes.norm(dim=1)
    return 1 - (x[:, None] * prototypes).sum(2) / lengths


@pytest.fixture
def small_chunks(monkeypatch):
    for name, size in (("_CHUNK", 7), ("_TILE", 5)):
        monkeypatch.setattr(module, name, size)


def test_by_hand():
    bank = bank_of(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 2.0], [-1.0, 0.0], [3.0, 4.0]])
    cosine = torch.tensor([0, 0, 1 - math.sqrt(0.5), 1, 0.2])
    torch.testing.assert_close(bank.score(x), cosine)
    euclidean = torch.tensor([math.sqrt(2), 1, math.sqrt(5), math.sqrt(2), 4])
    torch.testing.assert_close(bank.score(x, "euclidean"), euclidean)
    assert bank.assign(x)[[0, 1, 3, 4]].tolist() == [0, 1, 1, 1]
    assert bank.assign(x, "euclidean")[[0, 1, 3, 4]].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_are_the_smallest_of_all_distances(kind, dtype, small_chunks):
    patches, x = clustered(203, 16, 6, dtype=dtype), 3 * clustered(101, 16, 9, seed=1, dtype=dtype)
    bank = bank_of(2 * patches).to(dtype)
    expected, nearest = distances(x, bank.prototypes, kind).min(1)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    scores = bank.score(x, kind)
    assert scores.dtype == dtype
    torch.testing.assert_close(scores.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(bank.assign(x, kind), nearest)


@pytest.mark.parametrize("kind", KINDS)
def test_patches_of_the_bank_score_zero(kind):
    patches = clustered(3000, 16, 6)
    bank = bank_of(patches)
    assert float(bank.score(patches, kind).abs().max()) < 1e-15
    assert torch.equal(bank.assign(patches, kind), torch.arange(3000))


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_distance_far_from_the_origin_is_not_lost(kind):
    patches = clustered(300, 16, 6) + 100
    near = patches.double() + 1e-4 * clustered(300, 16, 6, seed=1, dtype=torch.float64)
    scores = bank_of(patches).score(near.float(), kind)
    expected = distances(near.float(), patches, kind).amin(1)
    torch.testing.assert_close(scores.double(), expected, rtol=2e-2, atol=5e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "tile"), [(1, 1), (7, 5), (100, 3), (3, 1000)])
def test_chunks_change_nothing(kind, rows, tile, monkeypatch):
    bank, x = bank_of(clustered(150, 16, 6)), clustered(60, 16, 9, seed=1)
    scores, nearest = bank.score(x, kind), bank.assign(x, kind)
    monkeypatch.setattr(module, "_CHUNK", rows)
    monkeypatch.setattr(module, "_TILE", tile)
    torch.testing.assert_close(bank.score(x, kind), scores, rtol=1e-6, atol=0)
    assert torch.equal(bank.assign(x, kind), nearest)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_prototypes_changes_nothing(kind, small_chunks):
    patches, x = clustered(150, 16, 6), clustered(60, 16, 9, seed=1)
    order = torch.randperm(150)
    moved, bank = bank_of(patches[order]), bank_of(patches)
    assert torch.equal(moved.score(x, kind), bank.score(x, kind))
    assert torch.equal(order[moved.assign(x, kind)], bank.assign(x, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_more_prototypes_never_raise_a_score(kind):
    patches, x = clustered(400, 16, 6), clustered(60, 16, 9, seed=1)
    few, many = (bank_of(patches[:n]).score(x, kind) for n in (40, 400))
    assert (many <= few).all()
    assert (many < few).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_of_the_means_scores_as_the_mixture_does(kind):
    x = clustered(500, 16, 6)
    mixture = DPMM(16, 12, weight_threshold=0.0)
    mixture.initialize(x)
    for _ in range(3):
        mixture.step(x)
    assert mixture.surviving.all()
    bank = bank_of(mixture.means)
    torch.testing.assert_close(bank.score(x, kind), mixture.score(x, kind), rtol=1e-4, atol=1e-6)
    assert torch.equal(bank.assign(x, kind), mixture.assign(x, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_no_score_is_below_the_lowest(kind):
    bank = bank_of(clustered(50, 8, 4)).half()
    assert bank.lowest_score(kind).tolist() == 0
    assert bank.lowest_score(kind).dtype == torch.float32


def test_the_zero_vector_is_at_a_right_angle_to_all():
    bank, x = bank_of(clustered(50, 8, 4)), torch.zeros(3, 8)
    assert bank.score(x).tolist() == [1, 1, 1]


class Largest(TorchDispatchMode):
    """Most elements of any tensor that an operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        views = func._schema.name in ("aten::split", "aten::slice", "aten::detach", "aten::t")
        if not views:
            sizes = [t.numel() for t in made if isinstance(t, torch.Tensor)]
            self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_patches_times_prototypes(kind, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 64)
    monkeypatch.setattr(module, "_TILE", 128)
    bank, x = bank_of(clustered(5000, 4, 6)).half(), clustered(1000, 4, 9)
    with Largest() as seen:
        bank.score(x, kind)
    assert 64 * 128 <= seen.elements <= max(64 * 128, x.numel())


def test_a_full_bank_of_its_own_precision_is_no_copy():
    patches = clustered(50, 8, 4)
    assert bank_of(patches).prototypes.data_ptr() == patches.data_ptr()


@pytest.mark.parametrize("size", [1, 30, 0.1])
def test_a_size_makes_it_the_coreset(size):
    patches = clustered(300, 16, 6)
    bank = bank_of(patches, size=size, seed=3)
    generator = torch.Generator().manual_seed(3)
    indices = coreset(patches, size, generator=generator)
    assert torch.equal(bank.prototypes, patches[indices])


def test_a_second_fit_replaces_the_first():
    bank = bank_of(clustered(50, 8, 4))
    bank.fit(clustered(20, 8, 4, seed=1))
    assert torch.equal(bank.prototypes, clustered(20, 8, 4, seed=1))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_for_keeping_not_for_counting(kind):
    patches, x = clustered(200, 16, 6), clustered(60, 16, 9, seed=1)
    halved = bank_of(patches).half()
    assert halved.prototypes.dtype == torch.float16
    scores = halved.score(x, kind)
    assert scores.dtype == torch.float32
    expected = distances(x, patches.half(), kind).amin(1)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(halved.score(x, kind), scores)


def test_a_state_dict_brings_its_prototypes(tmp_path):
    bank, x = bank_of(clustered(50, 8, 4)), clustered(60, 8, 9, seed=1)
    torch.save(nn.ModuleDict({"mixture": bank}).state_dict(), tmp_path / "bank.pt")
    for other in (MemoryBank(8), bank_of(clustered(7, 8, 4))):
        state = torch.load(tmp_path / "bank.pt", weights_only=True)
        nn.ModuleDict({"mixture": other}).load_state_dict(state)
        assert torch.equal(other.score(x), bank.score(x))


def test_a_state_dict_without_prototypes_changes_nothing():
    bank = bank_of(clustered(50, 8, 4))
    assert bank.load_state_dict({}, strict=False).missing_keys == ["prototypes"]
    assert torch.equal(bank.prototypes, clustered(50, 8, 4))


class Cells(nn.Module):
    """Backbone of 4 pixel patches: their 3 x 4 x 4 pixels, averaged to 3 x 2 x 2."""

    patch_size = 4
    embedding_dim = 12

    def forward(self, images):
        return F.pixel_unshuffle(F.avg_pool2d(images, 2), 2)


def detector_of(slices, **options):
    detector = AnomalyDetector(Cells(), MemoryBank(12), image_size=32, **options)
    detector.mixture.fit(detector.embed(slices).flatten(0, -2))
    return detector


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_takes_it_in_the_place_of_a_mixture(kind):
    healthy, others = (0.5 + 0.1 * torch.rand(n, 1, 32, 32) for n in (4, 20))
    detector = detector_of(healthy, score=kind)
    assert float(detector(healthy).max()) < 1e-6
    marked = healthy[:1].clone()
    marked[:, :, 8:12, 20:24] = torch.eye(2).repeat_interleave(2, 0).repeat_interleave(2, 1)
    row, column = divmod(int(detector(marked).argmax()), 32)
    assert (row // 4, column // 4) == (2, 5)
    components = detector.maps(healthy)[:, 1, ::4, ::4]
    assert torch.equal(components, torch.arange(1.0, 4 * 64 + 1).view(4, 8, 8))
    detector.calibrate(detector.patch_scores(detector.embed(others)))
    assert (detector(marked) > detector.threshold(0.01)).any()


class Score(nn.Module):
    def __init__(self, bank, kind):
        super().__init__()
        self.bank, self.kind = bank, kind

    def forward(self, x):
        return self.bank.score(x, self.kind), self.bank.assign(x, self.kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_traced_score_holds_for_any_number_of_patches(kind, small_chunks):
    bank, x = bank_of(clustered(50, 8, 4)), clustered(60, 8, 9, seed=1)
    traced = torch.jit.trace(Score(bank, kind), x[:10])
    shape = ({0: torch.export.Dim("N", min=2, max=1000)},)
    exported = torch.export.export(Score(bank, kind), (x[:10],), dynamic_shapes=shape).module()
    for graph in (traced, exported):
        scores, nearest = graph(x)
        torch.testing.assert_close(scores, bank.score(x, kind))
        assert torch.equal(nearest, bank.assign(x, kind))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_finds_what_the_cpu_finds(kind):
    patches, x = clustered(20_000, 64, 60), clustered(3000, 64, 90, seed=1)
    bank = bank_of(patches, size=0.5)
    there = MemoryBank(64, size=0.5).cuda()
    there.fit(patches.cuda())
    torch.testing.assert_close(
        there.score(x.cuda(), kind).cpu(), bank.score(x, kind), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features must be at least 1, got 0"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"size": -3}, "size must be at least 1, got -3"),
        ({"size": 1.5}, r"size as a fraction must lie in \(0, 1\], got 1.5"),
        ({"size": 0.0}, r"size as a fraction must lie in \(0, 1\], got 0.0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MemoryBank(**({"features": 4} | options))


@pytest.mark.parametrize("kind", ["likelihood", "mahalanobis", "mixture", "cosin"])
@pytest.mark.parametrize("method", ["score", "assign"])
def test_a_score_that_a_bank_has_not_is_refused(kind, method):
    message = f"kind must be one of cosine, euclidean, got '{kind}'"
    with pytest.raises(ValueError, match=message):
        getattr(bank_of(torch.ones(2, 4)), method)(torch.ones(3, 4), kind)


def test_a_bank_without_prototypes_is_refused():
    with pytest.raises(RuntimeError, match="MemoryBank is not fitted: call fit, or load"):
        MemoryBank(4).score(torch.ones(3, 4))


@pytest.mark.parametrize("shape", [(3, 5), (4,), (2, 3, 4)])
def test_patches_of_another_shape_are_refused(shape):
    bank = bank_of(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"x must be \(N, 4\), got shape"):
        bank.score(torch.ones(shape))
    with pytest.raises(ValueError, match=r"patches must be \(N, 4\), got shape"):
        bank.fit(torch.ones(shape))


def test_integers_are_refused():
    with pytest.raises(TypeError, match="patches must be of floating point, got"):
        MemoryBank(4).fit(torch.ones(3, 4, dtype=torch.int64))


def test_no_patches_are_refused():
    with pytest.raises(ValueError, match="patches must hold at least one patch"):
        MemoryBank(4).fit(torch.ones(0, 4))


def test_fewer_patches_than_the_size_are_refused():
    with pytest.raises(ValueError, match="size must be from 1 to the 3 patches, got 4"):
        MemoryBank(4, size=4).fit(torch.ones(3, 4))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_patches_that_are_not_finite_are_refused(value):
    patches = torch.ones(3, 4)
    patches[2, 1] = value
    with pytest.raises(ValueError, match="patches must be finite"):
        MemoryBank(4).fit(patches)


def test_a_state_dict_of_other_features_is_refused():
    state = bank_of(torch.ones(3, 5)).state_dict()
    message = r"checkpoint has prototypes of shape \(3, 5\), this MemoryBank has features=4"
    with pytest.raises(ValueError, match=message):
        MemoryBank(4).load_state_dict(state)
