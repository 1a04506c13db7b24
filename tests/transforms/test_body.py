"""The body in every kind of air: padding, noise, ghosts, CT, and none; and its box."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.network.geometry import patch_places
from monai_dpmm.transforms.body import body_box, body_mask
from monai_dpmm.transforms.intensity import air_is_zero, rescale_intensity


def _dice(found, expected):
    return 2 * (found & expected).sum() / (found.sum() + expected.sum())


def _radius(shape, rng, size=1.0):
    """Distance from a random centre as a share of random radii, 1 on an ellipsoid's surface."""
    centre = np.array(shape) * rng.uniform(0.46, 0.54, len(shape)) - 0.5
    radii = np.array(shape) * rng.uniform(0.34, 0.42, len(shape)) * size
    grid = np.moveaxis(np.indices(shape), 0, -1)
    return np.sqrt((((grid - centre) / radii) ** 2).sum(-1))


def _head(shape, rng, size=1.0, scalp=100.0):
    """Brain of 100 with dark ventricles, black bone, scalp; and where head and brain are."""
    r = _radius(shape, rng, size)
    head = np.where(r < 1, scalp, 0.0)
    head[r < 0.92] = 2
    head[r < 0.85] = 100 + rng.normal(0, 10, (r < 0.85).sum())
    head[r < 0.2] = 15
    return head, r < 1, r < 0.85


def _rician(clean, sigma, rng):
    noise = rng.normal(0, sigma, (2, *clean.shape))
    return np.hypot(clean + noise[0], noise[1]).astype(np.float32)


