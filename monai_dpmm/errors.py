"""One clear line for bad input, where a command would otherwise end in a page of traceback."""

from __future__ import annotations

import atexit
import errno
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, wraps
from types import TracebackType
from typing import Any, NoReturn, TypeVar, cast

INTERRUPTED, USAGE = 130, 2  # exit codes; that of bad input is 1, as for any error

_ENGINES = ("EMTrainer", "LikelihoodEvaluator", "ScanEvaluator", "SupervisedEvaluator")

__all__ = [
    *("INTERRUPTED", "USAGE", "expected_error", "one_line_errors", "printable", "cause"),
    *("end_process", "memory_error", "one_line", "reader_reason", "report_line"),
    *("ExistingFileError", "FileError", "InputError", "InputTypeError", "MissingFileError"),
    *("MissingPackageError", "OutOfMemoryError", "SkippedScansError", "UsageError"),
    "renamed_arguments",
]


_PLACES = re.compile(r"Exception thrown in SimpleITK \w+: \S+:\d+:\s*|\(0x[0-9a-f]+\)")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class InputError(ValueError):
    """What was given cannot be used: one line that names argument or file, rule and value.

    Where MONAI Label's server is running, it is answered to the client as status 400 with the line;
    any other exception is an internal error there.
    """

    def __new__(cls, *args: object) -> InputError:
        """The error; under a server it also is one of HTTP, which carries the status."""
        kind = _answered(cast(Any, cls)) if "monailabel.app" in sys.modules else cls
        return super().__new__(kind, *args)


@cache
def _answered(kind: Any) -> Any:
    """The class of error, as one that FastAPI answers by itself."""
    from starlette.exceptions import HTTPException

    if issubclass(kind, HTTPException):
        return kind
    told = {"status_code": 400, "headers": None, "detail": property(str)}
    text = {"__str__": ValueError.__str__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind, HTTPException), told | text)


class InputTypeError(InputError, TypeError):
    """An argument of a type that cannot be used."""


class UsageError(InputError):
    """What was asked for on the command line does not exist or cannot be; nothing has been run."""


class FileError(OSError):
    """A file or folder that cannot be read or written; the message is one line."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder that must be there and is not."""


class ExistingFileError(FileError, FileExistsError):
    """A file or folder that must not be there yet and is."""


class MissingPackageError(ImportError):
    """An optional package that is needed; the message says how to install it."""


class SkippedScansError(InputError):
    """Scans that were skipped, a line each, below one that counts them."""


class OutOfMemoryError(InputError):
    """What was asked for needs more memory than there is; the message says what to lower."""


_SECRETIVE = ("pydicom", "highdicom")  # what they log names patients and UIDs
_EXPECTED = (InputError, FileError, MissingPackageError)
_MEMORY = re.compile(
    r"(can.t|cannot|unable to|failed to|failure to|not enough memory to) allocate|out of memory"
    r"|bad.?alloc|can.t start new thread|failed to map segment"
    r"|could not create a primitive(?! desc)",  # oneDNN, which gets no memory for its code
    re.IGNORECASE,
)
# of a disk, a quota or a limit: what is wrong is not the program, whichever file it was
_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENOMEM),
    *(errno.EMFILE, errno.ENFILE),
}


def expected_error(error: BaseException) -> BaseException | None:
    """Outermost error of a chain that says what was wrong with the input, None if none does.

    Workflows wrap errors ("applying transform ...", "failed to instantiate ..."); what helps a
    user is what this package raised on purpose, recognised by its class. Of several the last one
    raised says most: which file it was, or what to install. Where there is none, an OSError that
    names a file counts, as does one of a full disk, and a lack of memory. A ValueError of any other
    class is a bug and keeps its traceback.
    """
    chain = list(_chain(error))
    ours = [e for e in chain if isinstance(e, _EXPECTED)]
    memory = [needed for e in chain if (needed := memory_error(e)) is not None]
    disk = [e for e in chain if isinstance(e, OSError) and (e.filename or e.errno in _DISK)]
    return next(iter([*ours, *memory, *disk]), None)


