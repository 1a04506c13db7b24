"""A DICOM scan, checked before it is read: every slice there, and once, and of known values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monai_dpmm.errors import InputError
from monai_dpmm.io.dicom_files import dicom_header, frames, scan_files

__all__ = ["Series", "check_series"]

_LENGTHS = {
    **{"ImagePositionPatient": 3, "ImageOrientationPatient": 6},
    **{"Rows": 1, "Columns": 1, "PixelSpacing": 2},
}
_SAME = 0.01  # of the slice distance: rounding in the files
_TO_RAS = np.array([-1.0, -1.0, 1.0])  # from Left, Posterior, Superior
_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")  # not compressed


class Series(NamedTuple):
    """Slices of a scan.

    Attributes:
        files: in the order of the slices along their normal.
        positions: of the slices, mm towards Right, Anterior, Superior, (S, 3); (0, 3) of one file.
        exact: whether values need more than the type of the first slice's: they scale differently.
    """

    files: tuple[Path, ...]
    positions: np.ndarray
    exact: bool


def check_series(path: Path) -> Series:
    """The slices of a scan: of the only one in a folder, or of that which a file belongs to.

    Raises:
        InputError: for no or broken files, several series, colours, a mosaic, slices of different
            sizes or directions, slices that are there twice, gaps, and slices that are shifted
            against each other; the message follows "must be one DICOM series: ".
    """
    files = scan_files(path)
    headers = [_readable(file) for file in files]
    for file, header in zip(files, headers, strict=True):
        _check_image(file, header)
    _check_lengths(headers)
    pixels = _pixel_size(headers)
    exact = len({_scale(header) for header in headers}) > 1
    if len(files) == 1:
        _check_frames(headers[0])
        return Series(files, np.zeros((0, 3)), False)
    order, positions = _positions(headers, pixels)
    return Series(tuple(files[i] for i in order), _TO_RAS * positions, exact)


def _readable(file: Path) -> Any:
    header = dicom_header(file)
    if header is None:
        raise InputError(f"{file.name} is no readable DICOM file")
    return header


def _check_image(file: Path, header: Any) -> None:
    """Refuse what is known to be misread, or to crash the reading library."""
    colours = str(header.get("PhotometricInterpretation", ""))
    if colours and not colours.startswith("MONOCHROME"):
        raise InputError(f"{file.name} must be grey, got {colours}")
    if "MOSAIC" in (header.get("ImageType") or ()):
        raise InputError(
            f"{file.name} is a mosaic, many slices in one picture: convert it, as with dcm2niix"
        )
    syntax = str(getattr(header.file_meta, "TransferSyntaxUID", ""))
    sizes = [header.get(name) for name in ("Rows", "Columns", "BitsAllocated")]
    if syntax in _PLAIN and all(isinstance(size, int) for size in sizes):
        wanted = math.prod(sizes) * frames(header) // 8
        if wanted > file.stat().st_size:
            raise InputError(
                f"{file.name} must hold the {wanted} bytes that its header asks for, it has"
                f" {file.stat().st_size}"
            )


def _scale(header: Any) -> tuple[float, float]:
    """Slope and intercept of the values."""
    try:
        slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
        return (1.0 if slope is None else float(slope), float(intercept or 0))
    except (TypeError, ValueError) as error:
        raise InputError(f"slope and intercept must be numbers: {error}") from error


def _check_frames(header: Any) -> None:
    """Refuse frames that are no volume in their order, or whose values scale differently."""
    groups = header.get("PerFrameFunctionalGroupsSequence") or ()
    planes = [_first(group, "PlanePositionSequence", "ImagePositionPatient") for group in groups]
    scales = {
        str(_first(group, "PixelValueTransformationSequence", "RescaleSlope")) for group in groups
    }
    if len(scales) > 1:
        raise InputError("the values of its frames scale differently: convert it, as by dcm2niix")
    if len(planes) < 3 or any(plane is None for plane in planes):
        return
    steps = np.diff(np.array(planes, dtype=float), axis=0)
    if np.abs(steps - steps[0]).max() > max(_SAME * np.linalg.norm(steps[0]), 1e-3):
        raise InputError("its frames must follow each other at one distance, as of one volume")
    if not np.abs(steps[0]).max() > 0:
        raise InputError("its frames lie in one place, as in a time series")


def _first(group: Any, sequence: str, name: str) -> Any:
    items = group.get(sequence)
    return items[0].get(name) if items else None


def _check_lengths(headers: Sequence[Any]) -> None:
    """Refuse values of another number than DICOM has of them."""
    for name, length in _LENGTHS.items():
        for value in (header[name].value for header in headers if name in header):
            parts = [value] if isinstance(value, int | float | str) else list(value or [])
            if len(parts) != length:
                raise InputError(f"{name} must have {length} values, got {len(parts)}")


def _pixel_size(headers: Sequence[Any]) -> float:
    """The larger side of a pixel in mm, the same in all slices; 0 where none is known."""
    sizes = {(header.get("Rows"), header.get("Columns")) for header in headers}
    if len(sizes) > 1:
        shown = ", ".join(f"{columns} x {rows}" for rows, columns in sorted(sizes, key=str))
        raise InputError(f"slices have different sizes: {shown}")
    spacings = np.array([header.get("PixelSpacing") or (np.nan,) * 2 for header in headers], float)
    if np.isnan(spacings).all():
        return 0.0
    first = spacings[0]
    if not np.allclose(spacings, first, rtol=1e-3) or not (first > 0).all():
        low, high = np.nanmin(spacings), np.nanmax(spacings)
        raise InputError(f"pixels must have one size above 0, got {low:g} to {high:g} mm")
    return float(first.max())


def _positions(headers: Sequence[Any], pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Order of slices that follow each other on a line at one distance, and positions: (S, 3)."""
    if any("ImagePositionPatient" not in h or "ImageOrientationPatient" not in h for h in headers):
        raise InputError("slices must have a position and an orientation")
    directions = np.array([header.ImageOrientationPatient for header in headers], dtype=float)
    if np.abs(directions - directions[0]).max() > 1e-3:
        raise InputError("slices have different directions, as with a localizer among them")
    normal = np.cross(directions[0, :3], directions[0, 3:])
    positions = np.array([header.ImagePositionPatient for header in headers], dtype=float)
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    heights = positions @ normal
    steps = np.diff(heights)
    usual = float(np.median(steps))
    twice = int((steps <= _SAME * usual).sum()) if usual > 0 else len(steps)
    if twice:
        raise InputError(f"{twice} of {len(headers)} slices lie where another one lies")
    if steps.max() > 1.5 * usual:
        raise InputError(
            f"slices are missing: neighbours are {usual:g} mm apart, but some {steps.max():g} mm"
        )
    share = (heights - heights[0]) / (heights[-1] - heights[0])
    line = positions[0] + share[:, None] * (positions[-1] - positions[0])
    shift = float(np.linalg.norm(positions - line, axis=1).max())
    if shift > max(pixel, _SAME * usual):
        raise InputError(f"slices are shifted against each other, by {shift:g} mm")
    return order, positions
