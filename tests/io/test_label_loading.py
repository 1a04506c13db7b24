"""Masks on the image's own grid, by either convention, and zeros for what is healthy."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Orientationd
from PIL import Image

from monai_dpmm.errors import InputError
from monai_dpmm.io.label_loading import LoadLabeld
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.transforms.dictionary import LoadVolumed


def _picture(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return str(path)


@pytest.fixture
def slices(tmp_path):
    """An image (6 rows, 8 columns) and a mask of BraTS2021's grey levels, a column each."""
    image = _picture(tmp_path / "image.png", np.arange(48).reshape(6, 8))
    levels = np.repeat([0, 58, 122, 255], 2)
    return image, _picture(tmp_path / "mask.png", np.tile(levels, (6, 1)))


@pytest.mark.parametrize(("rule", "columns"), [("positive", 6), ("255", 2), (255, 2)])
def test_two_conventions_of_what_is_lesion(slices, rule, columns):
    image, mask = slices
    load = Compose([LoadVolumed("image"), LoadLabeld(rule=rule)])
    label = load({"image": image, "label": mask, "anomalous": True})["label"]
    assert label.dtype == torch.uint8
    assert label.shape == (1, 8, 6)
    assert label[0].any(dim=1).tolist() == [False] * (8 - columns) + [True] * columns


def test_a_healthy_image_gets_zeros_of_its_own_grid(slices, tmp_path):
    image, _ = slices
    volume = nib.Nifti1Image(np.random.default_rng(0).random((4, 5, 6)), np.eye(4))
    nib.save(volume, tmp_path / "scan.nii.gz")
    turn = Orientationd("image", axcodes="SPR", labels=None)
    for path, shape in ((image, (1, 8, 6)), (str(tmp_path / "scan.nii.gz"), (1, 4, 5, 6))):
        steps = [LoadVolumed("image"), *([turn] if len(shape) == 4 else []), LoadLabeld()]
        result = Compose(steps)({"image": path, "anomalous": False})
        assert result["label"].shape == shape
        assert not result["label"].any()
        assert result["anomalous"] is False  # which the metrics read


def test_what_is_missing_or_does_not_fit_is_named(slices, tmp_path):
    image, _ = slices
    loaded = {"image": LoadVolume()(image)}
    for unknown in ({}, {"anomalous": True}):
        with pytest.raises(InputError, match=r"image.png: must have a mask of its lesions"):
            LoadLabeld()(loaded | unknown)
    other = _picture(tmp_path / "other.png", np.ones((6, 7)))
    with pytest.raises(InputError, match=r"other.png: must have the image's size \(8, 6\), got"):
        LoadLabeld()(loaded | {"label": other})
    with pytest.raises(ValueError, match="rule must be one of positive, 255, got 'grey'"):
        LoadLabeld(rule="grey")


def test_a_grey_picture_in_colours_is_grey_and_a_mask_in_colour_is_refused(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    opaque = np.dstack([grey] * 3 + [np.full_like(grey, 255)])
    for name, array in (("rgb", np.dstack([grey] * 3)), ("rgba", opaque)):
        path = _picture(tmp_path / f"{name}.png", array)
        assert torch.equal(LoadVolume()(path)[0].as_tensor(), torch.from_numpy(grey.T).float())
    with pytest.raises(InputError, match="must have one channel"):
        LoadVolume(allow_constant=True)(
            _picture(tmp_path / "colour.png", np.dstack([grey, grey, grey[::-1]]))
        )


def test_a_mask_may_be_of_one_value(tmp_path):
    mask = _picture(tmp_path / "mask.png", np.zeros((6, 8)))
    assert not LoadVolume(allow_constant=True)(mask).any()
    with pytest.raises(InputError, match="must not be constant"):
        LoadVolume()(mask)


@pytest.mark.parametrize(("moved", "fits"), [(0.0, True), (0.05, True), (0.2, False), (9, False)])
def test_a_mask_lies_on_the_images_grid_in_parts_of_a_voxel(tmp_path, moved, fits):
    affine = np.diag([0.5, 2.0, 5, 1])
    other = affine.copy()
    other[:3, 3] = moved * affine[:3, 2]
    voxels = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "image.nii.gz")
    nib.save(nib.Nifti1Image((voxels > 0.5).astype(np.uint8), other), tmp_path / "mask.nii.gz")
    data = {"image": LoadVolume()(tmp_path / "image.nii.gz"), "label": tmp_path / "mask.nii.gz"}
    if fits:
        assert LoadLabeld()(data)["label"].sum() == (voxels > 0.5).sum()
    else:
        with pytest.raises(InputError, match=r"mask\.nii\.gz: must lie on the image's grid"):
            LoadLabeld()(data)


def test_a_mask_that_is_mirrored_is_refused(tmp_path):
    voxels = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "image.nii")
    nib.save(nib.Nifti1Image(voxels, np.diag([-1, 1, 1, 1])), tmp_path / "mask.nii")
    data = {"image": LoadVolume()(tmp_path / "image.nii"), "label": tmp_path / "mask.nii"}
    with pytest.raises(InputError, match=r"mask\.nii: must lie on the image's grid.*image\.nii"):
        LoadLabeld()(data)
