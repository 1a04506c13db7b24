"""Files read in a process of its own, so that no header ends or stops the process that asks.

Reading libraries crash on some damaged files, wait for ever on others, or take all memory. The
process is started once, imports neither torch nor monai, and is replaced where it has died.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_dpmm.errors import InputError

__all__ = ["Pixels", "read_apart"]

_SERVE = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]);"
    " from monai_dpmm.io.reading_worker import serve; serve()"
)
_START = 120  # seconds, to import the reading libraries
_SECONDS, _PER_MB = 30.0, 1.0  # to read files, and more of a large one


class Pixels(NamedTuple):
    """What a file holds.

    Attributes:
        array: (C, X, Y, Z), or (C, W, H) of a picture.
        affine: indices to mm towards Right, Anterior, Superior, (4, 4); of a picture (3, 3).
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]


def read_apart(
    kind: Literal["itk", "picture", "series"], files: Sequence[Path], **options: Any
) -> Pixels:
    """Pixels of an image, by `monai_dpmm.io.reading_worker`.

    Args:
        kind: an image that ITK reads, a picture, or the slices of a DICOM series in their order.
        files: one, or those of the series.
        **options: of the reader, JSON.

    Raises:
        InputError: where the reader refuses the file or fails, crashes or takes too long.
    """
    size = sum(file.stat().st_size for file in files)
    request = {"kind": kind, "files": [str(file.absolute()) for file in files], "size": size}
    with _lock:
        try:
            return _process().ask({**request, "options": options}, _SECONDS + _PER_MB * size / 1e6)
        except BaseException:  # what it still says would be taken for the next answer
            if not isinstance(sys.exc_info()[1], _RefusedError):
                _end()
            raise


class _RefusedError(InputError):
    """What the process has answered, which goes on."""


class _Process:
    """The process at work.

    Raises:
        InputError: where it cannot be started.
    """

    def __init__(self) -> None:
        few = {"MALLOC_ARENA_MAX": "2", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **few},
        )
        try:
            self._answer(b"", _START)
        except InputError as error:
            raise InputError(
                "the process that reads images must start, it ended or took too long: is SimpleITK"
                " installed whole?"
            ) from error

    def ask(self, request: dict[str, Any], seconds: float) -> Pixels:
        head, content = self._answer(json.dumps(request).encode() + b"\n", seconds)
        if "refused" in head:
            raise _RefusedError(head["refused"])
        array = np.frombuffer(content, head["dtype"]).reshape(head["shape"], order=head["order"])
        return Pixels(array, np.array(head["affine"]))

    def _answer(self, request: bytes, seconds: float) -> tuple[dict[str, Any], bytearray]:
        """Head and content of the answer."""
        late = threading.Event()
        timer = threading.Timer(seconds, lambda: (late.set(), self.process.kill()))
        timer.daemon = True
        timer.start()
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            if request:
                stdin.write(request)
                stdin.flush()
            head = json.loads(stdout.readline())
            content = bytearray(head.get("bytes", 0))
            if stdout.readinto(content) == len(content):
                return head, content
        except (BrokenPipeError, ValueError):  # it has ended, in the midst of an answer or before
            pass
        finally:
            timer.cancel()
        code = self.process.wait()
        if late.is_set():
            raise InputError(f"must be readable within {seconds:.0f} s, could the file be damaged")
        raise InputError(
            f"must be readable, got a crash of the reading library (exit code {code}), could the"
            " file be damaged"
        )


_lock = threading.Lock()
_current: _Process | None = None


def _process() -> _Process:
    """The process of this one, not of the one that it was forked from."""
    global _current
    if _current is None or _current.owner != os.getpid():
        _current = _Process()
    return _current


def _end() -> None:
    global _current
    if _current is not None and _current.owner == os.getpid():
        _current.process.kill()
        _current.process.communicate()
    _current = None


def _forget() -> None:
    """In a process that was forked off, whoever was reading in the other one."""
    global _lock
    _lock = threading.Lock()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
