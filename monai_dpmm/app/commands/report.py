"""`report`: the report of results that lie on disk, anew."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from monai_dpmm.app.console import console
from monai_dpmm.app.options import (
    Command,
    add_folder,
    add_pattern,
    positive,
    require_paths,
    starting,
)
from monai_dpmm.files import require_writable

__all__ = ["COMMANDS"]


def _options(command: ArgumentParser) -> None:
    scans = "the scans, as infer or evaluate was given them"
    command.add_argument("dataset", type=Path, metavar="SCANS", help=scans)
    add_pattern(command)
    files = command.add_argument_group("folders")
    add_folder(files)
    files.add_argument(
        "--results", type=Path, metavar="DIR", help="of the run (default: output in -f)"
    )
    files.add_argument(
        *("-o", "--out"), type=Path, metavar="DIR", help="of the report (default: its old place)"
    )
    view = command.add_argument_group("figures")
    view.add_argument(
        "--axis",
        type=int,
        choices=(0, 1, 2),
        default=2,
        help="that slices are perpendicular to: sagittal, coronal, axial (default: %(default)s)",
    )
    view.add_argument(
        "--slices",
        type=positive,
        default=1,
        metavar="N",
        help="of each scan (default: %(default)s)",
    )


def _run(args: Namespace) -> None:
    results = args.folder / "output" if args.results is None else args.results
    require_paths(args.dataset, results)
    require_writable(args.out or results / "report")
    starting(args)
    with console():
        from monai_dpmm.report.saved_results import rewrite_report

        view = {"axis": args.axis, "slices": args.slices}
        rewrite_report(args.dataset, results, args.out, pattern=args.pattern, **view)


COMMANDS = [
    Command(
        "report",
        "write the report of results anew, without running the network",
        _options,
        _run,
        """\
Nothing is measured again: metrics are those of the report that is there.

example:
  monai-dpmm report scans -f brain --slices 3 -o report_of_brain
""",
    )
]
