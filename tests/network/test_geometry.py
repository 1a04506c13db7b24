import pytest
import torch
from torch.nn import functional as F

from monai_dpmm.network.geometry import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    extract_slices,
    foreground_patches,
    image_shape,
    patch_places,
    prepare_slices,
    resize_maps,
    resize_slices,
    square_shape,
    stack_slices,
    upsample_components,
    upsample_scores,
    usable_axes,
)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_round_trip_on_every_axis(axis):
    volume = torch.rand(2, 5, 6, 7)
    slices = extract_slices(volume, axis)
    assert slices.shape[0] == volume.shape[axis + 1]
    assert torch.equal(slices[3], volume.select(axis + 1, 3))
    assert torch.equal(stack_slices(slices, axis), volume)


def test_slices_are_views_and_an_image_is_one_slice():
    volume = torch.rand(1, 5, 6, 7)
    assert extract_slices(volume, 0).untyped_storage().data_ptr() == (
        volume.untyped_storage().data_ptr()
    )
    assert extract_slices(volume[..., 0]).shape == (1, 1, 5, 6)


@pytest.mark.parametrize(
    ("shape", "size", "multiple", "expected"),
    [
        ((240, 240), 448, 14, (448, 448)),
        ((512, 1024), 448, 14, (448, 896)),  # RESC, as the paper
        ((1024, 512), 448, 14, (896, 448)),
        ((197, 233), 448, 14, (448, 532)),
        ((16, 16), 224, 16, (224, 224)),
        ((100, 101), 224, 16, (224, 224)),
    ],
)
def test_image_shape_keeps_the_aspect_in_whole_patches(shape, size, multiple, expected):
    assert image_shape(shape, size, multiple) == expected


@pytest.mark.parametrize("shape", [(240, 240), (197, 233), (301, 64)])
def test_image_shape_distorts_by_at_most_half_a_patch(shape):
    height, width = image_shape(shape, 448, 14)
    ratio, target = max(shape) / min(shape), max(height, width) / min(height, width)
    assert abs(target - ratio) <= 7 / 448 + 1e-9


def test_prepared_slices_are_on_imagenets_scale():
    images = prepare_slices(torch.full((2, 1, 30, 40), 0.25), 56, 14)
    assert images.shape == (2, 3, 56, 70)
    for channel in range(3):
        expected = (0.25 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        assert images[:, channel].allclose(torch.tensor(expected), atol=1e-5)


def test_resizing_keeps_places():
    """The centre of mass of a blob stays at the same relative place: no shift of half a pixel."""
    slices = torch.zeros(1, 1, 40, 60)
    slices[..., 10:14, 40:44] = 1
    image = prepare_slices(slices, 280, 14)[0, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    rows = (image.sum(1) * (torch.arange(280) + 0.5)).sum() / image.sum() / 280
    columns = (image.sum(0) * (torch.arange(420) + 0.5)).sum() / image.sum() / 420
    assert rows.item() == pytest.approx(12 / 40, abs=2e-3)
    assert columns.item() == pytest.approx(42 / 60, abs=2e-3)


def test_upsampled_scores_peak_in_their_patch_and_keep_the_range():
    scores = torch.zeros(1, 8, 8)
    scores[0, 2, 5] = 1
    map_ = upsample_scores(scores, (81, 79))
    row, column = divmod(int(map_.argmax()), 79)
    assert (int(row / 81 * 8), int(column / 79 * 8)) == (2, 5)
    assert map_.min() >= 0
    assert map_.max() <= 1


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((53, 15), (4, 12), (53, 45)),
        ((15, 53), (12, 4), (45, 53)),
        ((64, 10), (1, 8), (64, 80)),
        ((64, 48), (0.7, 0.7), (64, 48)),
        ((64, 48), (1, 1.01), (64, 48)),  # rounded
        ((512, 24), (1, 8), (512, 192)),  # long in pixels only
    ],
)
def test_square_pixels_cover_the_slice_in_mm(shape, spacing, expected):
    assert square_shape(shape, spacing) == expected


def test_slices_that_fit_are_not_copied():
    slices = torch.rand(2, 1, 8, 6)
    assert resize_slices(slices, (8, 6)) is slices


