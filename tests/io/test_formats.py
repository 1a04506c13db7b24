"""NIfTI, NRRD and MetaImage hold the same volume, for other readers and for the report."""

import json
import re

import itk
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own name for itself
import torch
from dicom_files import headers, write_series
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from PIL import Image
from workflows import run_bundle

from monai_dpmm import LoadVolume, volume_writer
from monai_dpmm.io.formats import SaveVolumed, saved_beside
from monai_dpmm.io.result_files import scan_name
from monai_dpmm.report.volumes import subject_volume, subject_volumes

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
TYPES = (np.float32, np.uint8, np.uint16)
# turned about two axes, voxels of 0.5 x 1.5 x 4 mm, and one with a tilted gantry
TURN = np.array([[0.8, -0.6, 0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]])
OBLIQUE = nib.affines.from_matvec(TURN * [0.5, 1.5, 4], [-31.5, 12, 77])
SHEARED = nib.affines.from_matvec([[1, 0, 0], [0, 1, 0.75], [0, 0, 3]], [-10, 20, 30])


def _saved(folder, suffix, dtype, affine=OBLIQUE, shape=(4, 5, 6)):
    """A volume of the type's own values as the bundle saves it: array and path."""
    values = np.arange(np.prod(shape)).reshape(shape)
    array = (values / 7 if dtype == np.float32 else values * 500 % 65521).astype(dtype)
    tensor = torch.from_numpy(array.astype(np.float32))[None]
    image = MetaTensor(tensor, affine=torch.from_numpy(affine), meta={"filename_or_obj": "a.nii"})
    options = {"output_dtype": dtype, "resample": False, "print_log": False}
    save = SaveImaged(
        "x", output_dir=folder, output_postfix="map", output_ext=suffix, **options,
        writer=volume_writer(suffix), savepath_in_metadict=True,
    )  # fmt: skip
    return array, save({"x": image})["x"].meta["saved_to"]


def _read(path):
    """Array, type and RAS affine of a file, by nibabel or by SimpleITK."""
    if path.endswith((".nii", ".nii.gz")):
        image = nib.load(path)
        return np.asanyarray(image.dataobj), image.affine
    image = sitk.ReadImage(path)
    direction = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine = nib.affines.from_matvec(direction, image.GetOrigin())
    return sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED], ids=["oblique", "sheared"])
def test_a_volume_is_read_back_as_it_was(tmp_path, suffix, dtype, affine):
    array, path = _saved(tmp_path, suffix, dtype, affine)
    assert path.endswith(f"/a/a_map{suffix}")
    read, read_affine = _read(path)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)
    np.testing.assert_allclose(read_affine, affine, atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_itk_reads_spacing_origin_and_direction(tmp_path, suffix):
    array, path = _saved(tmp_path, suffix, np.float32)
    image = itk.imread(path)
    np.testing.assert_allclose(image.GetSpacing(), [0.5, 1.5, 4], rtol=1e-5)
    np.testing.assert_allclose(image.GetOrigin(), [31.5, -12, 77], rtol=1e-5)
    direction = itk.array_from_matrix(image.GetDirection())
    np.testing.assert_allclose(direction, np.diag([-1, -1, 1]) @ TURN, atol=1e-5)
    np.testing.assert_array_equal(itk.array_from_image(image).T, array)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("shape", [(4, 5, 1), (4, 5)])
def test_one_slice_and_an_image_are_saved_as_one_slice(tmp_path, suffix, shape):
    array, path = _saved(tmp_path, suffix, np.uint8, shape=shape)
    read, affine = _read(path)
    np.testing.assert_array_equal(read, array.reshape(4, 5, 1))
    np.testing.assert_allclose(affine[:2, :2], OBLIQUE[:2, :2], atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_report_reads_every_format_the_same(tmp_path, suffix):
    array, path = _saved(tmp_path, suffix, np.uint16)
    _, scan = _saved(tmp_path / "scan", ".nii.gz", np.float32)
    volumes, spacing, affine = subject_volumes({"image": scan, "anomaly": path})
    expected = nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.int32), OBLIQUE))
    np.testing.assert_array_equal(volumes["anomaly"], expected.dataobj)
    np.testing.assert_allclose(affine, expected.affine, atol=1e-5)
    np.testing.assert_allclose(spacing, nib.affines.voxel_sizes(expected.affine), rtol=1e-5)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_the_report_shows_a_picture_upright(tmp_path, suffix):
    pixels = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)  # rows from above, columns
    Image.fromarray(pixels).save(tmp_path / f"photo{suffix}")
    image = LoadVolume()(tmp_path / f"photo{suffix}")
    options = {"resample": False, "print_log": False, "savepath_in_metadict": True}
    save = SaveImaged("x", output_dir=tmp_path, writer=volume_writer(".nii.gz"), **options)
    anomaly = save({"x": image})["x"].meta["saved_to"]
    files = {"image": tmp_path / f"photo{suffix}", "anomaly": anomaly}
    volumes, spacing, affine = subject_volumes(files)
    for key in ("image", "anomaly"):
        np.testing.assert_array_equal(volumes[key], pixels.T)
    assert (tuple(spacing), affine) == ((1, 1, 1), None)


@pytest.mark.parametrize("content", [b"", b"no volume", None])
def test_the_report_names_a_file_that_it_cannot_read(tmp_path, content):
    path = tmp_path / "mask.nrrd"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"mask must be a readable volume, got {path}: "):
        subject_volume({"mask": path}, "mask")