SHAPES = [(56, 64, 48), (160, 140)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scalp", [60.0, 100.0, 600.0])
@pytest.mark.parametrize("sigma", [1.0, 5.0])
def test_a_head_in_noise_whatever_its_scalp(seed, shape, scalp, sigma):
    rng = np.random.default_rng(seed)
    clean, head, brain = _head(shape, rng, scalp=scalp)
    found = body_mask(_rician(clean, sigma, rng))
    assert _dice(found, head) > 0.97
    assert found[brain].all()


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_offset_and_grey_levels_of_noise_do_not_matter(shape):
    rng = np.random.default_rng(0)
    clean, head, _ = _head(shape, rng, scalp=200)
    noisy = _rician(clean, 4, rng)
    for scan in (noisy * 1e-4, noisy * 50 + 700, noisy - 70, noisy.astype(np.uint8)):
        assert _dice(body_mask(scan.astype(np.float32)), head) > 0.97


@pytest.mark.parametrize("shape", SHAPES)
def test_ghosts_are_air(shape):
    rng = np.random.default_rng(0)
    clean, head, _ = _head(shape, rng)
    ghost = 0.12 * np.roll(clean, shape[1] // 2, axis=1)
    assert _dice(body_mask(_rician(clean + ghost, 2, rng)), head) > 0.96


@pytest.mark.parametrize("width", [1, 12])
@pytest.mark.parametrize("shape", SHAPES)
def test_padding_around_noisy_air_is_air(shape, width):
    rng = np.random.default_rng(0)
    clean, head, _ = _head(shape, rng, scalp=300)
    noisy = np.pad(_rician(clean, 4, rng), width)
    assert _dice(body_mask(noisy), np.pad(head, width)) > 0.97


@pytest.mark.parametrize("shape", SHAPES)
def test_a_body_smaller_than_a_tenth_of_the_image(shape):
    rng = np.random.default_rng(0)
    clean, head, _ = _head(shape, rng, size=0.35)
    assert head.mean() < 0.07
    assert _dice(body_mask(_rician(clean, 4, rng)), head) > 0.93


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("air", [0.0, -3.0, 1e4, -1024.0])
def test_dark_rims_of_a_skull_stripped_brain_are_body(seed, shape, air):
    rng = np.random.default_rng(seed)
    r = _radius(shape, rng)
    values = np.where(r > 0.9, 25, 100) + rng.normal(0, 6, shape)
    if air == 1e4:
        values += 2e4
    elif air < 0:
        values += air + 10 if air == -3 else 0
    scan = np.where(r < 1, values, air).astype(np.float32)
    assert _dice(body_mask(scan), r < 1) > 0.98


def test_padding_brighter_than_the_body_is_air():
    rng = np.random.default_rng(0)
    r = _radius((160, 140), rng)
    scan = np.where(r < 1, rng.normal(90, 25, r.shape).clip(0, 254), 255).astype(np.float32)
    assert _dice(body_mask(scan), r < 1) > 0.98


def test_specks_beside_a_brain_are_not_body():
    rng = np.random.default_rng(0)
    r = _radius((56, 64, 48), rng)
    specks = rng.random(r.shape) < 0.03
    scan = np.where(r < 1, rng.normal(90, 15, r.shape), specks * 2.0).astype(np.float32)
    assert _dice(body_mask(scan), r < 1) > 0.97


def _ct(rng, padding=None, table=True):
    """A chest of 80 x 96 x 30 voxels with lungs, on a table; and where it is."""
    shape = (80, 96, 30)
    x, y, _ = np.indices(shape)
    body = ((x - 40) / 30) ** 2 + ((y - 46) / 24) ** 2 < 1
    scan = np.full(shape, -1000.0) + rng.normal(0, 12, shape)
    scan[body] = rng.normal(40, 15, body.sum())
    scan[((x - 28) / 9) ** 2 + ((y - 46) / 12) ** 2 < 1] = -850
    scan[((x - 54) / 9) ** 2 + ((y - 46) / 12) ** 2 < 1] = -850
    if table:
        scan[10:70, 72:75] = 100
    if padding is not None:
        scan[(x - 39.5) ** 2 + (y - 47.5) ** 2 > 40**2] = padding
    return scan.clip(min=-1024 if padding is None else padding).astype(np.float32), body


@pytest.mark.parametrize("padding", [None, -1024, -2000, -3024])
@pytest.mark.parametrize("table", [False, True])
def test_a_ct_is_the_body_with_its_lungs_without_table_and_padding(padding, table):
    scan, body = _ct(np.random.default_rng(0), padding, table)
    assert _dice(body_mask(scan), body) > 0.99


def test_ct_stored_with_an_offset_of_1024():
    scan, body = _ct(np.random.default_rng(0), table=False)
    assert _dice(body_mask(scan + 1024), body) > 0.98


def _pictures():
    rng = np.random.default_rng(0)
    shape = (192, 160)
    rayleigh = np.hypot(*rng.normal(0, 1, (2, *shape)))
    smooth = ndimage.gaussian_filter(rng.normal(0, 1, shape), 10)
    tissue = 60 + 20 * np.log10(rayleigh + 1e-3) + 15 * smooth / smooth.std()
    depth = np.linspace(0, 1, shape[0])[:, None]
    return {
        "uniform": rng.random(shape),
        "normal": rng.normal(0, 1, shape),
        "speckle": rayleigh,
        "exponential": rng.exponential(1, shape),
        "smooth": smooth,
        "ramp": depth + rng.normal(0, 0.02, shape),
        "checkerboard": np.indices(shape).sum(0) // 16 % 2 + rng.normal(0, 0.1, shape),
        "ultrasound": (tissue - 20 * depth).clip(0, 60).round(),
        "volume": ndimage.gaussian_filter(rng.normal(0, 1, (40, 40, 40)), 2),
        "constant": np.full(shape, 3.0),
    }


@pytest.mark.parametrize("kind", _pictures())
def test_of_a_picture_without_air_everything_is_body(kind):
    assert body_mask(_pictures()[kind].astype(np.float32)).all()


def test_both_legs_are_body_and_a_hand_beside_them_is_not():
    rng = np.random.default_rng(0)
    x, y, _ = np.indices((96, 64, 40))
    left, right, thumb = (
        (x - a) ** 2 + (y - b) ** 2 < r * r for a, b, r in ((28, 30, 15), (68, 32, 13), (10, 58, 3))
    )
    clean = np.where(left | right | thumb, 100.0, 0.0)
    assert _dice(body_mask(_rician(clean, 4, rng)), left | right) > 0.97


def test_gaps_are_closed_by_the_same_distance_along_thick_slices():
    rng = np.random.default_rng(0)
    clean = np.zeros((60, 60, 12))
    clean[20:40, 20:40, [2, 3, 4, 6, 7, 8]] = 100
    noisy = _rician(clean, 3, rng)
    assert not body_mask(noisy, 3, (1, 1, 8))[22:38, 22:38, 5].any()
    assert body_mask(noisy, 3)[22:38, 22:38, 5].all()
    ring = _radius((80, 80), rng)
    open_ring = np.where((ring < 1) & (ring > 0.7), 100.0, 0.0)
    open_ring[:, 39:43] *= np.arange(80)[:, None] > 40
    tube = _rician(np.repeat(open_ring[..., None], 12, axis=2), 3, rng)
    assert _dice(body_mask(tube, 3, (1, 1, 8)), np.repeat((ring < 1)[..., None], 12, 2)) > 0.97


def test_a_dark_place_that_the_image_cuts_open_is_body():
    rng = np.random.default_rng(0)
    clean, head, _ = _head((160, 140), rng, scalp=300)
    cut = slice(0, 100)
    clean[60:100, 60:80] = 0
    found = body_mask(_rician(clean, 3, rng)[cut])
    assert _dice(found, head[cut]) > 0.97
    assert found[60:, 60:80].all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2), (3, 1, 5), (8, 8, 8), (1, 300), (40, 50, 1)])
