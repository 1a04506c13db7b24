"""Formats that scans come in and volumes are written in, by the ends of their names: one row each.

A new format of results is a row here, its writer in `monai_dpmm.io.formats` and a test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

__all__ = [
    *("DICOM_SUFFIXES", "FORMATS", "IMAGE_SUFFIXES", "PICTURE_SUFFIXES", "WRITTEN_SUFFIXES"),
    *("Format", "format_of", "is_picture", "stem"),
]


class Format(NamedTuple):
    """A format.

    Attributes:
        suffix: end of a file's name, lower case.
        reader: "nibabel" (see `read_nifti`), ITK, or Pillow for pictures.
        writer: of volumes, by the library; None where none are written.
        header: of text, that a reader would follow to other files, see `check_header`.
    """

    suffix: str
    reader: Literal["nibabel", "itk", "picture"]
    writer: Literal["nibabel", "itk"] | None = None
    header: Literal["nrrd", "metaimage"] | None = None

    @property
    def picture(self) -> bool:
        """Whether it has pixels only, no place in the world."""
        return self.reader == "picture"


FORMATS = (
    Format(".nii.gz", "nibabel", "nibabel"),
    Format(".nii", "nibabel", "nibabel"),
    Format(".mgz", "nibabel"),
    Format(".mgh", "nibabel"),
    Format(".nrrd", "itk", "itk", header="nrrd"),
    Format(".nhdr", "itk", header="nrrd"),
    Format(".mha", "itk", "itk", header="metaimage"),
    Format(".mhd", "itk", header="metaimage"),
    *(Format(s, "picture") for s in (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")),
)
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
IMAGE_SUFFIXES = tuple(row.suffix for row in FORMATS)
WRITTEN_SUFFIXES = tuple(row.suffix for row in FORMATS if row.writer)
PICTURE_SUFFIXES = tuple(row.suffix for row in FORMATS if row.picture)


def format_of(path: str | Path) -> Format | None:
    """Format of a file by its name, None where it is not known."""
    name = Path(path).name.lower()
    return next((row for row in FORMATS if name.endswith(row.suffix)), None)


def is_picture(path: str | Path) -> bool:
    """Whether a file is a picture, by its name."""
    found = format_of(path)
    return found is not None and found.picture


def stem(path: str | Path) -> str:
    """Name of an image file without its suffix; of any other file the name."""
    found, name = format_of(path), Path(path).name
    suffix = next((s for s in DICOM_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix if found is None else found.suffix)]
