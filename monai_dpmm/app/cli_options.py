"""The options of the commands, in groups; metavars say what completes them (`completion`)."""

from __future__ import annotations

import argparse
import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from monai_dpmm.app.settings import TEXTS

SHELLS = ("bash", "zsh", "fish")
_PYTHON = {"True": True, "False": False, "None": None}
_LABELLED = "data set with test/images and test/labels"
_HEALTHY = "folder of healthy scans, or data set with train and val"

__all__ = [
    *("SHELLS", "override"),
    *("bundle", "calibrate", "check", "compare", "completion", "demo", "evaluate"),
    *("figures", "infer", "report", "score", "train"),
]


def override(text: str) -> tuple[str, Any]:
    """Key and value of KEY=VALUE; the value is JSON, or as Python writes it, or else text.

    That of a setting which is text, such as a folder's name, is text: 2024 is no number there.
    """
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, got {text!r}")
    try:
        read = _PYTHON[value] if value in _PYTHON else json.loads(value)
    except json.JSONDecodeError:
        return key, value
    return key, value if key in TEXTS and not isinstance(read, str) else read


def _positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def demo(command: ArgumentParser) -> None:
    """Options of `demo`."""
    _add_workflow(command, None, folder="demo")


def check(command: ArgumentParser) -> None:
    """Options of `check`."""
    command.add_argument("dataset", type=Path, metavar="DATASET", help="folder of a data set")


def train(command: ArgumentParser) -> None:
    """Options of `train`."""
    _add_workflow(command, _HEALTHY)


def calibrate(command: ArgumentParser) -> None:
    """Options of `calibrate`."""
    _add_workflow(command, _HEALTHY)


def evaluate(command: ArgumentParser) -> None:
    """Options of `evaluate`."""
    _add_workflow(command, _LABELLED)


def infer(command: ArgumentParser) -> None:
    """Options of `infer`."""
    _add_workflow(command, "a scan, or a folder of scans", metavar="SCANS")


def report(command: ArgumentParser) -> None:
    """Options of `report`."""
    scans = "the scans, as infer or evaluate was given them"
    command.add_argument("dataset", type=Path, metavar="SCANS", help=scans)
    files = command.add_argument_group("folders")
    _add_folder(files)
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
        type=_positive,
        default=1,
        metavar="N",
        help="of each scan (default: %(default)s)",
    )


def compare(command: ArgumentParser) -> None:
    """Options of `compare`."""
    command.add_argument("dataset", type=Path, metavar="DATASET", help=_LABELLED)
    _add_settings(command)
    group = command.add_argument_group("comparison")
    group.add_argument(
        "--seeds", type=_positive, default=5, metavar="N", help="how many (default: %(default)s)"
    )
    group.add_argument("--methods", nargs="+", metavar="NAME", help="default: all")
    group.add_argument(
        "--reference", default="dpmm", metavar="NAME", help="the others are tested against it"
    )


def score(command: ArgumentParser) -> None:
    """Options of `score`."""
    maps = "folder of .npy, .npz, TIFF or NIfTI files, named like the images"
    command.add_argument("maps", type=Path, metavar="MAPS", help=maps)
    command.add_argument("dataset", type=Path, metavar="DATASET", help=_LABELLED)
    group = command.add_argument_group("measuring")
    group.add_argument(
        "--healthy", type=Path, metavar="DIR", help="maps of healthy images, for the thresholds"
    )
    group.add_argument("--protocol", default="native", help="native (default), 224 or 448")
    group.add_argument(
        "--label-rule", default="positive", help="what of a mask is lesion: positive (default), 255"
    )
    group.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="resamples, 0 for no interval"
    )
    group.add_argument("--postfix", default="", help="what names of maps end with, _anomaly")
    _add_out(command, Path("scores"), "folder (default: %(default)s)")


def figures(command: ArgumentParser) -> None:
    """Options of `figures`."""
    command.add_argument("dataset", type=Path, metavar="DATASET", help=_LABELLED)
    _add_settings(command)
    _add_out(command, None, "folder of the figures (default: figures in -f)")


def bundle(command: ArgumentParser) -> None:
    """Options of `bundle`."""
    command.add_argument(
        "out",
        type=Path,
        nargs="?",
        metavar="OUT",
        default=Path("brain_mri_anomaly_dpmm"),
        help="new folder, whose name is the bundle's (default: %(default)s)",
    )
    _add_folder(command.add_argument_group("folders"))
    card = command.add_argument_group("model card")
    card.add_argument("--data", metavar="TEXT", help="a sentence on the healthy scans")
    card.add_argument("--metrics", type=Path, metavar="FILE", help="metrics.json of an evaluation")


def completion(command: ArgumentParser) -> None:
    """Options of `completion`."""
    command.add_argument("shell", choices=SHELLS)


def _add_out(command: ArgumentParser, default: Path | None, told: str) -> None:
    group = command.add_argument_group("output")
    group.add_argument("-o", "--out", type=Path, metavar="DIR", default=default, help=told)


def _add_workflow(
    command: ArgumentParser, data: str | None, *, metavar: str = "DATASET", folder: str = "."
) -> None:
    if data is not None:
        command.add_argument("dataset", type=Path, metavar=metavar, help=data)
    _add_settings(command, folder).add_argument(
        "--dry-run",
        action="store_true",
        help="print the config as JSON (of demo: two), and run nothing",
    )


def _add_settings(command: ArgumentParser, folder: str = ".") -> argparse._ArgumentGroup:
    """Options of what runs by the bundle's configs; returns their group."""
    _add_folder(command.add_argument_group("folders"), folder)
    group = command.add_argument_group("settings")
    group.add_argument(
        *("-c", "--config"),
        action="append",
        metavar="NAME",
        help="config laid over the command's own, by name or file; may be repeated",
    )
    group.add_argument(
        *("-s", "--set"),
        action="append",
        type=override,
        metavar="KEY=VALUE",
        help="value of a config; may be repeated",
    )
    return group


def _add_folder(group: Any, folder: str = ".") -> None:
    group.add_argument(
        *("-f", "--folder"),
        type=Path,
        metavar="DIR",
        default=Path(folder),
        help="where models/ and output/ are read and written (default: %(default)s)",
    )
