import pytest
import torch

from monai_dpmm.metrics.evaluation_size import protocol_size, resized


def test_sizes_by_name():
    assert [protocol_size(name) for name in ("native", "224", 448)] == [None, 224, 448]
    with pytest.raises(ValueError, match="protocol must be one of native, 224, 448, got 'big'"):
        protocol_size("big")


def test_a_map_linear_in_place_stays_linear():
    """Pixel centres are kept in place, borders aside: no shift by half a pixel."""
    ramp = (torch.arange(64) + 0.5) / 64
    smooth, mask = resized(ramp.expand(32, 64), (ramp > 0.5).expand(32, 64), 16)
    assert smooth[0].tolist() == pytest.approx(((torch.arange(16) + 0.5) / 16).tolist())
    assert torch.equal(mask, (smooth > 0.5))


def test_the_size_that_an_image_has_changes_nothing():
    scores, mask = torch.rand(224, 224), torch.rand(224, 224) > 0.5
    smooth, kept = resized(scores[..., None], mask[..., None], 224)
    assert torch.equal(smooth, scores)
    assert torch.equal(kept, mask)


def test_a_mask_stays_a_mask_of_about_its_share():
    y, x = torch.meshgrid(torch.arange(240), torch.arange(240), indexing="ij")
    disc = (y - 100) ** 2 + (x - 140) ** 2 < 50**2
    kept = resized(disc.float(), disc, 224)[1]
    assert kept.dtype == torch.bool
    assert kept.float().mean() == pytest.approx(float(disc.float().mean()), rel=0.01)


def test_volumes_are_refused():
    with pytest.raises(ValueError, match=r"for 2D images, got a volume of shape \(4, 5, 6\)"):
        resized(torch.rand(4, 5, 6), torch.rand(4, 5, 6) > 0.5, 224)
