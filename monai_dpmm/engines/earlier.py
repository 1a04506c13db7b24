"""Nothing is lost: a folder in use is refused, and the model that was there is kept aside."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from ignite.engine import Engine, Events

from monai_dpmm.engines.distributed import is_main_process
from monai_dpmm.errors import FileError
from monai_dpmm.files import file_digest, linked, require_writable

try:
    import fcntl
except ImportError:  # Windows: one run at a time
    fcntl = None  # type: ignore[assignment]

_LOCK = ".in_use"
_held: dict[Path, FileLock | _Shared] = {}
_made: list[Path] = []  # folders, of which those that stay empty are taken back

__all__ = ["EarlierModel", "claim_folders", "release_folders"]


class _Shared:
    """A lock that any number of processes hold at once, but none while a `FileLock` is held."""

    def __init__(self, path: Path) -> None:
        self.path, self.descriptor = path, -1

    def acquire(self, timeout: float) -> None:
        """Take it at once, or raise Timeout."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise Timeout(str(self.path)) from None
            except OSError:  # some network disks lock nothing
                pass
            self.descriptor = descriptor
            if os.fstat(descriptor).st_nlink:
                return
            os.close(descriptor)  # its last holder has just removed it

    def release(self) -> None:
        """Give it back; the last who holds it removes the file."""
        with suppress(OSError):
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path.unlink()
        os.close(self.descriptor)


def claim_folders(*folders: str | Path, shared: bool = False) -> None:
    """Take the first folder for this process, and see that all can be written, before any work.

    Folders are made where they do not exist. What this process has taken already stays its own. Of
    several processes of one run the first makes and takes them, and removes them if they stay
    empty.

    Args:
        *folders: to write to.
        shared: other runs may take the first folder so, too: each writes files of its own there.

    Raises:
        OSError: in one line, for a folder that another run is using, cannot be written, or whose
            disk has less than 100 MB left.
    """
    first = os.environ.get("RANK", "0") == "0"
    for folder in map(Path, folders):
        folder = folder.expanduser()
        if first:
            _make(folder)
        require_writable(folder)
    if folders and first:
        _take(Path(folders[0]).expanduser().resolve(), shared and fcntl is not None)


def _make(folder: Path) -> None:
    try:
        _made.extend(p for p in (folder, *folder.parents) if not p.exists())
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(f"{folder}: must be a folder to write to, {reason}") from error


def _take(folder: Path, shared: bool) -> None:
    if folder in _held:
        return
    lock = _Shared(folder / _LOCK) if shared else FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileError(
            f"{folder}: another run is using it; wait until it has ended, or take another folder"
        ) from None
    if not _held:
        atexit.register(release_folders)
    _held[folder] = lock


def release_folders() -> None:
    """Give back all folders that this process has taken; the end of the process does the same.

    Those that were made for it and stayed empty are removed.
    """
    while _held:
        folder, lock = _held.popitem()
        if isinstance(lock, FileLock):
            with suppress(OSError):  # removed while it is held: who comes next makes its own
                (folder / _LOCK).unlink()
        lock.release()
    for folder in sorted(_made, key=lambda path: -len(path.parts)):
        with suppress(OSError):  # there is something in it
            folder.rmdir()
    _made.clear()


class EarlierModel:
    """Keep a model of an earlier training aside, when the first epoch of a new one is over.

    It stays where it is until the new one takes its place, and is kept as `earlier-1`, `earlier-2`,
    ... in its folder as well, with its settings, checkpoint and history, to be used from there.

    Args:
        path: of the model, models/model.pt.
        others: files that belong to it, beside its settings.
        keep: whether to; false where the training resumes, or shall overwrite.
    """

    def __init__(
        self, path: str | Path, others: Sequence[str | Path] = (), *, keep: bool = True
    ) -> None:
        self.path, self.others, self.keep = Path(path), list(map(Path, others)), keep

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before what validates and saves."""
        if self.keep:
            engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), self)

    def __call__(self, engine: Engine) -> None:
        """Keep what is there; of several processes the main one does.

        Raises:
            OSError: in one line, where it cannot be written.
        """
        # the model last: a folder that has it is whole
        files = [*self.others, self.path.with_suffix(".json"), self.path]
        there = [file for file in files if file.is_file()]
        if not self.path.is_file() or not is_main_process():
            return
        number = 1
        while (folder := self.path.parent / f"earlier-{number}").exists():
            number += 1
        before = self.path.parent / f"earlier-{number - 1}" / self.path.name
        if before.is_file() and file_digest(before) == file_digest(self.path):
            return
        try:
            folder.mkdir()
            for file in there:
                linked(file, folder / file.name)
        except OSError as error:
            reason = error.strerror or str(error)
            raise FileError(f"{folder}: the earlier model must be kept there, {reason}") from error
        print(f"The model that was there is kept: {folder}", flush=True)
