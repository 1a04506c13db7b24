"""Any grid goes in and comes out: axis order, direction, spacing, shear, size and type."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Invertd, Orientationd

from monai_dpmm.engines.inferer import AnomalyInferer
from monai_dpmm.transforms.dictionary import LoadVolumed, RescaleIntensityd

TURN = np.array([[0.8, -0.6, 0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]])
OBLIQUE = nib.affines.from_matvec(TURN * [0.5, 1.5, 4], [-31.5, 12, 77])
SHEARED = nib.affines.from_matvec([[1, 0, 0], [0, 1, 0.75], [0, 0, 3]], [-10, 20, 30])
ORIENTATIONS = [
    "".join(signs)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for signs in itertools.product(*axes)
]


def _bright(slices):
    """A network whose anomaly score is the intensity, above what it calls dark."""
    return (slices - 0.5).clamp_min(0)


def _scan(path, array, affine):
    image = nib.Nifti1Image(array, affine)
    image.set_data_dtype(array.dtype)
    nib.save(image, path)
    return path


def _anomaly(path, axis=2, batch_size=3, orientation="PLI"):
    """The anomaly volume of a scan, by the transforms of configs/inference.json."""
    preprocessing = Compose(
        [
            LoadVolumed("image"),
            Orientationd("image", axcodes=orientation, labels=None),
            RescaleIntensityd("image", percentiles=(0, 100)),
        ]
    )
    item = preprocessing({"image": path})
    item["pred"] = AnomalyInferer(axis, batch_size)(item["image"][None], _bright)[0]
    invert = Invertd("pred", preprocessing, "image", nearest_interp=False, to_tensor=True)
    return invert(item)["pred"]


def _marked(shape, voxel, dtype=np.float32, seed=0):
    """A dim volume with one bright voxel."""
    array = np.random.default_rng(seed).integers(1, 50, shape).astype(dtype)
    array[voxel] = 120
    return array


def _assert_at(anomaly, voxel, source):
    image = nib.load(source)
    assert tuple(anomaly.shape[1:]) == image.shape
    assert np.allclose(anomaly.affine, image.affine, atol=1e-4)
    flat = int(anomaly.as_tensor().flatten().argmax())
    assert np.unravel_index(flat, image.shape) == voxel
    assert int((anomaly.as_tensor() > 0).sum()) == 1


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED], ids=["oblique", "sheared"])
def test_a_voxel_comes_back_in_every_orientation(tmp_path, codes, affine):
    image = nib.Nifti1Image(_marked((11, 8, 9), (7, 1, 3)), affine)
    change = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(change)
    nib.save(turned, tmp_path / "scan.nii")
    voxel = np.unravel_index(int(np.asarray(turned.dataobj).argmax()), turned.shape)
    _assert_at(_anomaly(tmp_path / "scan.nii"), voxel, tmp_path / "scan.nii")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("orientation", ["PLI", "RAS", "SPR"])
def test_a_voxel_comes_back_along_every_axis(tmp_path, axis, batch_size, orientation):
    source = _scan(tmp_path / "scan.nii.gz", _marked((7, 10, 5), (6, 0, 2)), OBLIQUE)
    _assert_at(_anomaly(source, axis, batch_size, orientation), (6, 0, 2), source)


@pytest.mark.parametrize(
    ("shape", "voxel"),
    [
        ((16, 16, 16), (15, 0, 15)),
        ((40, 30, 1), (39, 2, 0)),
        ((1, 40, 30), (0, 3, 29)),
        ((1024, 1024, 2), (1000, 3, 1)),
        ((17, 1023, 3), (16, 1022, 0)),
    ],
)
def test_sizes_from_a_single_slice_to_a_thousand_voxels(tmp_path, shape, voxel):
    source = _scan(tmp_path / "scan.nii", _marked(shape, voxel), np.diag([0.5, 0.5, 0.5, 1]))
    for axis in (0, 1, 2):
        _assert_at(_anomaly(source, axis, batch_size=7), voxel, source)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64]
)
def test_types_of_voxels(tmp_path, dtype):
    source = _scan(tmp_path / "scan.nii", _marked((9, 8, 7), (8, 7, 0), dtype), np.eye(4))
    _assert_at(_anomaly(source), (8, 7, 0), source)


def test_scaled_integers_are_read_in_their_units(tmp_path):
    """Slope and intercept, as CT has them."""
    array = _marked((9, 8, 7), (8, 7, 0), np.int16)
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    nib.save(image, tmp_path / "scan.nii")
    loaded = LoadVolumed("image")({"image": tmp_path / "scan.nii"})["image"]
    assert torch.equal(loaded[0], torch.from_numpy(2.0 * array - 1024).float())


@pytest.mark.slow
@pytest.mark.real_data
def test_a_tilted_gantry_keeps_its_grid(real_data, tmp_path):
    image = nib.load(real_data / "shear.nii.gz")
    array = _marked(image.shape, (200, 40, 50))
    source = _scan(tmp_path / "scan.nii.gz", array, image.affine)
    _assert_at(_anomaly(source, batch_size=16), (200, 40, 50), source)
