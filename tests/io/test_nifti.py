"""A scan and its results lie in one place, for nibabel and for ITK, whatever the header is like."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own name for itself
from monai.transforms import Compose, Invertd, Orientationd
from nifti_files import KINDS, MM, SHAPE, UNITS, grid_header, write_nifti
from workflows import run_bundle

from monai_dpmm.errors import InputError
from monai_dpmm.io.formats import SaveVolumed, volume_writer
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.io.nifti import read_nifti, same_grid
from monai_dpmm.transforms.dictionary import LoadVolumed

VOXELS = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
CASES = (
    *("geometry/H-pixdim/06_sform_ok_pixdim_zero.nii.gz", "hostile/flip.nii"),
    *("geometry/H-pixdim/in/p1_affine_sform_code4.nii.gz",),
    *("geometry/H-pixdim/in/p2_qform0_pixdim1.nii.gz",),
    *("geometry/H-pixdim/in/p3_qform0_pixdim_rounded.nii.gz",),
    *("geometry/H-4d1/02_4d_one_frame.nii.gz", "values/00_ref.nii.gz"),
    *("values/04_qfac_zero.nii.gz", "values/09_q_s_differ.nii.gz"),
    *("values/10_units_metre.nii.gz", "values/32_sagittal_thick.nii.gz"),
)


def _result(file, folder, suffix=".nii.gz"):
    """Path of a result of a scan: loaded, turned, turned back and saved as the bundle does."""
    preprocessing = Compose(
        [LoadVolumed("image"), Orientationd("image", axcodes="PLI", labels=None)]
    )
    item = preprocessing({"image": file})
    item["pred"] = item["image"] * 2
    item = Invertd("pred", preprocessing, "image", nearest_interp=False, to_tensor=True)(item)
    save = SaveVolumed(
        "pred", output_dir=folder, output_postfix="anomaly", output_ext=suffix, resample=False,
        writer=volume_writer(suffix), print_log=False, savepath_in_metadict=True,
    )  # fmt: skip
    return save(item)["pred"].meta["saved_to"]


def _itk_grid(file):
    """Size, spacing, origin and direction by ITK, or that it refuses the file."""
    try:
        image = sitk.ReadImage(str(file))
    except RuntimeError:
        return "refused"
    grid = (image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return image.GetSize()[:3], *(values[: 9 if len(values) == 9 else 3] for values in grid)


def _assert_one_place(scan, result):
    """nibabel and ITK see a result where they see its scan."""
    source, image = nib.load(scan), nib.load(result)
    assert np.array_equal(image.affine, source.affine)
    assert type(image) is type(source)
    for name in ("qform_code", "sform_code"):
        assert image.header[name] == source.header[name]
    assert image.header.get_xyzt_units()[0] == source.header.get_xyzt_units()[0]
    assert image.shape == source.shape[:3]
    assert _itk_grid(result) == _itk_grid(scan)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("nifti2", [False, True], ids=["nifti1", "nifti2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_affine_is_nibabels_in_mm_and_results_lie_on_the_scan(tmp_path, kind, nifti2, units):
    seed = [*map(ord, kind), nifti2, UNITS[units]]
    header = grid_header(kind, seed, nifti2=nifti2, units=units)
    scan = write_nifti(tmp_path / "a.nii.gz", header, VOXELS)
    volume = LoadVolume()(scan)
    expected = nib.load(scan).affine
    expected[:3] *= MM.get(units, 1)
    assert np.array_equal(volume.affine, expected)
    assert np.array_equal(volume[0], VOXELS)
    _assert_one_place(scan, _result(scan, tmp_path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_byte_orders_and_compression_change_nothing(tmp_path, kind, suffix, byteorder):
    header = grid_header(kind, [*map(ord, kind), 7])
    scan = write_nifti(tmp_path / f"a{suffix}", header, VOXELS, byteorder)
    volume = LoadVolume()(scan)
    assert np.array_equal(volume.affine, nib.load(scan).affine)
    assert np.array_equal(volume[0], VOXELS)
    assert volume.is_contiguous()
    result = _result(scan, tmp_path)
    assert np.array_equal(nib.load(result).affine, nib.load(scan).affine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(9, 8, 7, 1), (9, 8, 7, 1, 1), (9, 8, 1), (1, 8, 7)])
def test_a_series_of_one_volume_and_flat_volumes(tmp_path, kind, shape):
    array = VOXELS.ravel()[: np.prod(shape)].reshape(shape)
    header = grid_header(kind, [*map(ord, kind), *shape])
    scan = write_nifti(tmp_path / "a.nii.gz", header, array)
    volume = LoadVolume()(scan)
    assert volume.shape == (1, *shape[:3])
    assert np.array_equal(volume[0], array.reshape(shape[:3]))
    assert np.array_equal(volume.affine, nib.load(scan).affine)
    result = nib.load(_result(scan, tmp_path))
    assert result.shape == shape[:3]
    assert np.array_equal(result.affine, nib.load(scan).affine)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("units", UNITS)
def test_results_of_other_formats_lie_on_the_scan_in_mm(tmp_path, suffix, units):
    scan = write_nifti(tmp_path / "a.nii", grid_header("sform", 3, units=units), VOXELS)
    result = LoadVolume()(_result(scan, tmp_path, suffix))
    assert same_grid(result.affine, LoadVolume()(scan).affine, SHAPE, tolerance=1e-4)


def test_a_volume_on_another_grid_is_written_on_its_own(tmp_path):
    scan = write_nifti(tmp_path / "a.nii", grid_header("differ", 0), VOXELS)
    image = LoadVolume()(scan)
    moved = image.affine.clone()
    moved[0, 3] += 1
    image.affine = moved
    options = {"resample": False, "print_log": False, "savepath_in_metadict": True}
    save = SaveVolumed("x", output_dir=tmp_path, writer=volume_writer(".nii"), **options)
    result = nib.load(save({"x": image})["x"].meta["saved_to"])
    assert np.allclose(result.affine, moved, atol=1e-4)


def test_nothing_else_of_a_header_is_kept(tmp_path):
    header = grid_header("agree", 0)
    header["descrip"], header["aux_file"], header["intent_name"] = b"Jane Doe", b"x", b"y"
    scan = write_nifti(tmp_path / "a.nii", header, VOXELS)
    result = nib.load(_result(scan, tmp_path)).header
    for name in ("descrip", "aux_file", "intent_name", "db_name"):
        assert result[name] == b""


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_voxels_are_refused(tmp_path, dtype):
    nib.save(nib.Nifti1Image(VOXELS.astype(dtype), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz: must be a scalar image, got complex"):
        LoadVolume()(tmp_path / "a.nii.gz")


def test_finite_values_beyond_the_type_are_not_called_infinite(tmp_path):
    array = VOXELS.astype(np.float64)
    array[0, 0, 0] = -1e300
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"must lie within ±3\.4e\+38, got finite ones to 1e\+300"):
        LoadVolume()(tmp_path / "a.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_asks_for_more_than_the_file_holds_is_refused_unread(tmp_path, suffix):
    header = grid_header("sform", 0, nifti2=True)
    scan = write_nifti(tmp_path / f"a{suffix}", header, VOXELS)
    raw = nib.Nifti2Header()
    raw.set_data_shape((40_000, 40_000, 40_000))
    write_nifti(scan, raw, VOXELS)
    content = raw.binaryblock
    if suffix == ".nii":
        scan.write_bytes(content)
    else:
        scan.write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=r"asks for .* bytes, could the file be damaged"):
        read_nifti(scan)


@pytest.mark.parametrize(
    ("share", "same"), [(0.0, True), (0.09, True), (0.11, False), (-0.11, False)]
)
def test_one_grid_is_one_in_parts_of_a_voxel(share, same):
    for sizes in ([0.1, 0.2, 0.3], [4.0, 5, 60]):
        affine = nib.affines.from_matvec(np.diag(sizes), [-90.0, 30, 12])
        other = affine.copy()
        other[:3, 3] += share * affine[:3, 2]
        assert same_grid(affine, other, (200, 200, 40)) == same


def test_a_turned_grid_is_another_one():
    affine = np.diag([1, 1, 1, 1.0])
    other = affine @ np.diag([-1, 1, 1, 1])
    assert not same_grid(affine, other, SHAPE)
    other = affine.copy()
    other[0, 0] = 1.001  # a tenth of a voxel after a hundred
    assert same_grid(affine, other, (90, 4, 4))
    assert not same_grid(affine, other, (300, 4, 4))


@pytest.mark.parametrize("name", CASES)
def test_the_affine_of_files_that_went_wrong(cases, tmp_path, name):
    scan = cases / name
    expected = nib.load(scan).affine
    expected[:3] *= 1000 if "metre" in name else 1
    assert np.array_equal(LoadVolume()(scan).affine, expected)
    _assert_one_place(scan, _result(scan, tmp_path))


@pytest.mark.slow
def test_results_of_inference_lie_on_the_scans(trained, cohort, tmp_path):
    """Every kind of header, through the bundle: findings in ml and mm, and the files."""
    head = nib.load(cohort / "test/images/test_000.nii.gz")
    voxels = np.asarray(head.dataobj).astype(np.int16)
    (tmp_path / "scans").mkdir()
    for kind, units in [*((kind, "mm") for kind in KINDS), ("agree", "metre"), ("qform", "micron")]:
        header = grid_header(kind, [1, *map(ord, kind)], units=units)
        write_nifti(tmp_path / f"scans/{kind}_{units}.nii.gz", header, voxels)
    run_bundle(
        "run",
        ["inference", str(trained / "models/model.json")],
        ckpt_dir=trained / "models",
        dataset_dir=tmp_path / "scans",
        output_dir=tmp_path / "out",
        false_positive_rate=0.1,
        min_lesion_ml=0,
    )
    for scan in (tmp_path / "scans").iterdir():
        name = scan.name.removesuffix(".nii.gz")
        folder = tmp_path / "out" / name
        for postfix in ("anomaly", "mask", "component"):
            _assert_one_place(scan, folder / f"{name}_{postfix}.nii.gz")
        affine = LoadVolume()(scan).affine.numpy()
        mask = nib.load(folder / f"{name}_mask.nii.gz")
        findings = json.loads((folder / f"{name}_findings.json").read_text())
        ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        assert findings["mask_volume_ml"] == pytest.approx(ml * np.asarray(mask.dataobj).sum())
        anomaly = np.asarray(nib.load(folder / f"{name}_anomaly.nii.gz").dataobj)
        highest = max(findings["lesions"], key=lambda lesion: lesion["peak_score"])
        peak = np.linalg.solve(affine, [*highest["peak_mm"], 1])[:3].round()
        assert anomaly[tuple(peak.astype(int))] == anomaly.max()
    assert (tmp_path / "out/report/report.html").is_file()
