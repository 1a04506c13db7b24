"""Files: untrusted tensors and JSON read safely, files and folders written atomically."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_dpmm.errors import FileError, InputError, InputTypeError

if TYPE_CHECKING:
    import torch

__all__ = [
    *("json_number", "json_object", "json_value", "load_tensors", "plain", "replacement"),
    "atomic_write",
]


def load_tensors(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """What `torch.save` wrote: tensors, numbers and text in dictionaries and lists.

    Raises:
        OSError: where the file cannot be opened.
        ValueError: where it is broken, or holds anything else, such as code.
    """
    import torch  # what only reads JSON need not wait for it

    with Path(path).open("rb") as file:
        try:
            return torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # a broken file can make the unpickler raise anything
            kind = type(error).__name__
            raise InputError(f"{path} is broken or holds more than tensors ({kind})") from error


def json_value(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: where it cannot be opened.
        ValueError: where it is no JSON in UTF-8, or lists in lists without end.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError("it is nested too deeply") from None


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


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Path beside another to write to; the file gets its own name when it is complete.

    Whatever fails leaves nothing there, and a file that was there before as it was. Nobody can
    guess the name beside it, so no link that lies in wait there is written through.

    Raises:
        OSError: in one line, where the file cannot be written, as on a full disk.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(f"{path}: could not be written, {reason}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacement(
    folder: Path, parts: Mapping[str, re.Pattern[str]], files: Sequence[str]
) -> Iterator[Path]:
    """Hidden folder inside `folder` to write into, put in place only if all went well.

    Whatever fails or interrupts the writing leaves the folder as it was, or absent.

    Args:
        folder: made where it does not exist.
        parts: subfolders, and what the names of our own files in them match: only those are
            replaced. One that would be empty is not left behind.
        files: in the folder itself, in the order they are put in place; the last one goes first,
            so that it is only there when all the others are.

    Raises:
        OSError: where a subfolder is a link, behind which files of others may lie.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as name:
            for part in parts:
                (Path(name) / part).mkdir()
            yield Path(name)
            (folder / files[-1]).unlink(missing_ok=True)
            for part, ours in parts.items():
                _replace(Path(name) / part, folder / part, ours)
            for file in files:
                os.replace(Path(name) / file, folder / file)
    except BaseException:
        if made:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _replace(source: Path, target: Path, ours: re.Pattern[str]) -> None:
    """Our own files of a subfolder replaced by those of another."""
    if target.is_symlink():
        raise FileError(f"{target}: must be a folder, whose files are replaced, got a link")
    target.mkdir(exist_ok=True)
    for old in target.iterdir():
        if ours.fullmatch(old.name):
            old.unlink()
    for new in source.iterdir():
        os.replace(new, target / new.name)
    if not any(target.iterdir()):
        target.rmdir()
