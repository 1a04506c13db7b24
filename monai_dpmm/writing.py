"""Files and folders written whole or not at all, also where a process is killed or power is cut.

What is written lies beside its place, is synchronised and renamed, then the folder is synchronised.
A killed run leaves hidden leftovers, which their writer had locked: the next that writes into the
folder completes or removes them.
"""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from monai_dpmm.errors import FileError

try:
    import fcntl
except ImportError:  # Windows: leftovers stay
    fcntl = None  # type: ignore[assignment]

__all__ = [
    *("LAST", "atomic_write", "make_folder", "replacement", "save_tensors", "scratch_folder"),
    *("sweep", "sync_below"),
]

LAST = ".last-"  # begins the name of a folder's last file until all others are in place
_FILE = re.compile(r"\.[0-9a-f]{16}\..+")  # of an earlier version
_FOLDER = re.compile(r"\.(partial|commit|moving)-[0-9a-f]{16}")
_FRESH = 5.0  # seconds in which a writer has surely locked what it has made
_FORGOTTEN = 86400.0  # seconds after which what no disk of a network locks is old
_swept: set[Path] = set()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Path to write to; the file takes the place of another when it is complete.

    Whatever fails leaves nothing there, and a file that was there before as it was. Nobody can
    guess the folder that it lies in, so no link that lies in wait there is written through.

    Raises:
        OSError: in one line, where the file cannot be written, as on a full disk.
    """
    try:
        with scratch_folder(path.parent) as scratch:  # some libraries write further files beside it
            yield scratch / path.name
            _sync(scratch / path.name)
            os.replace(scratch / path.name, path)
        _sync(path.parent)
    except OSError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise FileError(f"{path}: could not be written, {error.strerror or error}") from error


def save_tensors(value: Any, path: Path) -> None:
    """Write a file that `load_tensors` reads, see `atomic_write`; its folder is made."""
    import torch  # what writes other files need not wait for it

    make_folder(path.parent)
    with atomic_write(path) as partial, partial.open("wb") as file:
        kept = _Kept(file)
        try:
            torch.save(value, kept)
        except Exception as error:
            raise (kept.error or error) from error


class _Kept:
    """A file for torch, which hides why writing to it fails."""

    def __init__(self, file: Any) -> None:
        self.file, self.error = file, None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def make_folder(folder: Path) -> bool:
    """Make a folder and those above it; whether it was not there. An OSError is one line."""
    if folder.is_dir():
        return False
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in missing:
            _sync(one.parent)
    except OSError as error:
        raise FileError(f"{folder}: could not be made, {error.strerror or error}") from error
    return True


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Hidden folder to write into, which nobody else can read, removed at the end."""
    _sweep_once(parent)
    path = parent / f".partial-{secrets.token_hex(8)}"
    try:
        path.mkdir(0o700)
        with _locked(os.open(path, os.O_RDONLY)):
            yield path
    except OSError as error:
        if path.name not in str(error):
            raise
        raise _of_its_place(error, path) from error
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _of_its_place(error: OSError, hidden: Path) -> FileError:
    """An error that names a hidden folder, told of what would lie in the folder above."""
    text = f"{hidden.parent}: could not be written, {error.strerror or error}"
    known = str(error).replace(f"{os.sep}{hidden.name}", "")
    named = FileError(known if isinstance(error, FileError) else text)
    named.strerror = error.strerror
    return named


@contextmanager
def replacement(
    folder: Path,
    parts: Mapping[str, re.Pattern[str]],
    files: Sequence[str],
    *,
    marked: bool = True,
) -> Iterator[Path]:
    """Hidden folder inside `folder` to write into, put in place only if all went well.

    Whatever fails or interrupts the writing leaves the folder as it was, or absent; what interrupts
    the files' being put in place leaves that to the next run.

    Args:
        folder: made where it does not exist.
        parts: subfolders, and what the names of our own files in them match: only those are
            replaced. One that would be empty is not left behind.
        files: in the folder itself; the last one is put in place when all others are.
        marked: the last one goes first, so that it is only there when all the others are.

    Raises:
        OSError: where a subfolder is a link, behind which files of others may lie.
    """
    made = make_folder(folder)
    with _locked(os.open(folder, os.O_RDONLY), wait=True):
        sweep(folder, parts)
    committed = False
    try:
        with scratch_folder(folder) as partial:
            for part in parts:
                (partial / part).mkdir()
            yield partial
            _check_links(folder, parts)
            os.rename(partial / files[-1], partial / f"{LAST}{files[-1]}")
            sync_below(partial)
            commit = partial.with_name(partial.name.replace("partial", "commit"))
            os.rename(partial, commit)
            committed = True
            with _locked(os.open(folder, os.O_RDONLY), wait=True):  # one run's files at a time
                _finish(commit, parts, marked=marked)
    except BaseException:
        if made and not committed:
            with suppress(OSError):  # another process may write there
                folder.rmdir()
        raise


