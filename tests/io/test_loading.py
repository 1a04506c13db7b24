import gzip

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Orientation
from PIL import Image

from monai_dpmm.errors import InputError
from monai_dpmm.io.loading import LoadVolume


def _nifti(path, array):
    nib.save(nib.Nifti1Image(np.asarray(array, dtype=np.float32), np.diag([2, 3, 4, 1])), path)
    return path


def test_volume_keeps_values_affine_and_name(tmp_path):
    array = np.random.default_rng(0).random((5, 6, 7))
    path = _nifti(tmp_path / "scan.nii.gz", array)
    volume = LoadVolume()(path)
    assert volume.shape == (1, 5, 6, 7)
    assert volume.dtype == torch.float32
    assert np.allclose(volume[0], array.astype(np.float32))
    assert np.allclose(volume.affine, np.diag([2, 3, 4, 1]))
    assert volume.meta["filename_or_obj"] == str(path)


def test_grey_picture_is_one_channel(tmp_path):
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(tmp_path / "slice.png")
    assert LoadVolume()(tmp_path / "slice.png").shape == (1, 8, 6)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("chris_t1.nii.gz", (1, 188, 256, 190)),
        ("brainmask.mgz", (1, 256, 256, 256)),
        ("shear.nii.gz", (1, 306, 422, 54)),
        ("mha.mha", (1, 64, 64, 37)),
        ("dicom", (1, 512, 512, 3)),
    ],
)
def test_real_scans_of_every_format(real_data, name, shape):
    assert LoadVolume()(real_data / name).shape == shape


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mpld_asl.nii.gz", r"mpld_asl.nii.gz: must have one channel, got 25 .*4D series"),
        ("ct_perfusion.nii.gz", r"ct_perfusion.nii.gz: must be a scalar image, got colours.*'R'"),
    ],
)
def test_real_series_and_colour_volumes_are_refused(real_data, name, reason):
    with pytest.raises(InputError, match=reason):
        LoadVolume()(real_data / name)


def _with(value, count):
    array = np.random.default_rng(0).random((4, 4, 4))
    array.flat[:count] = value
    return array


def _enclosed(value):
    array = np.random.default_rng(0).random((4, 4, 4))
    array[1:3, 1:3, 1:3] = value
    return array


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (_with(np.nan, 64), "voxels must be finite, 64 of 64 are NaN or inf"),
        (_enclosed(np.nan), "voxels must be finite, 8 of 64 are NaN or inf, 8 of them within"),
        (_with(np.inf, 1), "voxels must be finite, 1 of 64 are NaN or inf"),
        (_with(7, 64), "must not be constant, every voxel is 7"),
    ],
)
def test_bad_voxels_are_refused(tmp_path, array, reason):
    path = _nifti(tmp_path / "bad.nii.gz", array)
    with pytest.raises(InputError, match=f"bad.nii.gz: {reason}"):
        LoadVolume()(path)


def test_what_is_no_image_is_refused_in_one_line(tmp_path):
    (tmp_path / "notes.nii.gz").write_text("not an image")
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not an image")
    for name in ("notes.nii.gz", "empty.nii.gz", "notes.txt"):
        with pytest.raises(InputError, match=f"{name}: must be a scalar image") as caught:
            LoadVolume()(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"missing.nii: must exist"):
        LoadVolume()(tmp_path / "missing.nii")


