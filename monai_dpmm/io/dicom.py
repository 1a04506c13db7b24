"""A folder with one DICOM series, checked before it is read: every slice there, and once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from monai_dpmm.errors import InputError

__all__ = ["check_series", "series_headers"]

_TAGS = [
    *("SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient"),
    *("Rows", "Columns", "PixelSpacing"),
]
_LENGTHS = {
    **{"ImagePositionPatient": 3, "ImageOrientationPatient": 6},
    **{"Rows": 1, "Columns": 1, "PixelSpacing": 2},
}
_SAME = 0.01  # of the slice distance: rounding in the files
_TO_RAS = np.array([-1.0, -1.0, 1.0])  # from Left, Posterior, Superior


def series_headers(folder: Path) -> list[Any]:
    """Headers of the DICOM files in a folder (not below it), without pixels, by file name.

    Raises:
        ValueError: where a file ending in .dcm is none, or a file is empty.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [header for header in map(_header, files) if header is not None]


def _header(file: Path) -> Any:
    """Header of a DICOM file, None for another file.

    Raises:
        ValueError: where a file ending in .dcm is none, or a file is empty.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
    except (InvalidDicomError, EOFError, OSError) as error:
        if file.suffix.lower() == ".dcm" or file.stat().st_size == 0:
            raise InputError(f"{file.name} is no readable DICOM file") from error
        return None


def check_series(folder: Path) -> np.ndarray:
    """Positions of the slices of one volume, in mm towards Right, Anterior, Superior: (S, 3).

    They follow each other along the slices' normal. Of a single file, which may hold several
    frames, there are none, (0, 3).

    Raises:
        ValueError: for no or broken files, several series, slices of different sizes or directions,
            slices that are there twice, gaps, and slices that are shifted against each other; the
            message follows "must be one DICOM series: ".
    """
    headers = series_headers(folder)
    if not headers:
        raise InputError("there is no DICOM file in the folder")
    series = Counter(str(header.get("SeriesInstanceUID", "")) for header in headers)
    if len(series) > 1:
        sizes = ", ".join(str(count) for count in sorted(series.values(), reverse=True))
        raise InputError(f"{len(series)} series lie in the folder, of {sizes} files")
    _check_lengths(headers)
    pixels = _pixel_size(headers)
    return _TO_RAS * _positions(headers, pixels) if len(headers) > 1 else np.zeros((0, 3))


def _check_lengths(headers: list[Any]) -> None:
    """Refuse values of another number than DICOM has of them."""
    for name, length in _LENGTHS.items():
        for value in (header[name].value for header in headers if name in header):
            parts = [value] if isinstance(value, int | float | str) else list(value or [])
            if len(parts) != length:
                raise InputError(f"{name} must have {length} values, got {len(parts)}")


def _pixel_size(headers: list[Any]) -> float:
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


def _positions(headers: list[Any], pixel: float) -> np.ndarray:
    """Positions of slices that follow each other on a line at one distance: (S, 3), as in DICOM."""
    if any("ImagePositionPatient" not in h or "ImageOrientationPatient" not in h for h in headers):
        raise InputError("slices must have a position and an orientation")
    directions = np.array([header.ImageOrientationPatient for header in headers], dtype=float)
    if np.abs(directions - directions[0]).max() > 1e-3:
        raise InputError("slices have different directions, as with a localizer among them")
    normal = np.cross(directions[0, :3], directions[0, 3:])
    positions = np.array([header.ImagePositionPatient for header in headers], dtype=float)
    positions = positions[np.argsort(positions @ normal)]
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
    return positions
