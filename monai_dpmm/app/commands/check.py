"""`check`: what a folder of scans or a data set holds, and what is wrong with it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from monai_dpmm.app.options import Command, add_pattern, require_paths, starting
from monai_dpmm.app.release import checked_settings
from monai_dpmm.errors import MissingFileError, printable

__all__ = ["COMMANDS"]


def _options(command: ArgumentParser) -> None:
    scans = "folder of scans, or of a data set"
    command.add_argument("dataset", type=Path, metavar="DATASET", help=scans)
    command.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="folder of a model, or that of its models/: scans to look at are compared with those"
        " that it was trained on",
    )
    add_pattern(command)


def _run(args: Namespace) -> None:
    require_paths(args.dataset, *([args.model] if args.model else []))
    origin = None if args.model is None else _origin(args.model)
    starting(args)
    from monai_dpmm.io.datalist import datalist
    from monai_dpmm.io.dataset_check import check_dataset
    from monai_dpmm.io.outliers import scan_outliers
    from monai_dpmm.io.suffixes import is_picture

    if origin is None:
        found = check_dataset(args.dataset, pattern=args.pattern)
        splits: Any = found.splits
        items = [i for n in splits for i in datalist(args.dataset, n, pattern=args.pattern)]
    else:
        found, items = None, datalist(args.dataset, "test", pattern=args.pattern)
    volumes = [item["image"] for item in items if not is_picture(item["image"])]
    odd = 0
    if volumes:
        lines = scan_outliers(volumes, origin)
        odd = sum(line.startswith(tuple(f"{path}: " for path in volumes)) for line in lines)
        told = "".join(f"\n  {line}" for line in lines)
        print(printable(f"{len(volumes)} volumes beside each other:{told}\n"))
    if found is not None:
        print(printable(str(found)))
        if found.problems:
            raise SystemExit(1)
    elif volumes:
        print(f"{len(volumes) - odd} of {len(volumes)} scans have voxels and intensities as usual")
        if odd:
            raise SystemExit(1)


def _origin(model: Path) -> dict[str, Any]:
    """Where a model comes from; one of an earlier version does not say."""
    files = [folder / "model.json" for folder in (model / "models", model)]
    there = [file for file in files if file.is_file()]
    if not there:
        raise MissingFileError(f"{files[0]}: must exist, there is no such file")
    return checked_settings(there[0]).get("origin") or {}


COMMANDS = [
    Command(
        "check",
        "tell what a data set or a folder of scans holds, and what is wrong with it",
        _options,
        _run,
        """\
examples:
  monai-dpmm check healthy_scans
  monai-dpmm check patients --model brain

The exit code is 1 where something is wrong: of scans that are compared with
a model's training, where one cannot be read or is unlike those.
""",
    )
]
