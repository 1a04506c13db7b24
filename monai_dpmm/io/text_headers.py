"""Headers of NRRD and MetaImage files, which are text, checked before a reader follows them."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from monai_dpmm.errors import InputError
from monai_dpmm.io.suffixes import format_of

__all__ = ["check_header"]

_LONGEST = 1 << 20
_PATIENT_SPACES = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior")
_OTHER_SPACES = ("scanner-xyz", "3d-right-handed", "3d-left-handed")
# of the NRRD format; each may end in -time, and those of a patient may be abbreviated
_NRRD_SPACES = {*_PATIENT_SPACES, *_OTHER_SPACES, "ras", "las", "lps"}
# the field that names the files of the voxels; where it is a list, the lines after it do
_DATA_FIELDS = {
    "nrrd": r"^data ?file:(.*)$",
    "metaimage": r"^\s*ElementDataFile\s*[=:](.*)$",
}
_DIMENSION = {"nrrd": r"^dimension:(.*)$", "metaimage": r"^\s*NDims\s*[=:](.*)$"}
_MOST_AXES = 4
# fields of one value for each axis
_PER_AXIS = {
    "nrrd": r"^(sizes|spacings|thicknesses|axis ?m(?:in|ax)s|cent(?:er|ering)s|kinds):(.*)$",
    "metaimage": r"^\s*(DimSize|ElementSpacing|ElementSize)\s*[=:](.*)$",
}


def check_header(file: Path) -> None:
    """Refuse an NRRD or MetaImage file that readers would misread, or read other files for.

    Files of other suffixes pass.

    Raises:
        ValueError: for an NRRD file of a space that does not exist, which some readers take for
            none, a file whose voxels lie outside its folder, so that a scan could show any file of
            this computer, other numbers of axes than readers bear, and a header of more than 1 MB.
    """
    found = format_of(file)
    if found is None or found.header is None:
        return
    header = _header(file, ends_with_blank=found.header == "nrrd")
    if found.header == "nrrd":
        _check_space(header)
    _check_axes(header, found.header)
    field = re.search(_DATA_FIELDS[found.header], header, re.MULTILINE | re.IGNORECASE)
    if field is not None:
        for name in [field[1], *header[field.end() :].splitlines()]:
            _check_inside(name.strip())


def _header(file: Path, *, ends_with_blank: bool) -> str:
    """The header's lines; voxels that may follow are cut off."""
    with file.open("rb") as stream:
        read = stream.read(_LONGEST)
    text = re.sub(r"\r\n?", "\n", read.decode("latin-1"))
    header, end, _ = text.partition("\n\n" if ends_with_blank else "LOCAL\n")
    if not end and len(read) == _LONGEST:
        raise InputError("the header must end within 1 MB")
    return header


def _check_space(header: str) -> None:
    field = re.search(r"^space:(.*)$", header, re.MULTILINE)
    space = "" if field is None else field[1].strip()
    if space and re.sub("-?(time|t)$", "", space.lower()) not in _NRRD_SPACES:
        raise InputError(f"space must be one that NRRD defines, got {space!r}")


def _check_axes(header: str, kind: str) -> None:
    """Refuse numbers of axes, and of values for them, that crash a reader."""
    field = re.search(_DIMENSION[kind], header, re.MULTILINE | re.IGNORECASE)
    axes = field[1].strip() if field else ""
    if not axes.isdecimal() or not 1 <= int(axes[:9]) <= _MOST_AXES:
        raise InputError(f"must be a scalar image of 1 to {_MOST_AXES} axes, got {axes[:20]!r}")
    for name, values in re.findall(_PER_AXIS[kind], header, re.MULTILINE | re.IGNORECASE):
        if len(values.split()) != int(axes):
            raise InputError(
                f"must be a scalar image, with {axes} values for its field {name}, got"
                f" {len(values.split())}"
            )


def _check_inside(name: str) -> None:
    """Refuse a path that leads out of the folder, by the rules of any system."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or path.drive or ".." in path.parts:
            raise InputError(f"its voxels must lie in its folder, got {name!r}")
