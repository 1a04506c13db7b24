"""Every input of the folder of cases, which real files went wrong like, as its page expects."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch

from monai_dpmm.errors import InputError
from monai_dpmm.io.datalist import datalist
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.io.survey import survey
from monai_dpmm.transforms.dictionary import MaskForegroundd
from monai_dpmm.transforms.slicing import ExtractSlices, NormalizeSlices

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")


@pytest.mark.parametrize(
    "name",
    [
        *(f"H-pixdim/in/{n}" for n in ("p1_affine_sform_code4", "p2_qform0_pixdim1")),
        *("H-pixdim/in/p3_qform0_pixdim_rounded", "H-pixdim/06_sform_ok_pixdim_zero"),
    ],
)
def test_the_grid_is_nibabels(cases, name):
    file = cases / f"geometry/{name}.nii.gz"
    np.testing.assert_allclose(LoadVolume()(file).affine, nib.load(file).affine, atol=1e-5)


def test_a_head_is_not_mirrored(cases):
    file = cases / "hostile/flip.nii"
    np.testing.assert_array_equal(LoadVolume()(file).affine, nib.load(file).affine)


def test_one_frame_is_a_volume_and_complex_is_refused(cases):
    (series,) = (cases / "geometry/H-4d1").iterdir()
    assert LoadVolume()(series).ndim == 4
    (other,) = (cases / "geometry/H-complex").iterdir()
    with pytest.raises(InputError, match="complex numbers"):
        LoadVolume()(other)


@pytest.mark.parametrize("name", ["01_nan_background", "29_zscore_bg0", "30_spline_ringing"])
def test_the_foreground_is_found(cases, name):
    data = {"image": LoadVolume()(cases / f"values/{name}.nii.gz")}
    image = MaskForegroundd("image")(data)["image"].as_tensor()
    share = float((image > image.min()).float().mean())
    assert 0.1 < share < 0.6


@pytest.mark.parametrize("name", ["04_qfac_zero", "09_q_s_differ", "10_units_metre"])
def test_grids_as_nibabel_has_them(cases, name):
    file = nib.load(cases / f"values/{name}.nii.gz")
    unit = 1000 if file.header.get_xyzt_units()[0] == "meter" else 1
    affine = np.diag([unit, unit, unit, 1]) @ file.affine
    np.testing.assert_allclose(
        LoadVolume()(cases / f"values/{name}.nii.gz").affine, affine, rtol=1e-4
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_a_head_of_long_pixels_is_not_squeezed(cases, axis):
    volume = LoadVolume()(cases / "values/32_sagittal_thick.nii.gz")
    images = NormalizeSlices(112, 14)(ExtractSlices(axis)(volume))
    sides = np.delete(np.array(volume.shape[1:]) * volume.pixdim.numpy(), axis)
    assert images.shape[2] / images.shape[3] == pytest.approx(sides[0] / sides[1], rel=0.15)


def test_dicom_without_suffixes_equals_that_with_them(cases):
    assert survey(cases / "dicom/01_noext").images == [cases / "dicom/01_noext"]
    found, reference = (LoadVolume()(cases / f"dicom/{name}") for name in ("01_noext", "00_ref"))
    assert torch.equal(found.as_tensor(), reference.as_tensor())
    assert torch.equal(found.affine, reference.affine)


def test_two_series_in_a_folder_are_two_scans(cases):
    items = datalist(cases / "dicom/03_two_series", "test")
    assert [item["image"].rsplit("/", 1)[1] for item in items] == ["A001.dcm", "B001.dcm"]
    assert [tuple(LoadVolume()(i["image"]).shape) for i in items] == [(1, 44, 53, 43)] * 2


def test_a_report_beside_a_series_is_counted(cases):
    found = survey(cases / "dicom/06_with_sr")
    assert found.images == [cases / "dicom/06_with_sr"]
    assert [len(files) for files in found.left_out.values()] == [1]
    assert LoadVolume()(cases / "dicom/06_with_sr").shape == (1, 44, 53, 43)


def test_values_of_pet_are_exact(cases):
    files = [pydicom.dcmread(file) for file in (cases / "dicom/08_pet_slopes").iterdir()]
    files.sort(key=lambda file: float(file.ImagePositionPatient[2]))
    slices = [f.pixel_array.T * float(f.RescaleSlope) + float(f.RescaleIntercept) for f in files]
    expected = torch.from_numpy(np.stack(slices, -1)).float()
    assert torch.equal(LoadVolume()(cases / "dicom/08_pet_slopes")[0].as_tensor(), expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dicom/21_mosaic", "is a mosaic"),
        ("hostile/seg.mha", "1 to 4 axes, got '-1'"),
        ("hostile/seg.nrrd", "3 values for its field centers, got"),
        ("hostile/dicom_palette", "must be grey, got PALETTE COLOR"),
        ("hostile/loop.tif", "leads back to itself"),
        ("hostile/dicom_20000_sequences", "no readable DICOM file"),
    ],
)
def test_what_crashes_or_misleads_a_library_is_one_line(cases, name, message):
    with pytest.raises(InputError, match=message) as caught:
        LoadVolume()(cases / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert LoadVolume()(cases / "dicom/00_ref").shape == (1, 44, 53, 43)


def test_pictures_are_taken(cases):
    shapes = {f.name: LoadVolume()(f).shape[0] for f in (cases / "pictures/P/in").iterdir()}
    assert shapes == {"colour.png": 3, "la.png": 1, "p.png": 1, "t.tiff": 1}
    one, other = (LoadVolume()(cases / f"pictures/P/in/{n}") for n in ("p.png", "t.tiff"))
    assert torch.equal(one.as_tensor(), other.as_tensor())
