"""NIfTI and FreeSurfer files: voxels and grid as nibabel has them, and headers that keep a grid."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_dpmm.errors import InputError

__all__ = ["Nifti", "read_nifti", "same_grid", "with_grid"]

_BLOCK = 1 << 20
_PIECE = 1 << 13  # bytes that are decompressed at once, to at most 1,032 times as many
_LONGEST_HEADER = 540  # bytes, of NIfTI-2
_DEFLATED = 1032  # times smaller is the most that a file compressed by deflate can be
_MM = {1: 1000.0, 3: 0.001}  # of NIfTI's codes for metre and micron; 2 is mm, 0 is unknown
_SPATIAL_UNIT = 7  # bits of the code
# what places a volume in the world; of all else a header says, results keep nothing
_GRID_FIELDS = (
    *("pixdim", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y"),
    *("qoffset_z", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


class Nifti(NamedTuple):
    """A volume of a file.

    Attributes:
        array: voxels, of the file's type, or float64 where it scales them.
        affine: voxel indices to mm, (4, 4): nibabel's, times 1000 where the header says metre.
        grid: NIfTI header of its qform, sform, units and sizes as written, (348,) or (540,) uint8;
            None of a FreeSurfer file.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    grid: NDArray[np.uint8] | None


def read_nifti(file: Path) -> Nifti:
    """The volume of a NIfTI or FreeSurfer file; of a compressed one the checksum is verified.

    A series of one volume, (X, Y, Z, 1), is that volume.

    Raises:
        InputError: for voxels that are colours or complex, a header that asks for more voxels than
            the file can hold, and voxels of no size, which nibabel mends silently.
        Exception: what nibabel raises for a damaged file.
    """
    compressed = file.suffix.lower() in (".gz", ".mgz")
    with gzip.open(file) if compressed else file.open("rb") as stream:
        start = stream.read(_LONGEST_HEADER)
        kind = _kind(file, start)
        length = kind.header_class.template_dtype.itemsize
        raw = kind.header_class(start[:length].ljust(length, b"\0"), check=False)
        size = _check_header(raw, file.stat().st_size * (_DEFLATED if compressed else 1))
        content = _decompressed(file, size) if compressed else None
        if content is not None:
            image, array = _in_memory(kind, raw, content)
        else:
            stream.seek(0)
            image = kind.from_stream(stream) if compressed else nib.load(file)
            array = np.asanyarray(image.dataobj)
        while content is None and compressed and stream.read(_BLOCK):
            pass  # the checksum follows the voxels
    if array.dtype.itemsize > 8:  # which torch has no type for
        array = array.astype(np.float64)
    if array.ndim > 3 and set(array.shape[3:]) == {1}:
        array = array.reshape(array.shape[:3], order="F")
    if kind is nib.MGHImage:
        return Nifti(array, image.affine, None)
    grid = _grid(raw)
    affine = image.affine.copy()
    affine[:3] *= _unit(grid)
    return Nifti(array, affine, np.frombuffer(grid.binaryblock, np.uint8).copy())


def with_grid(
    array: NDArray[Any], affine: NDArray[np.float64], grid: NDArray[np.uint8]
) -> nib.Nifti1Image | None:
    """NIfTI image of an array on the grid of a file, as written there; None if it lies elsewhere.

    nibabel and ITK, which rank qform and sform differently, then both place it where they place
    the file. It is NIfTI-2 where that is.

    Args:
        array: voxels (X, Y, Z).
        affine: of the array, mm.
        grid: of `read_nifti`.
    """
    new = len(grid) == _LONGEST_HEADER
    kind, image = (
        (nib.Nifti2Header, nib.Nifti2Image) if new else (nib.Nifti1Header, nib.Nifti1Image)
    )
    header = kind(bytes(np.asarray(grid, np.uint8)), check=False)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    if not same_grid(_best_affine(header), affine, array.shape, tolerance=1e-4):
        return None
    written = image(array, None, header)
    written.header["pixdim"][:4] = header["pixdim"][:4]  # which nibabel has mended
    return written


def same_grid(affine: Any, other: Any, shape: tuple[int, ...], *, tolerance: float = 0.1) -> bool:
    """Whether two voxel-to-world matrices place a volume alike.

    Args:
        affine: (4, 4).
        other: likewise.
        shape: of the volume, whose corners are compared.
        tolerance: largest distance between the two places of a corner, in voxels.
    """
    ends = np.array(np.meshgrid(*([0, n - 1] for n in shape[:3])), float).reshape(
        len(shape[:3]), -1
    )
    corners = np.ones((4, ends.shape[1]))
    corners[:3] = 0
    corners[: len(ends)] = ends
    there = np.linalg.solve(np.asarray(affine, float), np.asarray(other, float) @ corners)
    return bool(np.abs(there - corners).max() <= tolerance)


