"""`compare`: all methods on the same embeddings, and the tables of a paper."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from monai_dpmm.app.completion import offer_names
from monai_dpmm.app.console import console
from monai_dpmm.app.options import (
    LABELLED,
    SETTINGS_HELP,
    Command,
    add_settings,
    config,
    overrides,
    positive,
)
from monai_dpmm.app.rules import NameIn
from monai_dpmm.errors import UsageError

_METHODS = NameIn("study.methods", "METHODS")

__all__ = ["COMMANDS"]


def _options(command: ArgumentParser) -> None:
    command.add_argument("dataset", type=Path, metavar="DATASET", help=LABELLED)
    add_settings(command)
    group = command.add_argument_group("comparison")
    group.add_argument(
        "--seeds", type=positive, default=5, metavar="N", help="how many (default: %(default)s)"
    )
    methods = group.add_argument("--methods", nargs="+", metavar="NAME", help="default: all")
    reference = group.add_argument(
        "--reference", default="dpmm", metavar="NAME", help="the others are tested against it"
    )
    for option in (methods, reference):
        offer_names(option, _METHODS.names)


def _run(args: Namespace) -> None:
    for name in (*(args.methods or ()), args.reference):
        if not _METHODS.holds(name):
            raise UsageError(f"methods must be among {', '.join(_METHODS.names)}, got {name!r}")
    folder = Path(overrides(args)["bundle_root"]) / "comparison"
    with console():
        parser = config(args)
        from monai_dpmm.study.comparison import compare
        from monai_dpmm.study.paper_tables import write_comparison
        from monai_dpmm.study.tables import as_text

        trials = compare(parser, folder, seeds=args.seeds, methods=args.methods)
    tables = write_comparison(trials, folder, args.reference)
    print("", *map(as_text, tables), f"Tables: {folder / 'tables.md'}", sep="\n\n")


COMMANDS = [
    Command(
        "compare",
        "fit the DPMM and its baselines to the same embeddings",
        _options,
        _run,
        SETTINGS_HELP,
    )
]
