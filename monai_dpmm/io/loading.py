"""A scan from disk, checked: one volume of one channel, finite and not constant."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import LoadImage, Transform
from monai.utils import SpaceKeys, TransformBackends, convert_to_tensor

from monai_dpmm.errors import InputError
from monai_dpmm.io.dicom import check_series
from monai_dpmm.io.in_memory import IN_MEMORY, image_in_memory
from monai_dpmm.io.nifti import Nifti, read_nifti
from monai_dpmm.io.suffixes import FORMATS, format_of
from monai_dpmm.io.text_headers import check_header

__all__ = ["LoadVolume"]

_logger = logging.getLogger(__name__)
_UNKNOWN = 0.01  # share of the body that may be NaN

# what the pipeline reads of an image; others are untrusted, and could say where MONAI writes
_META = {
    *("affine", "original_affine", "spatial_shape", "space"),
    *("original_channel_dim", "filename_or_obj", "nifti_grid"),
}


class LoadVolume(Transform):
    """Scan as a channel-first `MetaTensor`, float32: a path -> (1, X, Y, Z), or (1, H, W) for 2D.

    An array or tensor in memory is taken, too, see `image_in_memory`. After MONAI's
    `set_track_meta(False)` the result is a plain tensor, of the same checks.

    Reads NIfTI and FreeSurfer .mgz as nibabel does, and what MONAI's readers read: NRRD, MetaImage,
    a folder with one DICOM series, PNG, JPEG, TIFF. Refuses what is not one scalar image. A picture
    whose colour channels are equal is grey, and one channel of it is taken; a series of one volume
    is that volume. NaN is background: it becomes the lowest value, or 0 of a mask, and its share is
    logged. The affine is in mm, of a file in metres as well. Of what else a header says,
    nothing is kept: `meta` holds the grid, that of a NIfTI file as it is written ("nifti_grid", see
    `read_nifti`), and the file's name.

    Args:
        dtype: type of the result; that of the file if None.
        allow_constant: take an image of one value: it is a mask.

    Raises:
        InputError: for a missing, damaged or unreadable file, a folder that is not one DICOM series
            with all its slices readable, several channels (4D series, RGB), infinite voxels, NaN in
            more than 1 % of the body, a constant image, a grid without volume (a spacing of zero),
            or a header that cannot be trusted (see `check_header`); the message names file, rule
            and value.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self, dtype: torch.dtype | None = torch.float32, *, allow_constant: bool = False
    ) -> None:
        self.dtype = dtype
        self.allow_constant = allow_constant
        common: dict[str, Any] = {"ensure_channel_first": True, "dtype": None, "image_only": True}
        with _silence_on_decoders():
            self._loader = LoadImage(**common)
            itk = LoadImage("ITKReader", **common)
        self._readers = {row.suffix: itk for row in FORMATS if row.reader == "itk"}

    def __call__(self, path: str | Path | np.ndarray | torch.Tensor) -> MetaTensor:
        if isinstance(path, np.ndarray | torch.Tensor):
            return self._checked(image_in_memory(path), Path(IN_MEMORY))
        if not os.fspath(path):
            raise InputError("a scan must have a path, got an empty one (no such scan?)")
        file = Path(path).expanduser()
        if not file.exists():
            raise InputError(f"{file}: must exist, there is no such file or folder")
        try:
            check_header(file)
            image = self._read(file)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        except Exception as error:  # the readers raise whatever their libraries raise
            raise InputError(
                f"{file}: must be a scalar image that MONAI reads, got {_reason(error)}"
            ) from error
        image.meta = {key: image.meta[key] for key in _META & image.meta.keys()}
        return self._checked(image, file)

    def _checked(self, image: MetaTensor, file: Path) -> MetaTensor:
        """The image, of the type that is asked for."""
        image.meta["original_affine"] = image.affine.numpy().copy()
        _check_affine(image.affine, file)
        _check_shape(image, file)
        if image.is_floating_point():
            _fill_background(image, file, label=self.allow_constant)
        _check_values(image, file, self.dtype, allow_constant=self.allow_constant)
        if not get_track_meta():
            return image.as_tensor() if self.dtype is None else image.as_tensor().to(self.dtype)
        return image if self.dtype is None else MetaTensor(image.to(self.dtype), meta=image.meta)

    def _read(self, file: Path) -> MetaTensor:
        """Image of a file's own type, not yet checked."""
        found = format_of(file) if file.is_file() else None
        if found is not None and found.reader == "nibabel":
            return _from_nifti(read_nifti(file), file, self.dtype)
        positions = _series_positions(file) if file.is_dir() else None
        with _tracked():
            image = _grey(self._readers.get(file.suffix.lower(), self._loader)(file))
        if positions is not None and len(positions):
            _place_slices(image, positions)
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


@contextmanager
def _tracked() -> Iterator[None]:
    """MONAI's readers tell of the grid, also where `set_track_meta(False)` is on."""
    before = get_track_meta()
    set_track_meta(True)
    try:
        yield
    finally:
        set_track_meta(before)


