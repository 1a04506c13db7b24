"""`figures`: those of a paper, of a trained model."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from monai_dpmm.app.console import console
from monai_dpmm.app.options import (
    LABELLED,
    SETTINGS_HELP,
    Command,
    add_out,
    add_settings,
    config,
    overrides,
)
from monai_dpmm.files import require_writable

__all__ = ["COMMANDS"]


def _options(command: ArgumentParser) -> None:
    command.add_argument("dataset", type=Path, metavar="DATASET", help=LABELLED)
    add_settings(command)
    add_out(command, None, "folder of the figures (default: figures in -f)")


def _run(args: Namespace) -> None:
    root = Path(overrides(args)["bundle_root"])
    require_writable(args.out or root / "figures")
    with console():
        parser = config(args)
        from monai_dpmm.study.figures.publication import write_figures

        paths = write_figures(
            parser, args.out or root / "figures", root / "comparison" / "comparison.json"
        )
    print("Figures:", *paths, sep="\n")


COMMANDS = [
    Command(
        "figures",
        "draw a paper's figures of a trained model, as PDF and PNG",
        _options,
        _run,
        SETTINGS_HELP,
    )
]
