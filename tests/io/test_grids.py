"""Affines and sizes of every kind of file that has a place: those of the library that wrote it."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its documentation's name
import torch
from monai.data import MetaTensor
from nifti_files import MM, SHAPE, UNITS, grid_header, turn, write_nifti

from monai_dpmm.io.formats import volume_writer
from monai_dpmm.io.in_memory import image_in_memory
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.io.nifti import same_grid
from monai_dpmm.transforms.findings import anomaly_findings

VOXELS = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
LPS = np.diag([-1, -1, 1, 1])


def drawn(seed):
    """A turned and mirrored grid of voxels from 0.4 to 6 mm."""
    rng = np.random.default_rng(seed)
    axes = turn(rng) * rng.uniform(0.4, 6, 3) * rng.choice([-1, 1], 3)
    return nib.affines.from_matvec(axes, rng.uniform(-120, 120, 3))


@pytest.mark.parametrize("suffix", [".mgz", ".mgh"])
@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_freesurfer_file_lies_where_nibabel_has_it(tmp_path, suffix, placed, seed):
    image = nib.MGHImage(VOXELS, drawn(seed).astype(np.float32))
    image.header["goodRASFlag"] = placed
    nib.save(image, tmp_path / f"a{suffix}")
    volume = LoadVolume()(tmp_path / f"a{suffix}")
    expected = nib.load(tmp_path / f"a{suffix}").affine
    assert np.array_equal(volume.affine, expected)
    assert np.array_equal(volume[0], VOXELS)
    result = _written(volume, tmp_path)
    assert np.allclose(nib.load(result).affine, expected, atol=1e-4)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nhdr"])
@pytest.mark.parametrize("seed", range(4))
def test_an_itk_file_lies_where_itk_has_it(tmp_path, suffix, seed):
    affine = LPS @ drawn(seed)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(VOXELS.T)
    image.SetSpacing(sizes.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / sizes).ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    volume = LoadVolume()(tmp_path / f"a{suffix}")
    assert np.array_equal(volume[0], VOXELS)
    assert same_grid(volume.affine, LPS @ affine, SHAPE, tolerance=1e-3)
    result = sitk.ReadImage(str(_written(volume, tmp_path)))
    assert np.allclose(result.GetSpacing(), sizes, atol=1e-4)
    assert np.allclose(result.GetOrigin(), affine[:3, 3], atol=1e-3)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("seed", range(3))
def test_ml_and_mm_of_findings_are_right_in_every_unit(tmp_path, units, seed):
    header = grid_header("sform", seed, units=units)
    scan = write_nifti(tmp_path / "a.nii", header, VOXELS)
    volume = LoadVolume()(scan)
    mask = torch.zeros(SHAPE, dtype=torch.uint8)
    mask[2:5, 3:6, 1:4] = 1
    found = anomaly_findings(torch.rand(SHAPE), mask, volume.affine, threshold=0.0)
    affine = nib.load(scan).affine
    affine[:3] *= MM.get(units, 1)
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    (lesion,) = found["lesions"]
    assert lesion["volume_ml"] == pytest.approx(27 * voxel_ml, rel=1e-4)


@pytest.mark.parametrize(("seed", "kind"), itertools.product(range(3), ["array", "meta"]))
def test_a_scan_in_memory_lies_where_its_metadata_says(tmp_path, seed, kind):
    affine = drawn(seed)
    given = VOXELS if kind == "array" else MetaTensor(torch.tensor(VOXELS), affine=affine)
    image = image_in_memory(given)
    assert np.array_equal(image.affine, np.eye(4) if kind == "array" else affine)
    result = nib.load(_written(LoadVolume()(given), tmp_path))
    assert np.allclose(result.affine, image.affine, atol=1e-4)


def _written(volume, folder):
    """Path of a result on the volume's grid, as NIfTI."""
    writer = volume_writer(".nii.gz")(output_dtype=np.float32)
    writer.set_data_array(volume, channel_dim=0)
    writer.set_metadata(volume.meta, resample=False)
    writer.write(folder / "result.nii.gz")
    return folder / "result.nii.gz"