def _from_nifti(nifti: Nifti, file: Path, dtype: torch.dtype | None) -> MetaTensor:
    """Channel-first image of a NIfTI or FreeSurfer file, with what MONAI's readers say of one.

    Voxels that float32 holds are converted while they are brought into order, in one pass.
    """
    array, shape = nifti.array, nifti.array.shape
    image = np.moveaxis(array, -1, 0) if array.ndim > 3 else array[None]
    meta = {
        "affine": torch.from_numpy(nifti.affine),
        "spatial_shape": np.array(shape[:3]),
        "space": SpaceKeys.RAS,
        "original_channel_dim": -1 if array.ndim > 3 else float("nan"),
        "filename_or_obj": str(file),
    }
    if nifti.grid is not None:
        meta["nifti_grid"] = nifti.grid
    at_once = dtype == torch.float32 and image.dtype.itemsize <= 4
    native = np.dtype(np.float32) if at_once else image.dtype.newbyteorder("=")
    return MetaTensor(convert_to_tensor(np.ascontiguousarray(image, native)), meta=meta)


def _series_positions(folder: Path) -> np.ndarray:
    """Positions of the slices of a DICOM series, see `check_series`."""
    try:
        return check_series(folder)
    except ValueError as error:
        raise InputError(f"must be one DICOM series: {error}") from error


def _place_slices(image: MetaTensor, positions: np.ndarray) -> None:
    """Put the slices of a series where its headers have them: ITK straightens a tilted gantry."""
    if image.shape[-1] != len(positions):
        raise InputError(
            f"must be one DICOM series: {image.shape[-1]} of {len(positions)} slices can be read"
        )
    step = torch.from_numpy(positions[-1] - positions[0]) / (len(positions) - 1)
    forward = float(image.affine[:3, 2].double() @ step) > 0
    image.affine[:3, 2] = step if forward else -step


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
    """One channel of a picture that is grey, or red, green and blue that are equal, and opaque."""
    if image.ndim != 3 or image.shape[0] not in (2, 3, 4):
        return image
    grey, *others = image.as_tensor()
    alpha = None if image.shape[0] == 3 else others.pop()
    opaque = alpha is None or bool((alpha == alpha.max()).all())
    return image[:1] if opaque and all(torch.equal(grey, other) for other in others) else image


def _check_shape(image: MetaTensor, file: Path) -> None:
    """Refuse what is not one image of one channel."""
    shape = tuple(image.shape)
    if image.ndim not in (3, 4) or min(shape) < 1:
        raise InputError(f"{file}: must be one 2D or 3D image, got shape {shape[1:]}")
    if shape[0] != 1:
        raise InputError(
            f"{file}: must have one channel, got {shape[0]} of shape {shape[1:]}"
            " (a 4D series or a colour image)"
        )


def _fill_background(image: MetaTensor, file: Path, *, label: bool) -> None:
    """Give NaN voxels the lowest value, in place, or 0 of a label: what SPM and fMRIPrep leave out.

    NaN that is enclosed by other voxels is not outside of the body.

    Raises:
        InputError: where more than 1 % of the body is NaN.
    """
    voxels = image.as_tensor()
    if not bool(torch.isnan(voxels.aminmax().min)):
        return
    known = ~torch.isnan(voxels)
    body = _without_holes(known[0].numpy())
    inside = int(body.sum()) - int(known.sum())
    if not bool(known.any()) or inside > _UNKNOWN * body.sum():
        bad = int(voxels.numel() - torch.isfinite(voxels).sum())
        raise InputError(
            f"{file}: voxels must be finite, {bad} of {voxels.numel()} are NaN or inf, {inside} of"
            f" them within the body"
        )
    _logger.info(
        "%s: %.3g %% of the voxels are NaN, taken as background",
        file,
        100 * (~known).float().mean(),
    )
    voxels[~known] = 0 if label else voxels[known].min()


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """A mask, (X, Y, Z) or (H, W), with what it encloses; of one slice, in its plane."""
    import SimpleITK as sitk  # noqa: N813 - its documentation's name

    flat = mask.squeeze()
    if flat.ndim < 2:
        return mask
    filled = sitk.BinaryFillhole(sitk.GetImageFromArray(flat.astype(np.uint8)))
    return sitk.GetArrayFromImage(filled).astype(bool).reshape(mask.shape)


def _check_values(
    image: MetaTensor, file: Path, dtype: torch.dtype | None, *, allow_constant: bool
) -> None:
    """Refuse voxels that are not finite, or not so in a type, or all the same unless allowed."""
    plain = image.as_tensor()
    low, high = plain.aminmax()
    if not bool(torch.isfinite(high - low)):  # NaN is the lowest and the highest where there is any
        bad = int(plain.numel() - torch.isfinite(plain).sum())
        raise InputError(f"{file}: voxels must be finite, {bad} of {plain.numel()} are NaN or inf")
    if dtype is not None and dtype.is_floating_point:
        most, furthest = torch.finfo(dtype).max, max(abs(low.item()), abs(high.item()))
        if furthest > most:
            raise InputError(
                f"{file}: voxels must lie within ±{most:.3g}, got finite ones to {furthest:.3g}"
            )
    if low == high and not allow_constant:
        raise InputError(f"{file}: must not be constant, every voxel is {low.item():g}")


def _reason(error: BaseException) -> str:
    """Most informative line of what a reader raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line and "Traceback" not in line]
    text = errors[-1] if errors else " ".join(lines)
    return f"{type(error).__name__}: {text[:200] or 'no reason given'}"