def _check_links(folder: Path, parts: Iterable[str]) -> None:
    """Refuse subfolders behind which files of others may lie."""
    for part in parts:
        if (folder / part).is_symlink():
            raise FileError(
                f"{folder / part}: must be a folder, whose files are replaced, got a link"
            )


def _finish(source: Path, parts: Mapping[str, re.Pattern[str]], *, marked: bool = True) -> None:
    """Put a complete folder's files in place, from wherever an earlier attempt was cut off."""
    folder = source.parent
    _check_links(folder, parts)
    if source.name.startswith(".commit-"):
        for path in source.glob(f"{LAST}*"):
            if marked:
                (folder / path.name.removeprefix(LAST)).unlink(missing_ok=True)
                _sync(folder)
        for part, ours in parts.items():
            for old in (folder / part).iterdir() if (folder / part).is_dir() else ():
                if ours.fullmatch(old.name):
                    old.unlink()
        source = source.rename(source.with_name(source.name.replace("commit", "moving")))
    for part in filter(lambda part: (source / part).is_dir(), parts):
        (folder / part).mkdir(exist_ok=True)
        for new in (source / part).iterdir():
            os.replace(new, folder / part / new.name)
        _sync(folder / part)
        if not any((folder / part).iterdir()):
            (folder / part).rmdir()
        (source / part).rmdir()
    rest = sorted(source.iterdir(), key=lambda path: path.name.startswith(LAST))
    for path in rest:
        if path.name.startswith(LAST):
            _sync(folder)
        os.replace(path, folder / path.name.removeprefix(LAST))
    source.rmdir()
    _sync(folder)


def sweep(folder: Path, parts: Mapping[str, re.Pattern[str]] | None = None) -> None:
    """Complete or remove what killed runs have left in a folder; what is being written stays.

    Args:
        folder: not searched below.
        parts: of the `replacement` whose folders are completed; None leaves those alone.
    """
    for path in list(folder.iterdir()) if folder.is_dir() and fcntl is not None else ():
        if path.is_symlink() or not (_FILE if path.is_file() else _FOLDER).fullmatch(path.name):
            continue
        with suppress(OSError), _abandoned(path) as abandoned:
            if abandoned and path.is_file():
                path.unlink()
            elif abandoned and path.name.startswith(".partial-"):
                shutil.rmtree(path)
            elif abandoned and parts is not None:
                _finish(path, parts)


def _sweep_once(folder: Path) -> None:
    """Remove leftovers of a folder that this process has not written to yet."""
    if folder.absolute() not in _swept:
        _swept.add(folder.absolute())
        sweep(folder)


@contextmanager
def _locked(descriptor: int, *, wait: bool = False) -> Iterator[None]:
    """Hold what is written, as long as it lasts, so that no sweep takes it for abandoned."""
    try:
        if fcntl is not None:
            with suppress(OSError):  # some network disks lock nothing
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _abandoned(path: Path) -> Iterator[bool]:
    """Whether nobody writes to a file or folder any more."""
    age = time.time() - path.stat().st_mtime
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        yield age > _patience(descriptor)
    finally:
        os.close(descriptor)


def _patience(descriptor: int) -> float:
    """Seconds after which what is behind a descriptor is abandoned; it is locked if it can be."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # somebody writes there
        return math.inf
    except OSError:
        return _FORGOTTEN
    return _FRESH


def _sync(path: Path) -> None:
    """Have a file or a folder's names on the disk."""
    if fcntl is None and path.is_dir():
        return  # Windows cannot
    descriptor = os.open(path, os.O_RDWR if fcntl is None else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of a folder, on some network disks
            raise
    finally:
        os.close(descriptor)


def sync_below(folder: Path) -> None:
    """Have all of a folder on the disk."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)