@pytest.mark.parametrize("spacing", [(4, 1), (1, 3)])
def test_maps_by_way_of_square_pixels_are_the_maps(spacing):
    """Up to the corners of the piecewise linear map, which a slice's own pixels may cut."""
    scores, labels = torch.rand(2, 5, 4), torch.randint(9, (2, 5, 4))
    own = (60 // spacing[0], 60 // spacing[1])
    direct = torch.cat([upsample_scores(scores, own), upsample_components(labels, own)], dim=1)
    square = square_shape(own, spacing)
    fine = torch.cat([upsample_scores(scores, square), upsample_components(labels, square)], dim=1)
    maps = resize_maps(fine, own)
    assert torch.allclose(maps[:, 0], direct[:, 0], atol=0.05)
    assert torch.equal(maps[:, 1], direct[:, 1])


def test_upsampled_components_are_labels():
    labels = torch.tensor([[[3, 499], [7, 0]]])
    map_ = upsample_components(labels, (6, 6))
    assert map_.unique().tolist() == [0, 3, 7, 499]
    assert (map_[0, 0, :3, 3:] == 499).all()


def test_errors_name_argument_rule_and_value():
    with pytest.raises(ValueError, match="axis must be 0, 1 or 2, got 3"):
        extract_slices(torch.rand(1, 2, 2, 2), 3)
    with pytest.raises(ValueError, match=r"volume must be .* got shape \(2, 2\)"):
        extract_slices(torch.rand(2, 2))
    with pytest.raises(ValueError, match=r"slices must be \(S, C, H, W\), got shape \(2, 2\)"):
        stack_slices(torch.rand(2, 2))
    with pytest.raises(ValueError, match="axis must be 0, 1 or 2, got -1"):
        stack_slices(torch.rand(1, 2, 2, 2), -1)
    with pytest.raises(ValueError, match="size must be a positive multiple of 14, got 450"):
        image_shape((10, 10), 450, 14)
    with pytest.raises(ValueError, match="at most 8 times as long as wide, got 512x24"):
        image_shape((512, 24), 448, 14)
    for spacing in ((9.0, 1.0), (0.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match=rf"at most 8 times .* got {spacing[0]:g}x1 mm"):
            square_shape((10, 10), spacing)
    with pytest.raises(ValueError, match=r"slices must be \(S, 1, H, W\) or"):
        prepare_slices(torch.rand(1, 2, 9, 9), 14, 14)


def test_foreground_patches_are_those_with_any_voxel_above_zero():
    slices = torch.zeros(2, 1, 40, 40)
    slices[0, 0, 12, 31] = 0.2
    images = prepare_slices(slices, 56, 14)
    there = foreground_patches(images, (4, 4))
    assert there.nonzero()[:, 0].unique().tolist() == [0]
    assert there[0, 1, 3]
    assert there.sum() <= 4  # the resized voxel may reach into a neighbour
    assert foreground_patches(prepare_slices(slices + 0.5, 56, 14), (4, 4)).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_places_of_patches_are_those_of_their_voxels(axis):
    """Coordinates of the voxels, cut into slices and averaged over patches, are the places."""
    shape = (8, 12, 16)
    centres = [(torch.arange(n) + 0.5) / n for n in shape]
    volume = torch.stack(torch.meshgrid(*centres, indexing="ij"))
    slices = extract_slices(volume, axis)
    grid = (slices.shape[2] // 2, slices.shape[3] // 4)
    expected = F.avg_pool2d(slices, (2, 4)).movedim(1, -1)
    torch.testing.assert_close(patch_places(shape, grid, axis), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_places_are_relative_to_the_body(axis):
    """A body in a larger volume has the places that it has alone; what is beyond, its faces."""
    low, size, shape = torch.tensor([2, 4, 8]), (8, 12, 16), (14, 20, 32)
    box = torch.stack([low, low + torch.tensor(size)])
    inner = [size[i] for i in range(3) if i != axis]
    outer = [shape[i] for i in range(3) if i != axis]
    alone = patch_places(size, tuple(inner), axis)
    whole = patch_places(shape, tuple(outer), axis, box)
    assert whole.shape == (shape[axis], *outer, 3)
    assert (whole.min(), whole.max()) == (0, 1)
    volume = whole.movedim(0, axis)
    x, y, z = (slice(int(a), int(a) + n) for a, n in zip(low, size, strict=True))
    torch.testing.assert_close(volume[x, y, z], alone.movedim(0, axis))


def test_places_of_a_picture():
    places = patch_places((8, 6), (4, 3))
    assert places.shape == (1, 4, 3, 3)
    assert (places[..., 2] == 0.5).all()
    torch.testing.assert_close(places[0, :, 0, 0], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    torch.testing.assert_close(places[0, 2, :, 1], torch.tensor([1 / 6, 0.5, 5 / 6]))


def test_places_outside_their_rules():
    with pytest.raises(ValueError, match=r"shape must be .*, got \(3,\)"):
        patch_places((3,), (1, 1))
    with pytest.raises(ValueError, match="axis must be 0, 1 or 2, got 3"):
        patch_places((3, 3, 3), (1, 1), 3)
    for box in ([[0, 0, 2], [3, 3, 2]], [[0, 0, 0], [3, 3, 4]], [[-1, 0, 0], [3, 3, 3]]):
        with pytest.raises(ValueError, match=r"box must lie in the volume \(3, 3, 3\), got"):
            patch_places((3, 3, 3), (1, 1), 2, torch.tensor(box))


@pytest.mark.parametrize(
    ("shape", "spacing", "axes"),
    [
        ((240, 240, 155), (1, 1, 1), [2, 0, 1]),
        ((240, 240, 155), (1, 1, 2), [2, 0, 1]),
        ((512, 512, 30), (0.5, 0.5, 5), [2]),
        ((30, 512, 512), (5, 0.5, 0.5), [0]),
        ((256, 256, 20), (1, 1, 1), [2]),
        ((64, 64, 64), (1, 3, 7), [0]),
        ((20, 20, 20), (1, 30, 900), [2]),
    ],
)
def test_directions_that_suit_a_volume(shape, spacing, axes):
    chosen = usable_axes((2, 0, 1), shape, spacing)
    assert [axis for _, axis in chosen] == axes
    assert all((2, 0, 1)[number] == axis for number, axis in chosen)


def test_one_axis_is_always_taken_and_a_picture_is_one_slice():
    assert usable_axes((1,), (512, 512, 30), (0.5, 0.5, 5)) == [(0, 1)]
    assert usable_axes((2, 0, 1), (40, 30), (1, 1)) == [(0, 2)]
