"""A scan from disk, checked: one volume of one channel, finite and not constant."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Transform
from monai.utils import SpaceKeys, TransformBackends, convert_to_tensor

from monai_dpmm.errors import InputError, reader_reason
from monai_dpmm.io.dicom import check_series
from monai_dpmm.io.dicom_files import is_dicom
from monai_dpmm.io.in_memory import IN_MEMORY, image_in_memory
from monai_dpmm.io.nifti import Nifti, read_nifti
from monai_dpmm.io.reading_process import Pixels, read_apart
from monai_dpmm.io.suffixes import format_of
from monai_dpmm.io.text_headers import check_header

__all__ = ["LoadVolume"]

_logger = logging.getLogger(__name__)
_UNKNOWN = 0.01  # share of the body that may be NaN
_SMALL = 1000  # voxels: fewer do not tell a mask from a scan
_LABELS, _FLAT = 64, 0.8  # most values of a mask, least share of neighbours within one of them


class LoadVolume(Transform):
    """Scan as a channel-first `MetaTensor`, float32: a path -> (1, X, Y, Z), or (1, W, H) for 2D.

    An array or tensor in memory is taken, too, see `image_in_memory`. After MONAI's
    `set_track_meta(False)` the result is a plain tensor, of the same checks.

    Reads NIfTI and FreeSurfer .mgz as nibabel does, NRRD, MetaImage and DICOM by ITK, and PNG,
    JPEG, TIFF and BMP by Pillow, the latter two in a process of their own, see
    `monai_dpmm.io.reading_process`; a file of another name is NumPy's .npy or left to ITK. Of DICOM
    the path is a folder with one scan, or a file, which stands for the series that it belongs to.

    Refuses what is not one image. A picture in colour is (3, W, H), one whose colour channels are
    equal is grey, and one channel of it is taken; a series of one volume is that volume. NaN is
    background: it becomes the lowest value, or 0 of a mask, and its share is logged. The affine is
    in mm, of a file in metres as well; that of a picture is in pixels. Of what else a header says,
    nothing is kept: `meta` holds the grid, that of a NIfTI file as it is written ("nifti_grid", see
    `read_nifti`), and the file's name.

    Args:
        dtype: type of the result; that of the file if None.
        allow_constant: take an image of one value: it is a mask.

    Raises:
        InputError: for a missing, damaged or unreadable file, one whose reading crashes or does not
            end, DICOM that is not one series with all its slices readable, several channels (4D
            series, colours but of a picture), infinite voxels, NaN in more than 1 % of the body, a
            constant image, a map of labels, a grid without volume (a spacing of zero), or a header
            that cannot be trusted (see `check_header`); the message names file, rule and value.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self, dtype: torch.dtype | None = torch.float32, *, allow_constant: bool = False
    ) -> None:
        self.dtype = dtype
        self.allow_constant = allow_constant

    def __call__(self, path: str | Path | np.ndarray | torch.Tensor) -> MetaTensor:
        if isinstance(path, np.ndarray | torch.Tensor):
            return self._checked(image_in_memory(path), Path(IN_MEMORY))
        if not os.fspath(path):
            raise InputError("a scan must have a path, got an empty one (no such scan?)")
        file = Path(path).expanduser()
        if not file.exists():
            raise InputError(f"{file}: must exist, there is no such file or folder")
        if not (file.is_file() or file.is_dir()):
            raise InputError(f"{file}: must be a file or folder, got a pipe or a device")
        try:
            check_header(file)
            read = self._read(file)
            image = _image(read, file, self.dtype)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        except Exception as error:  # nibabel raises whatever it likes
            raise InputError(
                f"{file}: must be a scalar image that can be read, got {reader_reason(error)}"
            ) from error
        return self._checked(image, file, _ends(read.array))

    def _checked(
        self, image: MetaTensor, file: Path, ends: tuple[float, float] | None = None
    ) -> MetaTensor:
        """The image, of the type that is asked for; its lowest and highest value may be known."""
        image.meta["original_affine"] = image.affine.numpy().copy()
        _check_affine(image.affine, file)
        _check_shape(image, file, colours=image.ndim == 3 and not self.allow_constant)
        if ends is None and image.is_floating_point():
            _fill_background(image, file, label=self.allow_constant)
        _check_values(image, file, self.dtype, ends, allow_constant=self.allow_constant)
        if not get_track_meta():
            return image.as_tensor() if self.dtype is None else image.as_tensor().to(self.dtype)
        return image if self.dtype is None else MetaTensor(image.to(self.dtype), meta=image.meta)

    def _read(self, file: Path) -> Nifti | Pixels:
        """What a file holds, of its own type, not yet checked."""
        found = format_of(file) if file.is_file() else None
        if found is None and file.suffix.lower() == ".npy":
            array = np.load(file, allow_pickle=False)[None]
            if array.dtype.kind not in "fiub":
                raise InputError(f"must be a scalar image, got {array.dtype}")
            return Pixels(array, np.eye(min(array.ndim, 4)))
        if found is None and file.is_file() and not is_dicom(file):
            return read_apart("itk", [file])
        if found is None:
            return _read_dicom(file)
        if found.reader == "nibabel":
            return read_nifti(file)
        options = {"label": self.allow_constant} if found.picture else {}
        return read_apart(found.reader, [file], **options)


