"""Files that appear when they are complete: one by one, or all of a folder's together."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacement", "whole_file"]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
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
        raise OSError(f"{path}: could not be written, {reason}") from error
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
        with tempfile.TemporaryDirectory(prefix=".report-", dir=folder) as name:
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
        raise OSError(f"{target}: must be a folder, whose files are replaced, got a link")
    target.mkdir(exist_ok=True)
    for old in target.iterdir():
        if ours.fullmatch(old.name):
            old.unlink()
    for new in source.iterdir():
        os.replace(new, target / new.name)
    if not any(target.iterdir()):
        target.rmdir()
