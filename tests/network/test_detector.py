import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.planes import create_mixture
from monai_dpmm.mixture.scores import SCORES
from monai_dpmm.network.detector import AnomalyDetector, embed_patches
from monai_dpmm.network.geometry import prepare_slices


class Patches(nn.Module):
    """Backbone of 14 pixel patches: their 3 x 14 x 14 pixels, averaged to 3 x 2 x 2."""

    patch_size = 14
    embedding_dim = 12

    def forward(self, images):
        cells = F.avg_pool2d(images, 7)
        return F.pixel_unshuffle(cells, 2)


def _healthy(count=6, size=56):
    """Smooth slices: a bright disc on a dark ground."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    radii = torch.linspace(0.5, 0.8, count).view(-1, 1, 1, 1)
    return torch.sigmoid((radii - (x * x + y * y).sqrt()) * 20).clamp_min(0.01)


def _detector(**kwargs):
    detector = AnomalyDetector(
        Patches(), DPMM(12, 20, variance_floor=1e-3), image_size=56, **kwargs
    )
    patches = detector.embed(_healthy()).flatten(0, 2)
    patches = patches[patches.any(dim=1)]
    detector.mixture.initialize(patches)
    for _ in range(10):
        detector.mixture.step(patches)
    detector.calibrate(detector.patch_scores(patches.repeat(2, 1)))
    return detector


def _marked(slices, row, column):
    """A checkerboard in one patch, which no disc has."""
    marked = slices.clone()
    checks = torch.eye(2).repeat_interleave(7, 0).repeat_interleave(7, 1)
    marked[:, :, row : row + 14, column : column + 14] = checks
    return marked


@pytest.mark.parametrize(("row", "column"), [(14, 28), (28, 14), (0, 42), (42, 0)])
def test_a_marked_patch_scores_highest_at_its_place(row, column):
    slices = _marked(_healthy(1), row, column)
    anomaly = _detector()(slices)
    assert anomaly.shape == slices.shape
    highest = divmod(int(anomaly.argmax()), 56)
    assert row <= highest[0] < row + 14
    assert column <= highest[1] < column + 14


@pytest.mark.parametrize("shape", [(56, 56), (40, 70), (100, 64)])
def test_maps_have_the_pixels_of_the_slices(shape):
    slices = F.interpolate(_healthy(2), size=shape)
    maps = _detector().maps(slices)
    assert maps.shape == (2, 2, *shape)
    assert torch.isfinite(maps).all()
    components = maps[:, 1]
    assert torch.equal(components, components.round())
    assert components.min() >= 1
    assert components.max() <= 20


def test_map_and_patch_scores_are_one():
    detector = _detector()
    slices = _healthy(2)
    scores = detector.patch_scores(detector.embed(slices))
    expected = F.interpolate(scores[:, None], size=(56, 56), mode="bilinear")
    assert torch.allclose(detector(slices), expected)
    assert torch.equal(detector.maps(slices)[:, :1], detector(slices))


@pytest.mark.parametrize("kind", SCORES)
def test_the_mixture_is_evaluated_once_for_score_and_component(kind, monkeypatch):
    detector = _detector(score=kind)
    calls = []
    nearest = detector.mixture.nearest
    monkeypatch.setattr(detector.mixture, "nearest", lambda *a: calls.append(a) or nearest(*a))
    maps = detector.maps(_healthy(2))
    assert len(calls) == 1
    assert torch.equal(maps[:, :1], detector(_healthy(2)))


def test_embeddings_are_unit_norm_and_background_is_zero():
    slices = torch.zeros(1, 1, 56, 56)
    slices[..., 14:28, 28:42] = torch.rand(14, 14) + 0.1
    images = (slices.repeat(1, 3, 1, 1) - 0.485) / 0.229
    images[:, 1] = (slices[:, 0] - 0.456) / 0.224
    images[:, 2] = (slices[:, 0] - 0.406) / 0.225
    everywhere = embed_patches(Patches(), images)
    assert torch.allclose(everywhere.norm(dim=-1), torch.ones(1, 4, 4))
    inside = embed_patches(Patches(), images, ignore_background=True)
    assert inside.any(dim=-1).nonzero().tolist() == [[0, 1, 2]]
    assert torch.equal(inside[0, 1, 2], everywhere[0, 1, 2])


@pytest.mark.parametrize("grid", [(4, 4), (4, 2), (3, 5), (8, 8)])
def test_features_are_brought_to_a_patch_grid(grid):
    images = (torch.rand(2, 3, 56, 56) - 0.4) / 0.22
    embeddings = embed_patches(Patches(), images, patch_grid=grid)
    assert embeddings.shape == (2, *grid, 12)
    assert torch.allclose(embeddings.norm(dim=-1), torch.ones(2, *grid))
    if grid == (4, 4):
        assert torch.allclose(embeddings, embed_patches(Patches(), images), atol=1e-6)
    dark = torch.full((1, 3, 56, 56), -3.0)
    dark[:, 0] = -0.485 / 0.229
    kept = embed_patches(Patches(), dark, patch_grid=grid, ignore_background=True)
    assert not kept.any()


def test_half_as_many_columns_hold_the_means_of_neighbours():
    images = torch.rand(2, 3, 56, 112)
    features = Patches()(images)
    halves = (features[..., 0::2] + features[..., 1::2]) / 2
    expected = F.normalize(halves, dim=1).movedim(1, -1)
    torch.testing.assert_close(embed_patches(Patches(), images, patch_grid=[4, 4]), expected)


@pytest.mark.parametrize("grid", [(4, 4), (4, 8), (3, 5), (5, 9)])
def test_a_patch_of_another_grid_is_background_only_where_all_of_it_is(grid):
    slices = torch.zeros(1, 1, 56, 112)
    slices[..., 17:24, 31:39] = 1.0
    images = prepare_slices(slices, 56, 14)
    found = embed_patches(Patches(), images, ignore_background=True, patch_grid=grid)
    lit = F.adaptive_max_pool2d(slices[0], grid)[0] > 0
    assert lit.sum() < 0.3 * lit.numel()
    assert torch.equal(found[0].any(dim=-1), lit)


@pytest.mark.parametrize("grid", [[4], [4, 4, 4], [0, 4], [4.5, 4], [], "32"])
def test_a_patch_grid_is_two_positive_whole_numbers(grid):
    with pytest.raises(ValueError, match="patch_grid must be two positive whole numbers, got"):
        AnomalyDetector(Patches(), DPMM(12, 5), patch_grid=grid)
    with pytest.raises(ValueError, match="patch_grid must be two positive whole numbers, got"):
        embed_patches(Patches(), torch.rand(1, 3, 56, 56), patch_grid=grid)


def test_maps_on_a_patch_grid_have_the_pixels_of_the_slices():
    detector = _detector(patch_grid=(8, 3))
    assert detector.embed(_healthy(2)).shape == (2, 8, 3, 12)
    assert detector(_healthy(2)).shape == (2, 1, 56, 56)


def test_background_scores_zero_and_has_no_component():
    detector = _detector(ignore_background=True)
    slices = torch.zeros(1, 1, 56, 56)
    slices[..., 14:28, 28:42] = 1.0
    slices[..., 14:21, 28:35] = 0.3
    scores, components = detector.nearest(detector.embed(slices))
    assert scores.nonzero().tolist() == [[0, 1, 2]]
    assert (components >= 0).nonzero().tolist() == [[0, 1, 2]]
    assert detector.maps(slices)[:, 1].min() == 0


@pytest.mark.parametrize("kind", SCORES)
def test_background_is_never_more_anomalous_than_any_patch(kind):
    detector = _detector(ignore_background=True, score=kind)
    slices = _marked(_healthy(4), 14, 28)
    slices[..., :28, :14] = 0
    embeddings = detector.embed(slices)
    scores, there = detector.patch_scores(embeddings), embeddings.any(dim=-1)
    assert not there.all()
    assert float(scores[~there].max()) <= float(scores[there].min())
    lowest = detector.mixture.lowest_score(kind)
    assert (scores[~there] == lowest).all()
    modes = detector.mixture.means[detector.mixture.surviving]
    best = detector.mixture.score(modes, kind).min()
    if kind != "mixture":  # attained at a mode; of a sum over components only a bound
        torch.testing.assert_close(best, lowest, rtol=1e-4, atol=1e-3)
    else:
        assert lowest <= best


def test_a_saved_detector_is_the_detector():
    detector = _detector()
    other = AnomalyDetector(Patches(), DPMM(12, 20, seed=9), image_size=56)
    other.load_state_dict(detector.state_dict())
    slices = _marked(_healthy(2), 14, 14)
    assert torch.equal(other(slices), detector(slices))
    assert other.threshold(0.05) == detector.threshold(0.05)


def test_thresholds_hold_on_the_patches_they_were_calibrated_on():
    detector = _detector()
    scores = torch.rand(1000)
    detector.calibrate(scores)
    assert [int((scores > detector.threshold(rate)).sum()) for rate in (0.01, 0.05, 0.1)] == [
        *(10, 50, 100)
    ]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("ignore_background", [False, True])
def test_a_traced_detector_gives_the_same_maps_for_other_slices(ignore_background):
    detector = _detector(ignore_background=ignore_background).eval()
    traced = torch.jit.trace(detector, _healthy(1))
    for shape in ((70, 70), (60, 40), (30, 100), (140, 140)):
        slices = torch.rand(3, 1, *shape)
        slices[:, :, :20] = 0
        torch.testing.assert_close(traced(slices), detector(slices), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_an_export_says_what_it_leaves_out():
    backbone = Patches()
    mixture = create_mixture(2, features=backbone.embedding_dim, components=4, place_grid=(2, 2))
    detector = AnomalyDetector(backbone, mixture, image_size=56).eval()
    for one in detector.mixtures:
        one.initialize(torch.nn.functional.normalize(torch.rand(20, one.features), dim=1))
    with pytest.warns(UserWarning, match="leaves out the other 1 of 2 slice directions: its maps"):
        torch.jit.trace(detector, _healthy(1))
    detector.mixtures[0].places.used.fill_(True)
    with pytest.warns(UserWarning, match="slice directions and where in the body a patch is"):
        torch.jit.trace(detector, _healthy(1))


def test_errors_name_argument_rule_and_value():
    mixture = DPMM(12, 5)
    with pytest.raises(ValueError, match=r"mixture must have the backbone's 12 features, got .*=7"):
        AnomalyDetector(Patches(), DPMM(7, 5))
    with pytest.raises(
        ValueError, match=r"false_positive_rates must lie in \(0, 1\), got \[0.5, 1"
    ):
        AnomalyDetector(Patches(), mixture, false_positive_rates=[0.5, 1.0])
    detector = AnomalyDetector(Patches(), mixture, image_size=56)
    with pytest.raises(ValueError, match=r"must be one of 0.01, 0.05, 0.1, got 0.2"):
        detector.threshold(0.2)
    with pytest.raises(RuntimeError, match="thresholds are not calibrated"):
        detector.threshold(0.05)
    with pytest.raises(RuntimeError, match="DPMM is not fitted"):
        detector(_healthy(1))
    assert math.isnan(detector.thresholds[0])


def test_a_state_dict_of_before_there_were_directions_and_places_loads():
    """Its thresholds are of patches: they hold for the paper's maps, and for no others."""
    x = torch.rand(64, 5)
    detector = AnomalyDetector(nn.Identity(), DPMM(5, 4))
    detector.mixture.initialize(x)
    detector.calibrate(torch.rand(1000))
    state = {name: value for name, value in detector.state_dict().items() if "moments" not in name}
    same = AnomalyDetector(nn.Identity(), DPMM(5, 4))
    same.load_state_dict(dict(state))
    assert torch.equal(same.thresholds, detector.thresholds)
    assert torch.equal(same.patch_scores(x), detector.patch_scores(x))
    placed = AnomalyDetector(nn.Identity(), DPMM(5, 4, place_grid=(2, 2, 2)))
    placed.load_state_dict(dict(state))
    assert placed.thresholds.isnan().all()
    assert torch.equal(placed.patch_scores(x), detector.patch_scores(x))
    refined = AnomalyDetector(nn.Identity(), DPMM(5, 4), refined=True)
    refined.load_state_dict(dict(state))
    assert refined.thresholds.isnan().all()
