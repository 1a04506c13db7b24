"""A folder with one DICOM series, checked before it is read: every slice there, and once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["check_series", "series_headers"]

_TAGS = ["SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient"]
_SAME = 0.01  # of the slice distance: rounding in the files


def series_headers(folder: Path) -> list[Any]:
    """Headers of the DICOM files in a folder (not below it), without pixels, by file name.

    Raises:
        ValueError: where a file ending in .dcm is none.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [header for header in map(_header, files) if header is not None]


def _header(file: Path) -> Any:
    """Header of a DICOM file, None for another file.

    Raises:
        ValueError: where a file ending in .dcm is none.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
    except (InvalidDicomError, EOFError, OSError) as error:
        if file.suffix.lower() == ".dcm":
            raise ValueError(f"{file.name} is no readable DICOM file") from error
        return None


def check_series(folder: Path) -> None:
    """Refuse a folder whose DICOM files are not the slices of one volume, all of them.

    Raises:
        ValueError: for no or broken files, several series, slices of different directions, slices
            that are there twice, and gaps; the message follows "must be one DICOM series: ".
    """
    headers = series_headers(folder)
    if not headers:
        raise ValueError("there is no DICOM file in the folder")
    series = Counter(str(header.get("SeriesInstanceUID", "")) for header in headers)
    if len(series) > 1:
        sizes = ", ".join(str(count) for count in sorted(series.values(), reverse=True))
        raise ValueError(f"{len(series)} series lie in the folder, of {sizes} files")
    if len(headers) > 1:
        _check_positions(headers)


def _check_positions(headers: list[Any]) -> None:
    """Refuse slices that do not follow each other at one distance."""
    if any("ImagePositionPatient" not in h or "ImageOrientationPatient" not in h for h in headers):
        raise ValueError("slices must have a position and an orientation")
    directions = np.array([header.ImageOrientationPatient for header in headers], dtype=float)
    if np.abs(directions - directions[0]).max() > 1e-3:
        raise ValueError("slices have different directions, as with a localizer among them")
    normal = np.cross(directions[0, :3], directions[0, 3:])
    positions = np.array([header.ImagePositionPatient for header in headers], dtype=float)
    steps = np.diff(np.sort(positions @ normal))
    usual = float(np.median(steps))
    twice = int((steps <= _SAME * usual).sum()) if usual > 0 else len(steps)
    if twice:
        raise ValueError(f"{twice} of {len(headers)} slices lie where another one lies")
    if steps.max() > 1.5 * usual:
        raise ValueError(
            f"slices are missing: neighbours are {usual:g} mm apart, but some {steps.max():g} mm"
        )
