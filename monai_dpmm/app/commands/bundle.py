"""`bundle`: a trained model as a bundle of its own."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from monai_dpmm.app.options import Command, add_folder
from monai_dpmm.app.release import write_bundle

__all__ = ["COMMANDS"]


def _options(command: ArgumentParser) -> None:
    command.add_argument(
        "out",
        type=Path,
        nargs="?",
        metavar="OUT",
        default=Path("brain_mri_anomaly_dpmm"),
        help="new folder, whose name is the bundle's (default: %(default)s)",
    )
    add_folder(command.add_argument_group("folders"))
    card = command.add_argument_group("model card")
    card.add_argument("--data", metavar="TEXT", help="a sentence on the healthy scans")
    card.add_argument("--metrics", type=Path, metavar="FILE", help="metrics.json of an evaluation")


def _run(args: Namespace) -> None:
    folder = write_bundle(args.out, args.folder, data=args.data, metrics=args.metrics)
    print(f"Bundle: {folder}, and {folder.name}.zip beside it")


COMMANDS = [
    Command(
        "bundle", "write a trained model as a bundle of its own, folder and zip", _options, _run
    )
]
