"""The body is found in noisy air, on a real head and on shapes of every dimension."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.network.geometry import patch_places
from monai_dpmm.transforms.foreground import MaskForeground, body_box, body_mask
from monai_dpmm.transforms.intensity import air_is_zero, rescale_intensity


def _ball(side=40, radius=14.0):
    grid = np.indices((side,) * 3) - (side - 1) / 2
    return np.sqrt((grid**2).sum(0)) <= radius


def _noisy(body, noise=5.0):
    rng = np.random.default_rng(0)
    return (100 * body + np.abs(rng.normal(0, noise, body.shape))).astype(np.float32)


def test_the_body_is_found_in_noise():
    body = _ball()
    assert (body_mask(_noisy(body)) == body).mean() > 0.999


def test_holes_are_body_and_what_lies_apart_is_not():
    body, hole = _ball(), _ball(radius=5.0)
    scan = _noisy(body & ~hole)
    scan[:3, :3, :3] = 100
    found = body_mask(scan)
    assert found[hole].all()
    assert not found[:3, :3, :3].any()


def test_a_head_that_is_open_at_the_neck_is_filled():
    tube = np.zeros((40, 40, 20), bool)
    ring = _ball()[:, :, 20] & ~_ball(radius=9.0)[:, :, 20]
    tube[:] = ring[:, :, None]
    found = body_mask(_noisy(tube))
    assert found[20, 20].all()
    assert not found[0, 0].any()


@pytest.mark.parametrize("shape", [(1, 40, 40, 1), (1, 40, 40), (1, 40, 40, 5)])
def test_any_volume_or_image_keeps_its_shape(shape):
    disc = np.broadcast_to(_ball()[:, :, 20].reshape(40, 40, *(1,) * (len(shape) - 3)), shape[1:])
    scan = torch.from_numpy(_noisy(disc)[None])
    masked = MaskForeground()(scan)
    assert masked.shape == shape
    assert (masked[0].numpy()[~disc] == float(scan.min())).mean() > 0.99
    assert torch.equal(
        masked[0][torch.from_numpy(disc.copy())], scan[0][torch.from_numpy(disc.copy())]
    )


def test_metadata_is_kept():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    masked = MaskForeground()(MetaTensor(torch.from_numpy(_noisy(_ball())[None]), affine=affine))
    assert torch.equal(masked.affine.float(), affine)


@pytest.mark.slow
@pytest.mark.real_data
def test_air_around_a_real_head_is_left_out(real_data):
    scan = torch.from_numpy(nib.load(real_data / "chris_t1.nii.gz").get_fdata()).float()[None]
    noisy = scan + torch.rand_like(scan) * 4
    rescaled = rescale_intensity(MaskForeground()(noisy))[0].numpy()
    air = ndimage.binary_erosion(scan[0].numpy() <= 2, iterations=6, border_value=1)
    air &= ndimage.label(air)[0] == ndimage.label(air)[0][0, 0, 0]
    assert (rescale_intensity(noisy)[0].numpy()[air] > 0).mean() > 0.5
    assert (rescaled[air] == 0).mean() > 0.99
    assert (rescaled[scan[0].numpy() > 60] > 0).mean() > 0.98


def test_errors_name_argument_and_value():
    with pytest.raises(ValueError, match="closing must be at least 0, got -1"):
        MaskForeground(-1)
    with pytest.raises(ValueError, match="image must have one channel, got 2"):
        MaskForeground()(torch.rand(2, 20, 20, 20))


def _brain(seed, shape):
    """An ellipsoid of random size and place with values around 600, air of 0, and the ellipsoid."""
    rng = np.random.default_rng(seed)
    centre = np.array(shape) * rng.uniform(0.45, 0.55, len(shape)) - 0.5
    radii = np.array(shape) * rng.uniform(0.25, 0.4, len(shape))
    grid = np.moveaxis(np.indices(shape), 0, -1)
    body = (((grid - centre) / radii) ** 2).sum(-1) < 1
    return np.where(body, rng.normal(600, 120, shape), 0).astype(np.float32), body


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(24, 28, 20), (120, 96)])
def test_the_body_of_a_z_scored_scan_is_that_of_the_scan(seed, shape):
    array, body = _brain(seed, shape)
    z_scored = np.where(body, (array - array[body].mean()) / array[body].std(), 0)
    z_scored = z_scored.astype(np.float32)
    assert air_is_zero(torch.from_numpy(z_scored))
    assert not air_is_zero(torch.from_numpy(array))
    found = body_mask(z_scored)
    assert 2 * (found & body).sum() / (found.sum() + body.sum()) > 0.97
    rescaled = rescale_intensity(torch.from_numpy(z_scored)[None])[0].numpy()
    assert not rescaled[~body].any()
    assert (rescaled[body] > 0).mean() > 0.98
    expected = rescale_intensity(torch.from_numpy(array)[None])[0].numpy()
    assert np.abs(rescaled - expected).mean() < 0.01


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("air", ["noisy", "ringing", "ct"])
def test_the_body_is_found_in_other_air(seed, air):
    array, body = _brain(seed, (24, 28, 20))
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 15, array.shape)
    filled = {
        "noisy": np.where(body, array, np.abs(noise)),
        "ringing": array + np.where(body, 0, noise),
        "ct": np.where(body, array - 560, -1000 + noise),
    }[air].astype(np.float32)
    assert not air_is_zero(torch.from_numpy(filled))
    found = body_mask(filled)
    assert 2 * (found & body).sum() / (found.sum() + body.sum()) > 0.97


@pytest.mark.parametrize("name", ["29_zscore_bg0", "30_spline_ringing"])
def test_the_body_of_scans_that_went_wrong(cases, name):
    scan = LoadVolume()(cases / f"values/{name}.nii.gz")[0].numpy()
    reference = LoadVolume()(cases / "values/00_ref.nii.gz")[0].numpy() > 0
    found, expected = body_mask(scan), body_mask(reference.astype(np.float32))
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.9


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("low", "high"), [((3, 5, 7), (21, 40, 33)), ((4, 0), (30, 28))])
def test_the_box_is_that_of_the_body(low, high, channels):
    shape = (34, 46, 40)[: len(low)]
    scan = torch.zeros(channels, *shape)
    scan[(-1, *(slice(a, b) for a, b in zip(low, high, strict=True)))] = 0.002
    box = body_box(scan)
    assert box.dtype == torch.int64
    assert box.tolist() == [list(low), list(high)]
    places = patch_places(shape, (10, 10), 2, box)
    assert places.min() == 0
    assert places.max() == 1


def test_the_box_does_not_know_single_stray_voxels():
    body = torch.from_numpy(_ball()).float()[None]
    expected = body_box(body)
    stray = body.clone()
    stray[0, 0, 0, 0] = stray[0, -1, 20, 3] = stray[0, 20, 0, -1] = 1
    assert torch.equal(body_box(stray), expected)
    first = body[0].nonzero().amin(0)
    last = body[0].nonzero().amax(0) + 1
    assert ((expected - torch.stack([first, last])).abs() <= 1).all()


@pytest.mark.parametrize("shape", [(12, 7, 9), (2500, 3), (1, 1, 1)])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_the_box_is_the_whole_image_where_nothing_or_everything_is_body(shape, value):
    box = body_box(torch.full((1, *shape), value))
    assert box.tolist() == [[0] * len(shape), list(shape)]


def test_the_box_of_one_voxel():
    scan = torch.zeros(1, 5, 6, 7)
    scan[0, 2, 0, 6] = 1
    assert body_box(scan).tolist() == [[2, 0, 6], [3, 1, 7]]


def test_the_box_needs_an_image_with_channels():
    with pytest.raises(ValueError, match=r"image must be .* got shape \(4, 5\)"):
        body_box(torch.ones(4, 5))