def _header(**fields):
    """A NIfTI file's bytes with header fields set as no library would."""
    image = nib.Nifti1Image(np.random.default_rng(0).random((20, 24, 10)).astype("f4"), np.eye(4))
    content = bytearray(image.to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    return bytes(content)


WHOLE = _header()
PACKED = gzip.compress(WHOLE, mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.nii.gz", b"", "an empty file"),
        ("a.nii", b"", "an empty file"),
        ("a.nii.gz", PACKED[: len(PACKED) // 2], "EOFError: Compressed file ended before"),
        ("a.nii.gz", PACKED[:3000] + b"\0\0\0" + PACKED[3003:], "Error|BadGzip"),
        ("a.nii.gz", PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], "BadGzipFile: CRC check failed"),
        ("a.nii.gz", WHOLE, "BadGzipFile: Not a gzipped file"),
        ("a.nii", WHOLE[:2000], "could the file be damaged"),
        ("a.png", WHOLE, "UnidentifiedImageError"),
        ("a.nrrd", WHOLE, "''"),
        ("a.mha", WHOLE, "''"),
        ("a.mgz", WHOLE, "Error|BadGzip"),
    ],
)
def test_damaged_files_and_wrong_suffixes_are_refused(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    message = f"{name}: must be a scalar image.*, got .*{reason}"
    with pytest.raises(InputError, match=message) as caught:
        LoadVolume()(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({"sform_code": 0, "qform_code": 0, "pixdim": [1, 0, 1, 1, 1, 0, 0, 0]}, r"\(0, 1, 1\)"),
        ({"sform_code": 1, "srow_x": [0, 0, 0, 0]}, r"\(0, 1, 1\)"),
        ({"sform_code": 1, "srow_y": [1, 0, 0, 0], "srow_x": [1, 0, 0, 0]}, "dependent"),
        ({"sform_code": 1, "srow_x": [np.nan, 0, 0, 0]}, r"\(nan, 1, 1\)"),
        ({"sform_code": 1, "srow_x": [1, 0, 0, np.inf]}, "unknown"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_grid_without_volume_is_refused(tmp_path, fields, sizes, suffix):
    content = _header(**fields)
    file = tmp_path / f"scan{suffix}"
    file.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    with pytest.raises(InputError, match=f"{file.name}: must have a finite, invertible .*{sizes}"):
        LoadVolume()(file)


def test_a_nifti2_file_is_read(tmp_path):
    array = np.random.default_rng(0).random((5, 6, 7))
    nib.save(nib.Nifti2Image(array, np.diag([2, 3, 4, 1])), tmp_path / "scan.nii.gz")
    assert np.allclose(LoadVolume()(tmp_path / "scan.nii.gz").affine, np.diag([2, 3, 4, 1]))


def _nrrd(path, array, space, directions):
    """An NRRD file as its definition has it, origin (1, 2, 3)."""
    vectors = " ".join(f"({x!r},{y!r},{z!r})" for x, y, z in directions.T.tolist())
    sizes = " ".join(map(str, array.shape))
    header = f"""NRRD0004
type: float
dimension: 3
space: {space}
sizes: {sizes}
space directions: {vectors}
endian: little
encoding: raw
space origin: (1,2,3)

"""
    path.write_bytes(header.encode() + array.astype("<f4").tobytes(order="F"))


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("LAS", (-1, 1, 1)),
    ],
)
def test_the_space_of_an_nrrd_file_counts(tmp_path, space, signs):
    """Affines by the definition of NRRD, for a reader that knows all its spaces."""
    array = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    turn = np.array([[0.8, -0.6, 0], [0.48, 0.64, -0.6], [0.36, 0.48, 0.8]]) * [0.5, 1.5, 4]
    _nrrd(tmp_path / "scan.nrrd", array, space, turn)
    volume = LoadVolume()(tmp_path / "scan.nrrd")
    expected = np.diag([*signs, 1]) @ nib.affines.from_matvec(turn, [1, 2, 3])
    assert np.array_equal(volume[0], array)
    assert np.allclose(volume.affine, expected)
    assert Orientation("RAS", labels=None)(volume).shape == (1, 5, 6, 7)


def test_an_nrrd_file_of_no_known_space_is_refused(tmp_path):
    _nrrd(tmp_path / "scan.nrrd", np.random.default_rng(0).random((5, 6, 7)), "LPX", np.eye(3))
    message = r"scan\.nrrd: space must be one that NRRD defines, got 'LPX'"
    with pytest.raises(InputError, match=message):
        LoadVolume()(tmp_path / "scan.nrrd")


def test_nothing_is_said_of_decoders_that_are_not_installed(caplog, recwarn):
    LoadVolume()
    assert not caplog.records
    assert not [w for w in recwarn if "nvImageCodec" in str(w.message)]


def _head(seed, shape):
    """A ball of random size and place in a random value range, and whether a voxel is in it."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape).reshape(len(shape), -1).T
    centre = np.where(np.equal(shape, 1), 0, rng.uniform(0.4, 0.6, len(shape)) * shape)
    distance = np.linalg.norm((grid - centre) / shape, axis=1).reshape(shape)
    head = distance < rng.uniform(0.2, 0.45)
    low, high = sorted(rng.uniform(-100, 1000, 2))
    return rng.uniform(low, high + 1, shape).astype(np.float32), head


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [(12, 14, 10), (20, 18, 1), (1, 20, 18), (20, 18)])
@pytest.mark.parametrize("stray", [0, 1])
def test_nan_outside_the_body_is_background(tmp_path, caplog, seed, shape, stray):
    array, head = _head(seed, shape)
    inside = np.argwhere(head)[len(np.argwhere(head)) // 2]
    expected = np.where(head, array, array[head].min())
    array[~head] = np.nan
    if stray and head.sum() > 150:
        array[tuple(inside)] = np.nan
        expected = np.where(np.isnan(array), np.nanmin(array), array)
    path = _nifti(tmp_path / "scan.nii.gz", array)
    with caplog.at_level("INFO", logger="monai_dpmm.io.loading"):
        volume = LoadVolume()(path)
    assert np.array_equal(volume[0], expected)
    share = 100 * np.isnan(array).mean()
    assert f"scan.nii.gz: {share:.3g} % of the voxels are NaN" in caplog.text


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(16, 16, 16), (24, 24)])
def test_nan_within_the_body_is_refused(tmp_path, seed, shape):
    array, _ = _head(seed, shape)
    core = tuple(slice(6, 11) for _ in shape)
    array[core] = np.nan
    path = _nifti(tmp_path / "scan.nii", array)
    count = 5 ** len(shape)
    message = rf"scan\.nii: voxels must be finite, {count} .* {count} of them within the body"
    with pytest.raises(InputError, match=message):
        LoadVolume()(path)


def test_nan_of_a_mask_is_no_lesion(tmp_path):
    array = np.full((6, 6, 6), np.nan, np.float32)
    array[2:4, 2:4, 2:4] = 1
    mask = LoadVolume(allow_constant=True)(_nifti(tmp_path / "mask.nii", array))
    assert mask.sum() == 8


def test_nan_background_as_tools_leave_it(cases):
    volume = LoadVolume()(cases / "values/01_nan_background.nii.gz")
    reference = LoadVolume()(cases / "values/00_ref.nii.gz")
    assert torch.isfinite(volume).all()
    assert (volume == volume.min()).float().mean() > 0.7
    body = volume > volume.min()
    assert torch.allclose(volume[body], reference[body])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("seed", range(3))
def test_grey_pictures_are_one_image_whatever_their_mode(tmp_path, mode, seed):
    grey = np.random.default_rng(seed).integers(0, 255, (6 + seed, 8), np.uint8)
    Image.fromarray(grey).convert(mode).save(tmp_path / "slice.png")
    assert np.array_equal(LoadVolume()(tmp_path / "slice.png")[0], grey.T)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_a_picture_in_colour_has_three_channels_and_a_mask_in_colour_is_refused(tmp_path, mode):
    colours = np.zeros((6, 8, 3), np.uint8)
    colours[:3, :, 0] = 200
    file = tmp_path / f"slice.{'tiff' if mode == 'CMYK' else 'png'}"
    Image.fromarray(colours).convert(mode).save(file)
    image = LoadVolume()(file)
    assert image.shape == (3, 8, 6)
    assert image[0, :, :3].min() > image[0, :, 3:].max()
    if mode != "P":  # whose values are labels
        with pytest.raises(InputError, match="must have one channel, got 3"):
            LoadVolume(allow_constant=True)(file)


def test_a_grey_picture_that_is_partly_transparent_is_refused(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (6, 8, 2), np.uint8)
    Image.fromarray(grey).save(tmp_path / "slice.png")
    with pytest.raises(InputError, match=r"slice\.png: must be opaque, got .* transparent"):
        LoadVolume()(tmp_path / "slice.png")
