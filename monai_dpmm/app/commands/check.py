"""`check`: what a folder of scans or a data set holds, and what is wrong with it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_dpmm.app.options import Command, add_pattern, require_paths, starting
from monai_dpmm.app.release import checked_settings
from monai_dpmm.errors import MissingFileError, printable

if TYPE_CHECKING:
    from monai_dpmm.io.outliers import Outliers

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
    from monai_dpmm.io.outliers import scan_outliers

    if origin is None:
        from monai_dpmm.io.dataset_check import check_dataset

        found = check_dataset(args.dataset, pattern=args.pattern)
        if found.numbers:
            _tell(scan_outliers(found.numbers), len(found.numbers))
        print(printable(str(found)))
        if found.problems:
            raise SystemExit(1)
    elif numbers := _numbers(args.dataset, args.pattern):
        outliers = scan_outliers(numbers, origin)
        _tell(outliers, len(numbers))
        usual = len(numbers) - len(outliers.unlike)
        print(f"{usual} of {len(numbers)} scans have voxels and intensities as usual")
        if outliers.unlike:
            raise SystemExit(1)


def _numbers(scans: Path, pattern: str | None) -> dict[str, Any]:
    """Numbers of the volumes among scans to look at, or why there are none."""
    from tqdm import tqdm

    from monai_dpmm.io.datalist import datalist
    from monai_dpmm.io.outliers import looked_at
    from monai_dpmm.io.suffixes import is_picture

    paths = [item["image"] for item in datalist(scans, "test", pattern=pattern)]
    volumes = [path for path in paths if not is_picture(path)]
    return {path: looked_at(path) for path in tqdm(volumes, "scans", disable=None)}


def _tell(outliers: Outliers, count: int) -> None:
    lines = "".join(f"\n  {line}" for line in (*outliers.usual, *outliers.unlike))
    print(printable(f"{count} volumes beside each other:{lines}\n"))


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
