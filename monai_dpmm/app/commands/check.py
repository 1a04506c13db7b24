"""`check`: what a data set holds, and what is wrong with it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from monai_dpmm.app.options import Command, require_paths, starting
from monai_dpmm.errors import printable

__all__ = ["COMMANDS"]


def _options(command: ArgumentParser) -> None:
    command.add_argument("dataset", type=Path, metavar="DATASET", help="folder of a data set")


def _run(args: Namespace) -> None:
    require_paths(args.dataset)
    starting(args)
    from monai_dpmm.io.dataset_check import check_dataset

    found = check_dataset(args.dataset)
    print(printable(str(found)))
    if found.problems:
        raise SystemExit(1)


COMMANDS = [
    Command(
        "check",
        "tell what a data set holds, and what is wrong with it",
        _options,
        _run,
        "The exit code is 1 where something is wrong.",
    )
]
