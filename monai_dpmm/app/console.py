"""What a command prints: our own lines, one bar where a terminal is, nothing of other packages."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from monai_dpmm.errors import printable

_PACKAGE = str(Path(__file__).parents[1])
_OURS = ("monai_dpmm", "ignite.engine")  # what our engines warn of goes by Ignite's name

__all__ = ["console"]


@contextmanager
def console(verbose: bool = False, quiet: bool = False) -> Iterator[None]:
    """What is printed within: by default our own lines, and warnings of one line each.

    Args:
        verbose: also what MONAI, Ignite and other packages log.
        quiet: no line but warnings and errors, no bar.
    """
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    if verbose:
        yield
        return
    # MONAI gives this logger a handler of its own where it is the first to name it
    logging.getLogger("monai.bundle.workflows").addHandler(logging.NullHandler())
    root = logging.getLogger()
    before, root.handlers = root.handlers, [_problems()]
    logging.disable(logging.INFO)
    output = io.StringIO() if quiet else sys.stdout
    try:
        with warnings.catch_warnings(), redirect_stdout(output):
            warnings.showwarning = _own_warning
            yield
    finally:
        logging.disable(logging.NOTSET)
        root.handlers = before


def _problems() -> logging.Handler:
    """Handler of warnings of our own, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Line())
    handler.addFilter(lambda record: record.name.startswith(_OURS))
    return handler


class _Line(logging.Formatter):
    """A warning as one line that a terminal can show."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return f"{record.levelname.lower()}: {printable(record.getMessage())}"


def _own_warning(message: Any, category: Any, filename: str, *_: Any) -> None:
    """Print a warning of this package; those of others say nothing to a user."""
    if filename.startswith(_PACKAGE) or category.__module__.startswith("monai_dpmm"):
        logging.getLogger("monai_dpmm").warning(str(message))