def memory_error(error: BaseException, place: str = "") -> OutOfMemoryError | None:
    """What to say of an error that is a lack of memory, None for any other.

    Args:
        error: of Python, PyTorch or NumPy.
        place: file or scan that it was about.
    """
    if isinstance(error, OutOfMemoryError):
        return error
    told = isinstance(error, RuntimeError | ImportError | OSError) and _MEMORY.search(str(error))
    kind = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not (told or kind):
        return None
    where = f"{place}: " if place else ""
    return OutOfMemoryError(
        f"{where}there is not enough memory: lower embedding_batch_size, batch_size, image_size or"
        " components (-s NAME=VALUE), or close other programs"
    )


def one_line_errors() -> None:
    """Report bad input as one line on standard error, no traceback, for this process.

    Engines, which log what ends them as well, leave it to that line. Any other error keeps its
    traceback, and so does everything where the environment variable MONAI_DPMM_TRACEBACK is set.
    The exit code stays non-zero. What pydicom and highdicom log is not heard: they name patients
    and UIDs. The bundle's configs call this first.
    """
    for name in _SECRETIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module=name)
    if not os.environ.get("MONAI_DPMM_TRACEBACK"):
        sys.excepthook = _excepthook
        for name in _ENGINES:
            logging.getLogger(f"ignite.engine.engine.{name}").addFilter(_is_unexpected)
        if "monai" in sys.modules:  # which makes this logger, and must be the first to do so
            from monai.apps.utils import get_logger

            get_logger("monai.handlers.StatsHandler").addFilter(_is_unexpected)


def report_line(error: BaseException) -> None:
    """Print an error for a user, in one line below any progress bar; a list of scans has more."""
    if (tqdm := sys.modules.get("tqdm")) is not None:
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()
    text = str(error) if isinstance(error, SkippedScansError) else one_line(error)
    print(f"error: {printable(text)}", file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    """An error's text in one line; a system's names the file and why."""
    if isinstance(error, OSError) and not isinstance(error, FileError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def cause(error: BaseException) -> str:
    """What an error tells, for a line that wraps it: with its class where that says more."""
    text = one_line(error)
    return text if isinstance(error, _EXPECTED) else f"{type(error).__name__}: {text}"


def reader_reason(error: BaseException) -> str:
    """Class and most informative line of what a reading library raised, without its own places."""
    text = _PLACES.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and "Traceback" not in line]
    told = errors[-1] if errors else " ".join(lines)
    return f"{type(error).__name__}: {told[:200] or 'no reason given'}"


def printable(text: str) -> str:
    """Text for a terminal: a file's name in it may hold what commands one."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def renamed_arguments(**names: str) -> Callable[[_Function], _Function]:
    """Decorator by which old names of arguments work for one version, with a DeprecationWarning.

    Args:
        **names: new name of each old one.
    """

    def decorated(function: _Function) -> _Function:
        @wraps(function)
        def by_new_names(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                if names[old] in kwargs:
                    raise TypeError(f"{old} is the old name of {names[old]}, got both")
                message = f"the argument {old} is deprecated: it is {names[old]} now"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return cast(_Function, by_new_names)

    return decorated


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Whether an engine's record tells anything that the line for the user does not."""
    error = sys.exc_info()[1]
    return record.levelno < logging.ERROR or error is None or expected_error(error) is None


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Report an error and end the process with its code.

    At once, where nobody types commands: loaders and decoders may have threads that still run, and
    would abort an orderly exit with another code.
    """
    code = INTERRUPTED if issubclass(kind, KeyboardInterrupt) else 1
    expected = expected_error(error)
    if expected is not None:
        report_line(expected)
    elif code == INTERRUPTED:
        print("\ninterrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
    if not sys.flags.interactive and not hasattr(sys, "ps1"):
        end_process(code)


def end_process(code: int) -> NoReturn:
    """End this process, what was printed flushed, without waiting for threads."""
    with suppress(BaseException):  # what is left to do must not change the code
        atexit._run_exitfuncs()
    with suppress(OSError, ValueError):  # whoever read it may be gone
        if isinstance(sys.stderr, io.StringIO):  # torch.distributed would print it afterwards
            print(sys.stderr.getvalue(), end="", file=sys.__stderr__)
        for stream in (sys.stdout, sys.__stderr__, sys.stderr):
            if stream is not None:
                stream.flush()
    os._exit(code)
