"""A report's folder: who writes there, what is moved aside, what is told where that fails."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from monai_dpmm.errors import FileError
from monai_dpmm.files import make_folder

_LOCK = ".report_in_use"

__all__ = ["aside", "one_line", "taken"]


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """Of several runs, one at a time writes the report; the others wait."""
    with one_line(folder):
        make_folder(folder.parent)
        lock = FileLock(folder.parent / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"Another run writes its report into {folder}; waiting for it", flush=True)
            lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):  # removed while it is held: who comes next makes its own
            (folder.parent / _LOCK).unlink()
        lock.release()


@contextmanager
def aside(folder: Path, apart: bool) -> Iterator[None]:
    """A report that would be lost is moved beside the new one; what fails moves it back.

    Args:
        folder: of both.
        apart: whether it would be lost.
    """
    places = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
    place = next(place for place in places if not place.exists()) if apart else None
    if place is not None:
        folder.rename(place)
    try:
        yield
    except BaseException:
        if place is not None:
            shutil.rmtree(folder, ignore_errors=True)
            place.rename(folder)
        raise
    if place is not None:
        print(f"The report that was there before: {place}")


@contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """An OSError of writing as one line."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(f"{folder}: could not be written, {reason}") from error
