"""Laws of the steps that make maps readable: smoothing, baseline, levelled slices."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from monai_dpmm.errors import InputError
from monai_dpmm.network.postprocessing import interpolated, less_baseline, levelled, smoothed

SHAPES = pytest.mark.parametrize("shape", [(40, 32), (24, 20, 16)])


def _ball(shape, radius=0.4):
    grid = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    return torch.stack(grid).square().sum(0).sqrt() < 2 * radius


@SHAPES
def test_a_constant_stays_constant_up_to_the_edge_of_the_foreground(shape):
    there = _ball(shape)
    anomaly = torch.where(there, 0.7, 0.0)
    assert torch.allclose(smoothed(anomaly, there, 3.0, [1.0] * len(shape)), anomaly, atol=1e-6)


@SHAPES
def test_far_from_the_edge_it_is_a_gaussian_filter_in_mm(shape):
    anomaly = torch.rand(shape)
    spacing = (0.5, 1.0, 3.0)[: len(shape)]
    there = torch.ones(shape, dtype=torch.bool)
    sigmas = [0.8 / mm for mm in spacing]
    expected = gaussian_filter(
        anomaly.double().numpy(), sigmas, mode="constant", truncate=8
    ) / gaussian_filter(np.ones(shape), sigmas, mode="constant", truncate=8)
    # scipy's kernel sums to one where it is cut off, the same factor above and below.
    assert np.allclose(smoothed(anomaly, there, 0.8, spacing), expected, atol=1e-5)


@SHAPES
def test_only_the_ratio_of_sigma_and_spacing_counts(shape):
    anomaly, there = torch.rand(shape), _ball(shape)
    spacing = [1.0 + axis for axis in range(len(shape))]
    one = smoothed(anomaly, there, 2.0, spacing)
    other = smoothed(anomaly, there, 5.0, [2.5 * mm for mm in spacing])
    assert torch.allclose(one, other, atol=1e-6)


def test_axes_may_be_exchanged():
    anomaly, there, spacing = torch.rand(12, 16, 20), _ball((12, 16, 20)), [1.0, 2.0, 0.7]
    order = (2, 0, 1)
    one = smoothed(anomaly, there, 1.5, spacing).permute(order)
    other = smoothed(
        anomaly.permute(order), there.permute(order), 1.5, [spacing[axis] for axis in order]
    )
    assert torch.allclose(one, other, atol=1e-6)


def test_slices_much_further_apart_than_sigma_are_smoothed_each_alone():
    anomaly, there = torch.rand(20, 20, 5), _ball((20, 20, 5))
    volume = smoothed(anomaly, there, 1.0, [1.0, 1.0, 20.0])
    for z in range(5):
        alone = smoothed(anomaly[:, :, z], there[:, :, z], 1.0, [1.0, 1.0])
        assert torch.allclose(volume[:, :, z], alone, atol=1e-6)


def test_a_point_keeps_its_place_and_far_from_the_edge_its_mass():
    anomaly, there = torch.zeros(41, 41, 41), torch.ones(41, 41, 41, dtype=torch.bool)
    anomaly[20, 22, 18] = 1.0
    result = smoothed(anomaly, there, 2.0, [1.0] * 3)
    assert result.sum().item() == pytest.approx(1, abs=1e-4)
    assert np.unravel_index(int(result.argmax()), result.shape) == (20, 22, 18)


@SHAPES
def test_air_has_no_say_and_stays_as_it_is(shape):
    anomaly, there = torch.rand(shape), _ball(shape)
    other = torch.where(there, anomaly, 100 * torch.rand(shape))
    one, two = (smoothed(x, there, 2.0, [1.0] * len(shape)) for x in (anomaly, other))
    assert torch.equal(one[there], two[there])
    assert torch.equal(two[~there], other[~there])


def test_sigma_of_zero_changes_nothing_and_no_foreground_is_left_alone():
    anomaly, there = torch.rand(9, 9), _ball((9, 9))
    assert torch.equal(smoothed(anomaly, there, 0.0, [1.0, 1.0]), anomaly)
    nothing = torch.zeros_like(there)
    assert torch.equal(smoothed(anomaly, nothing, 2.0, [1.0, 1.0]), anomaly)


@SHAPES
def test_the_median_of_the_foreground_is_zero_afterwards_and_the_order_stays(shape):
    anomaly, there = torch.rand(shape), _ball(shape)
    result, median = less_baseline(anomaly, there)
    assert result[there].median() == 0
    assert torch.equal(median, anomaly[there].median())
    assert torch.equal(result.flatten().argsort(), anomaly.flatten().argsort())


def test_what_is_added_to_a_whole_scan_is_taken_off():
    anomaly, there = torch.rand(30, 30, dtype=torch.float64), _ball((30, 30))
    plain, low = less_baseline(anomaly, there)
    brighter, high = less_baseline(anomaly + 5, there)
    assert torch.allclose(plain, brighter)
    assert float(high - low) == pytest.approx(5)


def test_a_lesion_of_less_than_half_stands_out_by_what_it_adds():
    anomaly, there = torch.full((30, 30), 0.2), torch.ones(30, 30, dtype=torch.bool)
    anomaly[:12] = 0.9
    assert less_baseline(anomaly, there)[0][:12].unique().tolist() == pytest.approx([0.7])
    anomaly[:18] = 0.9
    assert less_baseline(anomaly, there)[0][:12].unique().tolist() == [0.0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_differs_from_slice_to_slice_goes_and_the_scans_own_median_stays(axis):
    there = torch.ones(12, 10, 8, dtype=torch.bool)
    noise = torch.rand(12, 10, 8, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 40, noise.shape[axis])
    level = levelled(
        noise + ramp.view([-1 if side == axis else 1 for side in range(3)]), there, axis
    )
    spread = level.movedim(axis, 0).flatten(1).median(1).values
    before = ramp.max() - ramp.min()
    assert float(spread.max() - spread.min()) == pytest.approx(float(before) / 11, rel=0.1)
    flat = torch.full((12, 10, 8), 3.0)
    assert torch.equal(levelled(flat, there, axis), flat)


def test_a_lesion_of_less_than_half_of_its_slices_stays():
    anomaly, there = torch.zeros(20, 20, 20), torch.ones(20, 20, 20, dtype=torch.bool)
    anomaly[5:14, 5:14, 5:14] = 1
    for axis in range(3):
        assert torch.equal(levelled(anomaly, there, axis), anomaly)


def test_levelling_changes_nothing_outside_the_foreground():
    anomaly, there = torch.rand(9, 9, 9), _ball((9, 9, 9))
    result = levelled(anomaly, there, 1)
    assert torch.equal(result[~there], anomaly[~there])
    assert not torch.equal(result[there], anomaly[there])


def test_errors_name_argument_rule_and_value():
    anomaly, there = torch.rand(4, 4), torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"foreground must be bool of shape \(4, 4\).*\(4, 5\)"):
        smoothed(anomaly, torch.ones(4, 5, dtype=torch.bool), 1.0, [1, 1])
    with pytest.raises(ValueError, match=r"foreground must be bool .* torch.float32"):
        less_baseline(anomaly, there.float())
    with pytest.raises(ValueError, match="sigma_mm must be at least 0, got -1"):
        smoothed(anomaly, there, -1, [1, 1])
    with pytest.raises(ValueError, match=r"spacing must be 2 positive lengths.*\[1, 1, 1\]"):
        smoothed(anomaly, there, 1, [1, 1, 1])
    with pytest.raises(ValueError, match=r"spacing must be 2 positive lengths.*\[1, 0\]"):
        smoothed(anomaly, there, 1, [1, 0])
    with pytest.raises(ValueError, match="foreground must have voxels, got none"):
        less_baseline(anomaly, ~there)
    with pytest.raises(ValueError, match="foreground must have voxels, got none"):
        levelled(anomaly[None], ~there[None], 0)


def _scored(volume, step):
    """Maps of every step-th slice of (S, H, W), each voxel of which has component 1."""
    maps = torch.stack([volume, torch.ones_like(volume)], dim=1)
    return maps[::step]


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_a_map_that_is_linear_along_an_axis_is_interpolated_exactly(step):
    volume = torch.arange(16.0)[:, None, None] * torch.rand(4, 5) + torch.rand(4, 5)
    result = interpolated(_scored(volume, step), step, 16)
    last = 15 // step * step
    assert torch.allclose(result[: last + 1, 0], volume[: last + 1], atol=1e-5)
    assert torch.equal(result[last:, 0], volume[last].expand(16 - last, 4, 5))
    alone = interpolated(_scored(volume, step)[:, :1], step, 16)
    assert torch.allclose(result[:, :1], alone, atol=1e-5)
    assert (result[:, 1] == 1).all()


def test_background_does_not_darken_what_lies_beside_it():
    maps = torch.tensor([[5.0, 3], [0, 0], [7, 9]])[:, :, None, None]  # anomaly, component
    result = interpolated(maps, 4, 9)[:, :, 0, 0]
    assert result[:4, 0].tolist() == [5, 5, 5, 5]
    assert result[4].tolist() == [0, 0]
    assert result[5:, 0].tolist() == [7, 7, 7, 7]
    assert result[:, 1].tolist() == [3, 3, 3, 3, 0, 9, 9, 9, 9]


def test_between_slices_the_component_is_that_of_the_nearer_one():
    maps = torch.tensor([[0.0, 3], [6, 9]])[:, :, None, None]
    result = interpolated(maps, 3, 4)[:, :, 0, 0]
    assert result[:, 1].tolist() == [3, 3, 9, 9]
    assert torch.allclose(result[:, 0], torch.tensor([0.0, 2, 4, 6]))


@pytest.mark.parametrize(("count", "step"), [(9, 2), (6, 2), (4, 0), (3, 1)])
def test_maps_that_are_not_those_of_every_step_th_slice_are_an_error(count, step):
    with pytest.raises(InputError, match=rf"maps must.*{count}.*got 4.*step={step}"):
        interpolated(torch.zeros(4, 2, 3, 3), step, count)
