"""Scans are cut to their body, and maps come back onto the whole grid."""

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from monai_dpmm.transforms.cropping import CropToBodyd
from monai_dpmm.transforms.orientation import OrientScand

AFFINE = torch.tensor([[-2.0, 0, 0, 5], [0, 0, 3, 7], [0, 1, 0, -9], [0, 0, 0, 1]]).double()
BOX = {3: (slice(2, 6), slice(3, 8), slice(1, 5)), 2: (slice(2, 6), slice(3, 8))}


def _scan(dimensions):
    voxels = torch.zeros(1, *(9, 10, 7)[:dimensions])
    voxels[0][BOX[dimensions]] = 1 + torch.rand(voxels[0][BOX[dimensions]].shape)
    affine = AFFINE if dimensions == 3 else torch.eye(3).double()
    return MetaTensor(voxels, affine=affine)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_box_is_around_all_that_is_above_0(dimensions):
    scan = _scan(dimensions)
    cut = CropToBodyd("image")({"image": scan})["image"]
    assert torch.equal(cut.as_tensor()[0], scan.as_tensor()[0][BOX[dimensions]])
    corner = scan.affine @ torch.tensor([*(s.start for s in BOX[dimensions]), 1.0]).double()
    assert torch.allclose(cut.affine[:, -1], corner)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("lowest", [0.5, -3.0])
def test_a_map_comes_back_with_nothing_outside_above_it(dimensions, lowest):
    steps = Compose([OrientScand("image", "PLI"), CropToBodyd("image")])
    scan = _scan(dimensions)
    data = steps({"image": scan})
    data["pred"] = MetaTensor(torch.rand(data["image"].shape) + lowest).copy_meta_from(
        data["image"]
    )
    expected = data["pred"].clone()
    back = Invertd("pred", steps, "image", nearest_interp=False, to_tensor=True)(data)["pred"]
    assert back.shape == scan.shape
    assert torch.allclose(back.affine, scan.affine)
    inside = back.as_tensor()[0][BOX[dimensions]]
    assert torch.allclose(inside.sort().values.sum(), expected.as_tensor().sum(), atol=1e-4)
    outside = torch.ones(scan.shape[1:], dtype=torch.bool)
    outside[BOX[dimensions]] = False
    assert (back.as_tensor()[0][outside] == min(0, float(expected.min()))).all()


def test_a_scan_of_background_stays_whole_and_other_keys_are_cut_alike():
    empty = MetaTensor(torch.zeros(1, 4, 5, 6))
    assert CropToBodyd("image")({"image": empty})["image"].shape == empty.shape
    scan = _scan(3)
    label = MetaTensor(torch.arange(630.0).view(1, 9, 10, 7), affine=AFFINE)
    cut = CropToBodyd(["image", "label"])({"image": scan, "label": label})["label"]
    assert torch.equal(cut.as_tensor()[0], label.as_tensor()[0][BOX[3]])
