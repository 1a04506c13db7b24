"""Air around a real head and around shapes of every dimension is masked, and told apart later."""

import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_dpmm.transforms.foreground import (
    MaskForeground,
    body_mask,
    warn_if_all_foreground,
)
from monai_dpmm.transforms.intensity import RescaleIntensity, rescale_intensity


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
    with pytest.raises(ValueError, match="image must have one channel or three, got 2"):
        MaskForeground()(torch.rand(2, 20, 20, 20))


def _named(scan, name="a.nii.gz"):
    return MetaTensor(torch.as_tensor(scan)[None], meta={"filename_or_obj": name})


@pytest.mark.parametrize("offset", [0.0, -100.0, 700.0])
@pytest.mark.parametrize("window", [None, (40, 80)])
def test_a_rescaled_voxel_is_0_if_and_only_if_it_is_not_body(offset, window):
    body = _ball()
    scan = _noisy(body)
    scan[18:22, 18:22, 18:22] = scan.min()  # as dark as can be, within
    scan += offset
    if window is not None:
        window = (window[0] + offset, window[1] + offset)
    found = body_mask(scan)
    assert found[18:22, 18:22, 18:22].all()
    masked = MaskForeground()(_named(scan))
    rescaled = RescaleIntensity(window=window, floor=0.002)(masked)[0].numpy()
    assert ((rescaled > 0) == found).all()
    assert rescaled[found].min() == np.float32(0.002)
    plain = RescaleIntensity(window=window)(masked)[0].numpy()
    assert (rescaled == np.where(found, plain.clip(min=np.float32(0.002)), 0)).all()


def test_of_colours_the_mean_decides_and_dark_channels_stay_body():
    body = _ball()[:, :, 20]
    scan = np.stack([_noisy(body), 0.3 * _noisy(body), np.zeros(body.shape)]).astype(np.float32)
    found = body_mask(scan.mean(0))
    masked = MaskForeground()(torch.from_numpy(scan))
    assert masked.shape == scan.shape
    assert (masked.numpy()[:, ~found] == scan.min()).all()
    rescaled = RescaleIntensity(floor=0.002)(masked).numpy()
    assert ((rescaled > 0).all(0) == found).all()
    assert ((rescaled > 0).any(0) == found).all()


def test_whole_numbers_are_masked_too():
    body = _ball()
    scan = torch.from_numpy(_noisy(body)).to(torch.int16)[None]
    rescaled = RescaleIntensity(floor=0.002)(MaskForeground()(scan))
    assert ((rescaled[0].numpy() > 0) == body_mask(scan[0].float().numpy())).all()


def test_a_picture_without_air_is_body_and_says_so_once():
    picture = np.random.default_rng(0).random((60, 50), np.float32)
    with pytest.warns(UserWarning, match=r"x\.png: no air was found: the whole image"):
        masked = MaskForeground()(_named(picture, "x.png"))
    assert (masked[0].numpy() == picture).all()
    assert RescaleIntensity(floor=0.002)(masked).min() == np.float32(0.002)
    assert RescaleIntensity()(masked).min() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MaskForeground()(_named(picture, "y.png"))


def test_a_foreground_that_leaves_out_nothing_is_a_warning_once():
    scan = _named(np.ones((4, 5), np.float32), "scan.nii")
    everything, half = torch.ones(3, 8, 8, dtype=torch.bool), torch.arange(8) < 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_all_foreground(half, scan)
    with pytest.warns(UserWarning, match=r"scan\.nii: .*set mask_foreground=true"):
        warn_if_all_foreground(everything, scan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_all_foreground(everything, scan)


def test_no_advice_where_air_has_been_looked_for():
    picture = np.random.default_rng(0).random((60, 50), np.float32)
    with pytest.warns(UserWarning, match="no air"):
        masked = MaskForeground()(_named(picture))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_all_foreground(torch.ones(4, dtype=torch.bool), masked)
