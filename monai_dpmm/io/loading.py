"""A scan from disk, checked: one volume of one channel, finite and not constant."""

from __future__ import annotations

import gzip
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Transform

from monai_dpmm.errors import InputError
from monai_dpmm.io.dicom import check_series
from monai_dpmm.io.text_headers import check_header

__all__ = ["LoadVolume"]

_BLOCK = 1 << 20
# what the pipeline reads of an image; others may be a stranger's, and tell MONAI where to write
_META = {
    *("affine", "original_affine", "spatial_shape", "space"),
    *("original_channel_dim", "filename_or_obj"),
}
_NIFTI2 = (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")  # its header has 540 bytes


class LoadVolume(Transform):
    """Scan as a channel-first `MetaTensor`, float32: a path -> (1, X, Y, Z), or (1, H, W) for 2D.

    Reads what MONAI's readers read (NIfTI, FreeSurfer .mgz, NRRD, MetaImage, a folder with one
    DICOM series, PNG, JPEG, TIFF) and refuses what is not one scalar image. A picture whose colour
    channels are equal is grey, and one channel of it is taken. Of what else a header says, nothing
    is kept: `meta` holds the grid and the file's name.

    Args:
        dtype: type of the result; that of the file if None.
        allow_constant: take an image of one value, as a mask may be.

    Raises:
        InputError: for a missing, damaged or unreadable file, a folder that is not one DICOM series
            with all its slices readable, several channels (4D series, RGB), NaN or infinite voxels,
            a constant image, a grid without volume (a spacing of zero), or a header that is
            refused (see `check_header`); the message names file, rule and value.
    """

    def __init__(
        self, dtype: torch.dtype | None = torch.float32, *, allow_constant: bool = False
    ) -> None:
        self.allow_constant = allow_constant
        common: dict[str, Any] = {"ensure_channel_first": True, "dtype": dtype, "image_only": True}
        with _silence_on_decoders():
            self._loader = LoadImage(**common)
            # MONAI leaves .mgz to ITK, which cannot read it, and NRRD to pynrrd, with which it
            # takes all spaces but left-posterior-superior for RAS
            nibabel, itk = LoadImage("NibabelReader", **common), LoadImage("ITKReader", **common)
        self._readers = {".mgz": nibabel, ".mgh": nibabel, ".nrrd": itk, ".nhdr": itk}

    def __call__(self, path: str | Path) -> MetaTensor:
        file = Path(path).expanduser()
        if not file.exists():
            raise InputError(f"{file}: must exist, there is no such file or folder")
        try:
            check_header(file)
        except ValueError as error:
            raise InputError(f"{file}: {error}") from error
        positions = _series_positions(file) if file.is_dir() else None
        loader = self._readers.get(file.suffix.lower(), self._loader)
        try:
            affine = _written_affine(file)
            image = _grey(loader(file))
        except Exception as error:  # the readers raise whatever their libraries raise
            raise InputError(
                f"{file}: must be a scalar image that MONAI reads, got {_reason(error)}"
            ) from error
        image.meta = {key: image.meta[key] for key in _META & image.meta.keys()}
        if positions is not None and len(positions):
            _place_slices(image, positions, file)
        _check_image(image, file, allow_constant=self.allow_constant)
        _check_affine(image.affine if affine is None else affine, file)
        return image


@contextmanager
def _silence_on_decoders() -> Iterator[None]:
    """Nothing is said of optional DICOM decoders that are not installed."""
    logger = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*nvImageCodec")
            yield
    finally:
        logger.setLevel(before)


def _series_positions(folder: Path) -> np.ndarray:
    """Positions of the slices of a DICOM series, see `check_series`."""
    try:
        return check_series(folder)
    except ValueError as error:
        raise InputError(f"{folder}: must be one DICOM series: {error}") from error


def _place_slices(image: MetaTensor, positions: np.ndarray, folder: Path) -> None:
    """Put the slices of a series where its headers have them: ITK straightens a tilted gantry."""
    if image.shape[-1] != len(positions):
        raise InputError(
            f"{folder}: must be one DICOM series: {image.shape[-1]} of {len(positions)} slices can"
            " be read"
        )
    step = torch.from_numpy(positions[-1] - positions[0]) / (len(positions) - 1)
    forward = float(image.affine[:3, 2].double() @ step) > 0
    image.affine[:3, 2] = step if forward else -step


def _written_affine(file: Path) -> torch.Tensor | None:
    """Voxel-to-world matrix of a NIfTI file as it is written, which nibabel mends in silence.

    Of a compressed file the checksum is verified, before which readers stop.
    """
    if file.suffix.lower() == ".gz":
        with gzip.open(file) as stream:
            while stream.read(_BLOCK):
                pass
    if not file.name.lower().endswith((".nii", ".nii.gz")):
        return None
    with nib.openers.ImageOpener(str(file)) as stream:
        start = stream.read(4)
        stream.seek(0)
        kind = nib.Nifti2Header if start in _NIFTI2 else nib.Nifti1Header
        header = kind.from_fileobj(stream, check=False)
        return torch.from_numpy(header.get_best_affine())


def _check_affine(affine: torch.Tensor, file: Path) -> None:
    """Refuse a grid whose voxels have no volume."""
    directions = affine[:3, :3].double()
    sizes = directions.norm(dim=0)
    flat = not bool((sizes > 0).all()) or float((directions / sizes).det().abs()) < 1e-6
    if not bool(torch.isfinite(affine).all()) or flat:
        shown = ", ".join(f"{mm:g}" for mm in sizes.tolist())
        raise InputError(
            f"{file}: must have a finite, invertible voxel-to-world matrix, got voxels of"
            f" ({shown}) mm in dependent or unknown directions"
        )


def _grey(image: MetaTensor) -> MetaTensor:
    """One channel of a picture of red, green and blue that are equal, and opaque if it says so."""
    if image.ndim != 3 or image.shape[0] not in (3, 4):
        return image
    red, *others = image.as_tensor()
    opaque = image.shape[0] == 3 or bool((others.pop() == image[3].max()).all())
    return image[:1] if opaque and all(torch.equal(red, other) for other in others) else image


def _check_image(image: MetaTensor, file: Path, *, allow_constant: bool) -> None:
    """Refuse what is not one finite image of one channel, or of one value unless that may be."""
    shape = tuple(image.shape)
    if image.ndim not in (3, 4) or min(shape) < 1:
        raise InputError(f"{file}: must be one 2D or 3D image, got shape {shape[1:]}")
    if shape[0] != 1:
        raise InputError(
            f"{file}: must have one channel, got {shape[0]} of shape {shape[1:]}"
            " (a 4D series or a colour image)"
        )
    bad = int(image.numel() - torch.isfinite(image.as_tensor()).sum())
    if bad:
        raise InputError(f"{file}: voxels must be finite, {bad} of {image.numel()} are NaN or inf")
    low, high = image.as_tensor().aminmax()
    if low == high and not allow_constant:
        raise InputError(f"{file}: must not be constant, every voxel is {low.item():g}")


def _reason(error: BaseException) -> str:
    """First telling line of what a reader raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line and "Traceback" not in line]
    told = telling[-1] if telling else " ".join(lines)
    return f"{type(error).__name__}: {told[:200] or 'no reason given'}"