def _image(read: Nifti | Pixels, file: Path, dtype: torch.dtype | None) -> MetaTensor:
    """Channel-first image of a file, with what MONAI's readers say of one.

    Voxels that float32 holds are converted while they are brought into order, in one pass.
    """
    if isinstance(read, Pixels):
        meta = _meta(file, read.affine, read.array.shape[1:])
        return MetaTensor(_tensor(read.array, dtype), meta=meta)
    image = np.moveaxis(read.array, -1, 0) if read.array.ndim > 3 else read.array[None]
    meta = _meta(file, read.affine, read.array.shape[:3])
    if read.grid is not None:
        meta["nifti_grid"] = read.grid
    return MetaTensor(_tensor(image, dtype), meta=meta)


def _ends(array: np.ndarray) -> tuple[float, float] | None:
    """Lowest and highest of small whole numbers, which take less time than their floats."""
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 2 or not array.size:
        return None
    memory = array.T if array.flags.f_contiguous else array
    return float(memory.min()), float(memory.max())


def _meta(file: Path, affine: np.ndarray, shape: tuple[int, ...]) -> dict[str, Any]:
    """What MONAI's readers say of an image, and what the pipeline reads."""
    return {
        "affine": torch.from_numpy(affine),
        "spatial_shape": np.array(shape),
        "space": SpaceKeys.RAS,
        "original_channel_dim": float("nan"),
        "filename_or_obj": str(file),
    }


def _tensor(array: np.ndarray, dtype: torch.dtype | None) -> torch.Tensor:
    """Tensor of an array that may lie otherwise in memory, and have another byte order."""
    at_once = dtype == torch.float32 and array.dtype.itemsize <= 4
    native = np.dtype(np.float32) if at_once else array.dtype.newbyteorder("=")
    if array.ndim < 3:  # no image, as is found out later
        return convert_to_tensor(np.ascontiguousarray(array, native))
    ordered = np.empty(array.shape, native)
    for y in range(array.shape[2]):  # a fraction of the time of all at once: caches hold a plane
        ordered[:, :, y] = np.ascontiguousarray(array[:, :, y].T).T
    return convert_to_tensor(ordered)


def _read_dicom(path: Path) -> Pixels:
    """The slices of a DICOM scan, placed where their headers have them.

    ITK straightens a tilted gantry.
    """
    try:
        series = check_series(path)
        pixels = read_apart("series", series.files, exact=series.exact)
    except InputError as error:
        raise InputError(f"must be one DICOM series: {error}") from error
    if len(series.positions):
        first, last = series.positions[0], series.positions[-1]
        pixels.affine[:3, 2] = (last - first) / (len(series.positions) - 1)
    return pixels


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


def _check_shape(image: MetaTensor, file: Path, *, colours: bool) -> None:
    """Refuse what is not one image of one channel, or of three colours where those are taken."""
    shape = tuple(image.shape)
    if image.ndim not in (3, 4) or min(shape) < 1:
        raise InputError(f"{file}: must be one 2D or 3D image, got shape {shape[1:]}")
    if shape[0] != 1 and not (colours and shape[0] == 3):
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
    image: MetaTensor,
    file: Path,
    dtype: torch.dtype | None,
    ends: tuple[float, float] | None,
    *,
    allow_constant: bool,
) -> None:
    """Refuse voxels that are not finite, or not so in a type, or all the same unless allowed."""
    plain = image.as_tensor()
    low, high = map(torch.tensor, ends) if ends else plain.aminmax()
    if not bool(torch.isfinite(high - low)):  # NaN is the lowest and the highest where there is any
        bad = int(plain.numel() - torch.isfinite(plain).sum())
        raise InputError(f"{file}: voxels must be finite, {bad} of {plain.numel()} are NaN or inf")
    if dtype is not None and dtype.is_floating_point:
        most, furthest = torch.finfo(dtype).max, max(abs(low.item()), abs(high.item()))
        if furthest > most:
            raise InputError(
                f"{file}: voxels must lie within ±{most:.3g}, got finite ones to {furthest:.3g}"
            )
    if allow_constant:
        return
    if low == high:
        raise InputError(f"{file}: must not be constant, every voxel is {low.item():g}")
    if plain.numel() >= _SMALL and len(plain) == 1 and (values := _labels(plain[0])):
        raise InputError(
            f"{file}: must be a scan, got {values} values in flat regions, as a mask has them"
        )


def _labels(image: torch.Tensor) -> int:
    """How many labels a map of labels has, (X, Y, Z) or (H, W); 0 of a scan.

    A map has few values, and but for its commonest one they go on in most neighbours.
    """
    some = image.flatten()[:: max(1, image.numel() // 10_000)]
    if len(some.unique()) > _LABELS or len(values := image.unique()) > _LABELS:
        return 0
    there = image != some.mode().values
    equal = pairs = 0
    for axis, length in enumerate(image.shape):
        one, other = (image.narrow(axis, start, length - 1) for start in (0, 1))
        both = there.narrow(axis, 0, length - 1) & there.narrow(axis, 1, length - 1)
        equal += int(((one == other) & both).sum())
        pairs += int(both.sum())
    return len(values) if equal >= _FLAT * pairs > 0 else 0
