"""Files as careless programs and people leave them: read as they are meant, or refused."""

import gzip
import os
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own name for itself
from PIL import Image

from monai_dpmm.errors import InputError, reader_reason
from monai_dpmm.io.datalist import find_images
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.report.scan_lines import scan_line

VOXELS = np.random.default_rng(0).integers(0, 900, (9, 8, 7)).astype(np.int16)
AFFINE = np.diag([2.0, 2, 3, 1])
REFUSED = r"must be a scalar image"


def _nifti(path, changes=()):
    """A NIfTI file with bytes of its header changed: offset, format, values."""
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    for offset, fmt, *values in changes:
        struct.pack_into(fmt, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def _refusal(path):
    with pytest.raises(InputError) as caught:
        LoadVolume()(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.startswith(f"{path}: ")
    return text


@pytest.mark.parametrize(
    "change",
    [
        (112, "<ff", float("nan"), 0),
        (112, "<ff", 0, 5),
        (112, "<ff", float("inf"), 0),
        (112, "<ff", -1, 1000),
        (112, "<ff", 0.5, -3),
        (108, "<f", 352.5),
    ],
)
def test_odd_slopes_and_offsets_are_what_nibabel_makes_of_them(tmp_path, change):
    scan = _nifti(tmp_path / "a.nii.gz", [change])
    expected = nib.load(scan).get_fdata(dtype=np.float32)
    assert np.array_equal(LoadVolume()(scan)[0], expected)


@pytest.mark.parametrize(
    "change",
    [
        (112, "<ff", 2, float("nan")),
        (108, "<f", 348),
        (108, "<f", -5),
        (108, "<f", float("nan")),
        (108, "<f", 1e9),
        (40, "<hh", 3, -9),
        (70, "<h", 7777),
    ],
)
def test_headers_that_lead_nowhere_are_refused(tmp_path, change):
    assert "must be" in _refusal(_nifti(tmp_path / "a.nii.gz", [change]))


def test_a_compressed_file_may_have_parts_and_zeros_behind_it(tmp_path):
    content = gzip.decompress(_nifti(tmp_path / "a.nii.gz").read_bytes())
    parts = gzip.compress(content[:500]) + gzip.compress(content[500:])
    for name, value in {"parts": parts, "zeros": gzip.compress(content) + bytes(512)}.items():
        (tmp_path / f"{name}.nii.gz").write_bytes(value)
        assert np.array_equal(LoadVolume()(tmp_path / f"{name}.nii.gz")[0], VOXELS)


@pytest.mark.parametrize("length", [352, 500, 1000, 1359, 1361, 40_000])
def test_a_file_that_unpacks_to_another_size_than_its_header_says_is_no_other_scan(
    tmp_path, length
):
    """Shorter is refused; what lies behind the voxels is nothing of the scan."""
    content = gzip.decompress(_nifti(tmp_path / "a.nii.gz").read_bytes())
    content = content.ljust(length, b"\7")[:length]
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    if length < 352 + VOXELS.nbytes:
        assert REFUSED in _refusal(tmp_path / "a.nii.gz")
    else:
        assert np.array_equal(LoadVolume()(tmp_path / "a.nii.gz")[0], VOXELS)


def test_a_file_that_unpacks_to_gigabytes_takes_no_memory(tmp_path):
    """Its header says 1 kB; 100 MB of zeros follow."""
    content = gzip.decompress(_nifti(tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content + bytes(100 << 20)))
    LoadVolume()(_nifti(tmp_path / "b.nii.gz"))  # what is imported counts no more
    tracemalloc.start()
    assert np.array_equal(LoadVolume()(tmp_path / "a.nii.gz")[0], VOXELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "a.nii",
            gzip.compress(bytes(500), mtime=0),
            "must be called .nii.gz, got a compressed file",
        ),
        ("a.nii", b"", "got an empty file"),
        ("a.nii.gz", b"", "got an empty file"),
        ("a.nii.gz", bytes(500), "BadGzipFile"),
        ("a.nrrd", b"", REFUSED),
        ("a.mha", b"", REFUSED),
        ("a.png", b"", REFUSED),
        ("a.npy", b"", REFUSED),
    ],
)
def test_content_of_another_kind_is_told(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    assert told in _refusal(tmp_path / name)


@pytest.mark.parametrize("dtype", ["complex64", "U3", "datetime64[s]", "object"])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.ones((4, 4, 4)).astype(dtype))
    assert REFUSED in _refusal(tmp_path / "a.npy")


@pytest.mark.parametrize("change", [np.asfortranarray, lambda a: a.astype(">f8")])
def test_arrays_in_any_order_are_read(tmp_path, change):
    np.save(tmp_path / "a.npy", change(VOXELS))
    volume = LoadVolume()(tmp_path / "a.npy")
    assert np.array_equal(volume[0], VOXELS)
    assert volume.is_contiguous()


@pytest.mark.parametrize(
    ("suffix", "old", "new", "told"),
    [
        (".nrrd", b"(2,0,0)", b"(0,0,0)", "Zero-valued spacing"),
        (".nrrd", b"(2,0,0)", b"(nan,0,0)", "Error reading"),
        (".mha", b"ElementSpacing = 2", b"ElementSpacing = 0", "Zero-valued spacing"),
        (".mha", b"ElementDataFile = LOCAL", b"ElementDataFile = LIST", "cannot be read"),
        (".mha", b"ElementDataFile = LOCAL", b"ElementDataFile = /etc/passwd", "in its folder"),
    ],
)
def test_itks_reason_is_told_and_not_where_its_source_has_it(tmp_path, suffix, old, new, told):
    image = sitk.GetImageFromArray(VOXELS.T.copy())
    image.SetSpacing((2, 2, 3))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    content = (tmp_path / f"a{suffix}").read_bytes()
    assert old in content
    (tmp_path / f"a{suffix}").write_bytes(content.replace(old, new))
    text = _refusal(tmp_path / f"a{suffix}")
    assert told in text
    assert ".cxx" not in text
    assert "0x" not in text


def test_a_reason_is_the_line_that_says_most():
    error = RuntimeError("Exception thrown in SimpleITK A_B: /x/y.cxx:9:\nitk::ERROR: A(0x5f): no")
    assert reader_reason(error) == "RuntimeError: itk::ERROR: A: no"
    assert reader_reason(ValueError("")) == "ValueError: no reason given"


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_pictures_of_other_formats_are_refused_in_words(tmp_path, name):
    Image.fromarray(np.arange(99, dtype=np.uint8).reshape(9, 11)).save(tmp_path / name)
    assert "Unable to determine ImageIO reader" in _refusal(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there is no such file")
def test_what_is_no_file_holds_nobody_up(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii.gz")
    os.symlink(tmp_path / "loop.nii.gz", tmp_path / "loop.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    scan = _nifti(tmp_path / "a.nii.gz")
    assert "got a pipe or a device" in _refusal(tmp_path / "pipe.nii.gz")
    assert "there is no such file" in _refusal(tmp_path / "loop.nii.gz")
    assert "no DICOM file" in _refusal(tmp_path / "folder.nii.gz")
    assert "no DICOM file" in _refusal(tmp_path)  # beside a link to itself
    assert find_images(tmp_path) == [scan]


def test_a_name_of_two_lines_is_one_line_on_the_screen():
    findings = {"lesions": [], "mask_volume_ml": 0.0, "score": 1.0}
    assert scan_line("/data/a\nb.nii.gz", findings).startswith("data/a?b: ")
