"""A scan from disk, checked: one volume of one channel, finite and not constant."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Transform

__all__ = ["InputError", "LoadVolume"]


class InputError(ValueError):
    """A file that cannot be used: the message is one line with file, rule and value."""


class LoadVolume(Transform):
    """Scan as a channel-first `MetaTensor`, float32: a path -> (1, X, Y, Z), or (1, H, W) for 2D.

    Reads what MONAI's readers read (NIfTI, FreeSurfer .mgz, NRRD, MetaImage, a folder with one
    DICOM series, PNG, JPEG, TIFF) and refuses what is not one scalar image.

    Args:
        dtype: type of the result.

    Raises:
        InputError: for a missing or unreadable file, several channels (4D series, RGB), NaN or
            infinite voxels, or a constant image; the message names file, rule and value.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        common: dict[str, Any] = {"ensure_channel_first": True, "dtype": dtype, "image_only": True}
        with warnings.catch_warnings():  # about optional DICOM decoders that are not installed
            warnings.filterwarnings("ignore", message=".*nvImageCodec")
            self._loader = LoadImage(**common)
            # MONAI leaves .mgz to ITK, which cannot read it
            self._nibabel = LoadImage("NibabelReader", **common)

    def __call__(self, path: str | Path) -> MetaTensor:
        file = Path(path).expanduser()
        if not file.exists():
            raise InputError(f"{file}: must exist, there is no such file or folder")
        loader = self._nibabel if file.suffix in (".mgz", ".mgh") else self._loader
        try:
            image = loader(file)
        except Exception as error:  # the readers raise whatever their libraries raise
            raise InputError(
                f"{file}: must be a scalar image that MONAI reads, got {_reason(error)}"
            ) from error
        _check_image(image, file)
        return image


def _check_image(image: MetaTensor, file: Path) -> None:
    """Refuse what is not one finite, non-constant image of one channel."""
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
    if low == high:
        raise InputError(f"{file}: must not be constant, every voxel is {low.item():g}")


def _reason(error: BaseException) -> str:
    """First telling line of what a reader raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line and "Traceback" not in line]
    return f"{type(error).__name__}: {(telling or lines or ['no reason given'])[-1][:200]}"
