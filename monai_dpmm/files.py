"""Files: untrusted tensors and JSON read safely, and folders checked before any work.

See `writing` for what is written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickletools
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from monai_dpmm.errors import FileError, InputError, InputTypeError, memory_error
from monai_dpmm.writing import (
    LAST,
    atomic_write,
    make_folder,
    replacement,
    save_tensors,
    scratch_folder,
    sweep,
    sync_below,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "LAST",
    "atomic_write",
    "file_digest",
    "json_number",
    "json_object",
    "json_value",
    "linked",
    "load_tensors",
    "make_folder",
    "plain",
    "replacement",
    "require_writable",
    "save_tensors",
    "scratch_folder",
    "sweep",
    "sync_below",
]

LEAST = 100_000_000  # bytes: a model of the small network, its checkpoint, results of a scan
_BLOCK = 1 << 20
_LONGEST_JSON = 1 << 25  # bytes
_AGAIN = "copy it again, or train again"
# what files begin with that are no archive of torch.save, and what to do about them
_OTHERS = {
    b"PK": f"it is cut off or damaged: {_AGAIN}",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": (
        "it was saved by PyTorch before 1.6, without checksums: save it again by"
        " torch.save(torch.load(FILE, weights_only=True), FILE)"
    ),
    b"\x80": "it is a pickle, which may run code: save a state dict by torch.save",
    b"version https://git-lfs": "it is a pointer of Git LFS: fetch the file by git lfs pull",
    b"<": "it is a web page: download the file itself",
    b"\x89HDF": "it is a file of HDF5: only those of torch.save are read",
    b"": f"it is no file of torch.save: {_AGAIN}",
}
_LONGEST_PICKLE = 1 << 22  # bytes, of what a file says of its tensors
# what a state dict is made of; anything else could be told to take memory, such as a bytearray
_NAMES = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch\.storage (Untyped|Typed)Storage"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch (Size|device)|torch [a-z]+\d*\w*"
)


def load_tensors(
    path: str | Path, device: torch.device | str = "cpu", *, packaged: bool = False
) -> Any:
    """What `torch.save` wrote: tensors, numbers and text in dictionaries and lists.

    Every byte is checked against the checksums in the file, and all tensors together take no more
    memory than the file has bytes.

    Args:
        path: of the file.
        device: of the tensors.
        packaged: the file is part of an installed package, and may have the form of before
            PyTorch 1.6, which has no checksums.

    Raises:
        OSError: where the file cannot be opened.
        ValueError: where it is broken, or holds anything else, such as code.
    """
    import torch  # what only reads JSON need not wait for it

    with Path(path).open("rb") as file:
        try:
            if not packaged:
                _check_archive(file)
                described = torch.load(file, map_location="meta", weights_only=True)
                _check_sizes(described, Path(path).stat().st_size)
                file.seek(0)
            return torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # a broken file can make the unpickler raise anything
            if (needed := memory_error(error, str(path))) is not None:
                raise needed from error
            reason = str(error) if isinstance(error, InputError) else _damage(error)
            raise InputError(f"{path} is broken or holds more than tensors ({reason})") from error


def _check_archive(file: IO[bytes]) -> None:
    """Refuse what is not a file of `torch.save` whose bytes are those that were written.

    Raises:
        ValueError: naming the rule, for no archive what the file is and what to do.
        BadZipFile: where it is damaged.
    """
    head = file.read(32)
    if not zipfile.is_zipfile(file):
        if not head:
            raise InputError(f"it is empty: {_AGAIN}")
        raise InputError(next(told for start, told in _OTHERS.items() if head.startswith(start)))
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        size = file.seek(0, os.SEEK_END)
        if any(e.compress_type for e in entries) or sum(e.file_size for e in entries) > size:
            raise InputError("it is compressed")
        if (damaged := archive.testzip()) is not None:
            raise InputError(f"its checksum of {damaged} is another")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                if entry.file_size > _LONGEST_PICKLE:
                    raise InputError("it says more of its tensors than they can need")
                _check_names(archive.read(entry))
    file.seek(0)


def _damage(error: Exception) -> str:
    """What is wrong with a file whose bytes no longer say what they said."""
    return f"it is damaged, {type(error).__name__}: {_AGAIN}"


def _check_names(pickled: bytes) -> None:
    """Refuse a pickle of anything but tensors, before anything is made of it."""
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"):
            raise InputError("it is no pickle of tensors")
        if operation.name == "GLOBAL" and not _NAMES.fullmatch(str(argument)):
            raise InputError(f"it names {argument}")


def _check_sizes(value: Any, limit: int) -> None:
    """Refuse tensors that are larger than the file that they lie in."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            _check_sizes(part, limit)
    elif hasattr(value, "element_size") and value.numel() * value.element_size() > limit:
        raise InputError(f"a tensor of shape {tuple(value.shape)} is larger than the file")


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, or made where it is not there yet, before any work.

    Raises:
        FileError: in one line, also where its disk has less than 100 MB left.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise FileError(f"{folder}: must be a folder to write to, {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FileError(f"{folder}: must be a folder to write to, {there} is read-only")
    if (free := shutil.disk_usage(there).free) < LEAST:
        raise FileError(
            f"{folder}: must have {LEAST / 1e6:.0f} MB free on its disk, got {free / 1e6:.0f}"
        )


def linked(file: Path, place: Path) -> None:
    """The same file in another place, where there is none: what replaces one leaves the other."""
    try:
        os.link(file, place)
    except OSError:  # a disk without links
        shutil.copy2(file, place)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def json_value(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: where it cannot be opened.
        ValueError: where it is no JSON in UTF-8, larger than 32 MB, or lists in lists without end.
    """
    with Path(path).open("rb") as file:
        content = file.read(_LONGEST_JSON + 1)
    if len(content) > _LONGEST_JSON:
        raise InputError("it is larger than 32 MB")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise InputError("it is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"it is no JSON in UTF-8, {' '.join(str(error).split())}") from None


def json_object(path: str | Path) -> dict[str, Any]:
    """Values by name that a JSON file holds.

    Raises:
        OSError, ValueError: see `json_value`; a ValueError also where it holds anything else.
    """
    value = json_value(path)
    if not isinstance(value, dict):
        raise InputError(f"values by name are needed, got {type(value).__name__}")
    return value


def json_number(value: Any) -> float | None:
    """A number of a JSON file, None for what is not defined; no text, which a page would show.

    Raises:
        TypeError: for anything else.
        OverflowError: for a whole number that no float holds.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputTypeError(f"a number is needed, got {value!r}")
    if value is not None:
        float(value)
    return value


def plain(value: Any) -> Any:
    """The value as strict JSON has it: NaN and infinity are None, what JSON lacks is its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's and torch's numbers and arrays
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