@pytest.mark.parametrize("kind", ["zero", "noise", "point"])
def test_any_size_is_taken(shape, kind):
    scan = np.zeros(shape, np.float32)
    if kind == "noise":
        scan += np.random.default_rng(0).random(shape, np.float32)
    if kind == "point":
        scan[tuple(side // 2 for side in shape)] = 5
    found = body_mask(scan)
    assert found.shape == shape
    assert found.dtype == bool
    assert found[tuple(side // 2 for side in shape)]


def test_the_scan_stays_as_it_is():
    rng = np.random.default_rng(0)
    scan = _rician(_head((40, 44, 36), rng)[0], 3, rng)
    before = scan.copy()
    body_mask(scan)
    assert (scan == before).all()


@pytest.mark.slow
@pytest.mark.real_data
def test_no_lesion_of_real_slices_is_lost(real_slices):
    shares = []
    for image in sorted(real_slices.glob("test/Ungood/img/*.png")):
        picture = np.asarray(Image.open(image).convert("L"), np.float32)
        lesion = np.asarray(Image.open(image.parents[1] / "label" / image.name)) > 0
        found = body_mask(picture)
        assert found[lesion].all(), image.name
        shares.append(found.mean())
    assert len(shares) > 100
    assert max(shares) < 0.85


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("name", ["MNI152_2009_template", "FLAIR", "brainmask"])
def test_real_brains_without_skull_are_kept_whole(real_data, name):
    (file,) = real_data.glob(f"{name}.*")
    scan = LoadVolume()(file)[0].numpy()
    assert _dice(body_mask(scan), scan > 0) > 0.97
    assert body_mask(scan)[scan > 0].mean() > 0.98
    z_scored = np.where(scan > 0, (scan - scan[scan > 0].mean()) / scan[scan > 0].std(), 0)
    assert _dice(body_mask(z_scored.astype(np.float32)), scan > 0) > 0.97


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
    body = torch.from_numpy(_radius((40, 40, 40), np.random.default_rng(0)) < 1).float()[None]
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
