"""DICOM files by what they hold: which of a folder's belong to one scan, and which are no scan."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from monai_dpmm.errors import InputError
from monai_dpmm.io.suffixes import DICOM_SUFFIXES, format_of

__all__ = ["DicomFolder", "dicom_folder", "dicom_header", "frames", "is_dicom", "scan_files"]

_TAGS = [
    *("SOPClassUID", "SeriesInstanceUID", "ImageType", "Modality", "NumberOfFrames"),
    *("ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns", "PixelSpacing"),
    *("PhotometricInterpretation", "SamplesPerPixel", "BitsAllocated"),
    *("RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence"),
    "PerFrameFunctionalGroupsSequence",
]
# modalities of what refers to images: reports, presentations, segmentations, plans, doses, ...
_NO_SCAN = {
    *("SR", "KO", "PR", "SEG", "REG", "DOC", "FID", "RWV", "PLAN", "STAIN", "M3D", "ANN"),
    *("RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RTIMAGE", "AU", "ECG", "HD", "EPS"),
}
_CLASSES = "1.2.840.10008.5.1.4.1.1."
_NO_SCAN_CLASSES = ("30", "66")  # parametric maps; raw data, registrations, segmentations
_CAPTURES = ("7",)  # secondary captures, such as a dose sheet
_OBJECTS, _ASIDE = "DICOM objects that are no scan", "localizers and secondary captures"


class DicomFolder(NamedTuple):
    """DICOM files of one folder.

    Attributes:
        scans: files of each scan, by their names; scans in the order of their first files.
        others: what is no scan, by its kind.
    """

    scans: list[tuple[Path, ...]]
    others: dict[str, list[Path]]


def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM by its suffix or, where that is of no other format, its content.

    An empty file without a suffix may be a slice that was lost.
    """
    if file.suffix.lower() in DICOM_SUFFIXES:
        return True
    if format_of(file) is not None:
        return False
    try:
        with file.open("rb") as stream:
            start = stream.read(132)
        return start[128:] == b"DICM" or not (start or file.suffix)
    except OSError:
        return False


def dicom_header(file: Path) -> Any:
    """What a DICOM file says of its image, without pixels; None of one that cannot be read."""
    status = file.stat()
    return _header(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=65536)
def _header(file: Path, size: int, modified: int) -> Any:
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are not as DICOM has them
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            for name in _TAGS:  # pydicom parses a value when it is asked for
                header.get(name)
            return header
    except (Exception, RecursionError):  # of a damaged file, whatever is wrong with it
        return None


def dicom_folder(files: Iterable[Path]) -> DicomFolder:
    """The scans among the DICOM files of one folder, and what is none.

    A scan is a series of slices. A file of several frames is a scan of its own, and so is a picture
    without a place in the world, as of a radiography. Localizers, and secondary captures without a
    place, are scans where nothing else is. Files that cannot be read belong to the only scan, or
    are one each, which fails to load.
    """
    series: defaultdict[str, list[Path]] = defaultdict(list)
    unread, objects = [], []
    for file in sorted(files):
        header = dicom_header(file)
        if header is None:
            unread.append(file)
        elif not _is_image(header):
            objects.append(file)
        else:
            alone = frames(header) > 1
            series[str(file) if alone else str(header.get("SeriesInstanceUID", ""))].append(file)
    found = [scan for group in series.values() for scan in _scans(group)]
    aside = [scan for scan in found if all(_is_aside(dicom_header(file)) for file in scan)]
    scans = [scan for scan in found if scan not in aside]
    if not scans:
        scans, aside = aside, []
    if len(scans) == 1:
        scans[0] += unread
    elif scans:
        scans += [[file] for file in unread]
    elif any(file.suffix.lower() in DICOM_SUFFIXES for file in unread):
        scans = [unread]
    others = {_OBJECTS: objects, _ASIDE: [file for scan in aside for file in scan]}
    return DicomFolder(
        sorted(tuple(sorted(scan)) for scan in scans), {k: v for k, v in others.items() if v}
    )


def _scans(group: list[Path]) -> list[list[Path]]:
    """A series as one scan, or each of its files where none has a place in the world."""
    placed = any("ImagePositionPatient" in dicom_header(file) for file in group)
    return [group] if placed else [[file] for file in group]


def scan_files(path: Path) -> tuple[Path, ...]:
    """Files of a DICOM scan: of the only one in a folder, or of that which a file belongs to.

    Raises:
        InputError: for a folder without a scan, or with several.
    """
    folder = path if path.is_dir() else path.parent
    files = [file for file in _listed(folder) if is_dicom(file)]
    if path.is_file():
        return next((scan for scan in dicom_folder(files).scans if path in scan), (path,))
    scans = dicom_folder(files).scans
    if not scans:
        raise InputError("there is no DICOM file of an image in the folder")
    if len(scans) > 1:
        sizes = ", ".join(str(n) for n in sorted(map(len, scans), reverse=True))
        raise InputError(f"{len(scans)} series lie in the folder, of {sizes} files")
    return scans[0]


def _listed(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:  # a link may lead to itself
        files = [Path(e.path) for e in entries if os.path.isfile(e.path)]
    return [file for file in files if not file.name.startswith(".")]


def _is_image(header: Any) -> bool:
    """Whether a file holds pixels of a scan."""
    refers = str(header.get("Modality", "")) in _NO_SCAN or _is_of(header, _NO_SCAN_CLASSES)
    return not refers and bool(header.get("Rows")) and bool(header.get("Columns"))


def _is_aside(header: Any) -> bool:
    """Whether an image lies beside scans as a rule, and is none of them."""
    capture = _is_of(header, _CAPTURES) and "ImagePositionPatient" not in header
    return capture or "LOCALIZER" in _words(header.get("ImageType"))


def _is_of(header: Any, classes: Iterable[str]) -> bool:
    """Whether a file is of one of the classes of DICOM, or one of theirs."""
    own = f"{header.get('SOPClassUID', '')}."
    return any(own.startswith(f"{_CLASSES}{one}.") for one in classes)


def frames(header: Any) -> int:
    """How many frames a file has."""
    try:
        return int(header.get("NumberOfFrames") or 1)
    except (TypeError, ValueError):
        return 1


def _words(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(word) for word in value or ()]
