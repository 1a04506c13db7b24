"""Where the body of a scan is, along whatever axis its slices are taken."""

import pytest
import torch
from monai.data import MetaTensor

from monai_dpmm.study.bodies import body_of


def body(shape, box, axis=2, step=1, spacing=None):
    """The body of a scan that is 1 in a box and 0 elsewhere."""
    image = torch.zeros(1, *shape)
    image[(0, *(slice(a, b) for a, b in box))] = 1
    if spacing is not None:
        image = MetaTensor(image, affine=torch.diag(torch.tensor([*spacing, 1.0])))
    return body_of({"image": "a.nii"}, lambda item: {"image": image}, axis, step)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_along_every_axis(axis):
    box = [(2, 6), (0, 10), (4, 8)]
    one = body((8, 10, 12), box, axis, spacing=(1.0, 2.0, 3.0))
    sides = [0, 1, 2]
    sides.remove(axis)
    assert torch.equal(one.slices, one.foreground.movedim(axis, 0))
    assert one.slice_spacing == tuple(float((axis, *sides)[i] + 1) for i in range(3))


def test_every_other_slice():
    one = body((4, 4, 9), [(0, 4), (0, 4), (0, 9)], step=2, spacing=(1.0, 1.0, 5.0))
    assert one.slices.shape == (5, 4, 4)
    assert one.slice_spacing == (10.0, 1.0, 1.0)


def test_slices_at_most_a_distance_apart():
    scan = MetaTensor(torch.ones(1, 4, 4, 9), affine=torch.diag(torch.tensor([1.0, 1, 1.5, 1])))
    one = body_of({"image": "a.nii"}, lambda item: {"image": scan}, 2, 2, spacing_mm=4)
    assert one.slices.shape == (3, 4, 4)  # every second of every second
    assert one.slice_spacing == (6.0, 1.0, 1.0)


def test_a_picture_is_one_slice():
    one = body((8, 12), [(0, 8), (4, 8)])
    assert one.slices.shape == (1, 8, 12)
    assert one.slice_spacing == (1.0, 1.0, 1.0)