def _kind(file: Path, start: bytes) -> Any:
    """Class of nibabel for a file."""
    if file.name.lower().endswith((".mgz", ".mgh")):
        return nib.MGHImage
    kinds = (nib.Nifti1Image, nib.Nifti2Image)
    found = [k for k in kinds if k.header_class.may_contain_header(start)]
    if not start:
        raise InputError("must be a scalar image, got an empty file")
    if not found and start.startswith(b"\x1f\x8b"):
        raise InputError("must be called .nii.gz, got a compressed file of another name")
    if not found:
        raise InputError("must be a scalar image, got a file that does not begin as NIfTI does")
    return found[0]


def _in_memory(kind: Any, raw: Any, content: NDArray[np.uint8]) -> tuple[Any, NDArray[Any]]:
    """Image of a file's bytes, and its voxels, which stay where they are if they are not scaled."""
    header = content if kind is nib.MGHImage else content[: int(raw.get_data_offset())]
    image = kind.from_bytes(header.tobytes())  # the voxels of this proxy are not read
    proxy = image.dataobj
    if proxy.slope != 1 or proxy.inter != 0:
        return image, np.asanyarray(kind.from_bytes(content.tobytes()).dataobj)
    count, offset = math.prod(proxy.shape), proxy.offset
    return image, np.frombuffer(content, proxy.dtype, count, offset).reshape(proxy.shape, order="F")


def _decompressed(file: Path, size: int) -> NDArray[np.uint8] | None:
    """A file of so many bytes, in half of the time that a stream takes: memory is taken once.

    None where it has more parts or bytes than that, or is damaged, which a stream finds out.
    """
    expander, content, done = zlib.decompressobj(wbits=31), memoryview(file.read_bytes()), 0
    expanded = np.empty(size, np.uint8)
    try:
        for start in range(0, len(content), _PIECE):
            part = expander.decompress(content[start : start + _PIECE])
            if done + len(part) > size or expander.unused_data:
                return None
            expanded[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
    except zlib.error:
        return None
    return expanded if expander.eof and done == size else None


def _check_header(header: Any, most: int) -> int:
    """Bytes of a scalar image, for which there is room: at most `most`; others are refused."""
    dtype, shape = header.get_data_dtype(), tuple(map(int, header.get_data_shape()))
    if dtype.kind not in "fiub":
        kind = "complex numbers" if dtype.kind == "c" else "colours"
        raise InputError(f"must be a scalar image, got {kind}, {dtype}")
    if min(shape, default=0) < 1:
        raise InputError(f"must be one 2D or 3D image, got shape {shape}")
    size = int(header.get_data_offset()) + math.prod(shape) * dtype.itemsize
    if size > most:
        raise InputError(
            f"must be a scalar image, got a header that asks for {size} bytes, could the file be"
            f" damaged: it can hold {most}"
        )
    if isinstance(header, nib.Nifti1Header) and not header["sform_code"]:
        sizes = np.abs(header["pixdim"][1:4])
        if not sizes.all():
            shown = ", ".join(f"{mm:g}" for mm in sizes)
            raise InputError(
                "must have a finite, invertible voxel-to-world matrix, got voxels of"
                f" ({shown}) mm in dependent or unknown directions"
            )
    return size


def _grid(raw: Any) -> Any:
    """Header of the same kind and grid, and of nothing else, in this computer's byte order."""
    grid = type(raw)()
    for name in _GRID_FIELDS:
        grid[name] = raw[name]
    grid["pixdim"][4:] = 1
    grid["xyzt_units"] = int(raw["xyzt_units"]) & _SPATIAL_UNIT
    return grid


def _best_affine(header: Any) -> NDArray[np.float64]:
    """Voxel indices to mm, (4, 4), as nibabel takes it from a header that it has mended."""
    mended = header.copy()
    sizes = np.abs(mended["pixdim"][1:4])
    mended["pixdim"][1:4] = np.where(sizes > 0, sizes, 1)
    mended["pixdim"][0] = -1 if mended["pixdim"][0] == -1 else 1
    affine: NDArray[np.float64] = mended.get_best_affine()
    affine[:3] *= _unit(header)
    return affine


def _unit(header: Any) -> float:
    """Size of a header's unit of length, mm."""
    return _MM.get(int(header["xyzt_units"]) & _SPATIAL_UNIT, 1.0)