def test_the_report_refuses_colours(tmp_path):
    path = tmp_path / "image.mha"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.float32), isVector=True), path)
    with pytest.raises(ValueError, match=r"image must be a readable volume, got .*one channel"):
        subject_volume({"image": path}, "image")


def test_the_report_reads_a_tilted_series_where_it_lies(tmp_path):
    volume = np.random.default_rng(0).integers(1, 900, (7, 6, 5))
    write_series(tmp_path / "scan", volume, directions=(1, 0, 0, 0, 0.8, -0.6))
    for file, dataset in headers(tmp_path / "scan"):
        dataset.ImagePositionPatient = [0, 0, 2 * dataset.InstanceNumber]
        dataset.save_as(file)
    image = LoadVolume()(tmp_path / "scan")
    save = SaveImaged(
        "x", output_dir=tmp_path, writer=volume_writer(".nii.gz"), resample=False,
        print_log=False, savepath_in_metadict=True,
    )  # fmt: skip
    saved = save({"x": image})["x"].meta["saved_to"]
    volumes, _, affine = subject_volumes({"image": tmp_path / "scan", "anomaly": saved})
    np.testing.assert_array_equal(volumes["image"], volumes["anomaly"])
    np.testing.assert_allclose(abs(affine[:3, 2]), [0, 0, 2], atol=1e-5)


@pytest.mark.parametrize("suffix", ["", "nrrd", ".nhdr", ".NRRD", ".foo"])
def test_another_suffix_is_refused(suffix):
    message = f"output_ext must be one of .nii.gz, .nii, .nrrd, .mha, got '{suffix}'"
    with pytest.raises(ValueError, match=re.escape(message)):
        volume_writer(suffix)


@pytest.mark.parametrize("name", ["1.2.840.113.7", "ct", "sub-01.2"])
def test_results_of_a_folder_have_its_whole_name(tmp_path, name):
    write_series(tmp_path / "scans" / name, np.random.default_rng(0).integers(1, 900, (7, 6, 5)))
    image = LoadVolume()(tmp_path / "scans" / name)
    save = SaveVolumed(
        "x", output_dir=tmp_path / "out", output_postfix="mask", writer=volume_writer(".nii.gz"),
        resample=False, print_log=False, savepath_in_metadict=True,
        data_root_dir=tmp_path / "scans",
    )  # fmt: skip
    saved = save({"x": image})["x"]
    assert saved.meta["saved_to"] == str(tmp_path / "out" / name / f"{name}_mask.nii.gz")
    assert saved_beside(saved, "mask.dcm") == tmp_path / "out" / name / f"{name}_mask.dcm"
    assert scan_name(str(tmp_path / "scans" / name)) == name


def test_a_volume_that_was_not_saved_has_nothing_beside_it():
    assert saved_beside(torch.zeros(1, 2, 2), "findings.json") is None
    assert saved_beside(MetaTensor(torch.zeros(1, 2, 2)), "findings.json") is None


@pytest.mark.slow
def test_an_unknown_suffix_ends_inference_in_one_line(trained, cohort, tmp_path):
    result = run_bundle(
        "run",
        ["inference", str(trained / "models/model.json")],
        expect=1,
        ckpt_dir=trained / "models",
        dataset_dir=cohort / "test/images",
        output_dir=tmp_path / "out",
        output_ext=".foo",
    )
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: output_ext must be one of")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_inference_writes_nrrd_with_findings_and_a_report(trained, cohort, tmp_path):
    source = nib.load(cohort / "test/images/test_000.nii.gz")
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(source.get_fdata(), OBLIQUE), tmp_path / "scans/a.nii.gz")
    run_bundle(
        "run",
        ["inference", str(trained / "models/model.json")],
        ckpt_dir=trained / "models",
        dataset_dir=tmp_path / "scans",
        output_dir=tmp_path / "out",
        output_ext=".nrrd",
    )
    written = sorted(file.name for file in (tmp_path / "out/a").iterdir())
    volumes = [f"a_{kind}.nrrd" for kind in ("anomaly", "component", "mask")]
    assert written == sorted([*volumes, "a_findings.json"])
    types = dict(zip(volumes, (np.float32, np.uint16, np.uint8), strict=True))
    arrays = {}
    for name, dtype in types.items():
        arrays[name], affine = _read(str(tmp_path / "out/a" / name))
        assert arrays[name].dtype == dtype
        assert arrays[name].shape == source.shape
        np.testing.assert_allclose(affine, OBLIQUE, atol=1e-4)
    findings = json.loads((tmp_path / "out/a/a_findings.json").read_text())
    voxel_ml = 0.5 * 1.5 * 4 / 1000
    assert findings["mask_volume_ml"] == pytest.approx(arrays["a_mask.nrrd"].sum() * voxel_ml)
    assert arrays["a_anomaly.nrrd"].max() == pytest.approx(findings["lesions"][0]["peak_score"])
    peak = nib.affines.apply_affine(np.linalg.inv(OBLIQUE), findings["lesions"][0]["peak_mm"])
    assert arrays["a_anomaly.nrrd"].argmax() == np.ravel_multi_index(
        peak.round().astype(int), source.shape
    )
    assert (tmp_path / "out/report/report.html").is_file()
