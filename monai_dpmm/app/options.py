"""What commands are made of: their record, the options that several share, the config of these."""

from __future__ import annotations

import argparse
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from monai_dpmm.app.completion import offer_configs, offer_settings
from monai_dpmm.app.config import merged
from monai_dpmm.app.settings import TEXTS
from monai_dpmm.app.workflows import (
    MODEL,
    PLANS,
    applicable,
    merged_config,
    planned,
    require_inputs,
)
from monai_dpmm.errors import MissingFileError, UsageError

LABELLED = "data set with test/images and test/labels"
SETTINGS_HELP = """\
examples of -s:
  -s max_epochs=10 -s image_size=224     numbers and lists as in JSON
  -s train#trainer#max_epochs=10         a key within another
"""
_OPTIONS = {  # settings that are options of their own
    **{"output": "output_dir", "model": "ckpt_dir", "device": "device", "seed": "seed"},
    **{"epochs": "max_epochs", "resume": "resume", "overwrite": "overwrite"},
}
_PYTHON = {"True": True, "False": False, "None": None}

__all__ = [
    *("LABELLED", "SETTINGS_HELP", "Command", "add_folder", "add_out", "add_settings"),
    *("add_verbosity", "config", "models_folder", "override", "overrides", "positive"),
    *("require_paths", "starting"),
]


class Command(NamedTuple):
    """A command: its name, one line of help, what declares its options, what runs it, examples."""

    name: str
    help: str
    options: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], None]
    examples: str = ""


def override(text: str) -> tuple[str, Any]:
    """Key and value of KEY=VALUE; the value is JSON, or as Python writes it, or else text.

    That of a setting which is text, such as a folder's name, is text: 2024 is no number there.
    """
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, got {text!r}")
    try:
        read = _PYTHON[value] if value in _PYTHON else json.loads(value)
    except ValueError:  # no JSON, or a number of thousands of digits
        return key, value
    except RecursionError:
        raise argparse.ArgumentTypeError(f"{key} is nested too deeply") from None
    return key, value if key in TEXTS and not isinstance(read, str) else read


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def add_folder(group: Any, folder: str = ".") -> None:
    """Option -f, the folder of models and results."""
    group.add_argument(
        *("-f", "--folder"),
        type=Path,
        metavar="DIR",
        default=Path(folder),
        help="where models/ and output/ are read and written (default: %(default)s)",
    )


def add_pattern(command: ArgumentParser) -> None:
    """Option --pattern, which scans of a folder are meant."""
    command.add_argument("--pattern", help="names of scans, such as '*_T1w.nii.gz'; all if none")


def add_out(command: ArgumentParser, default: Path | None, text: str) -> None:
    """Option -o, the folder that is written."""
    group = command.add_argument_group("output")
    group.add_argument("-o", "--out", type=Path, metavar="DIR", default=default, help=text)


def add_verbosity(command: ArgumentParser) -> None:
    """Options -v and -q."""
    group = command.add_argument_group("what is printed").add_mutually_exclusive_group()
    group.add_argument(
        *("-v", "--verbose"), action="store_true", help="also what MONAI and Ignite log"
    )
    group.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")


def add_settings(command: ArgumentParser, folder: str = ".") -> argparse._ArgumentGroup:
    """Options -f, -c and -s of what runs by the bundle's configs; returns the group of the last.

    Settings that people expect as options of their own are there as well, see `_OPTIONS`.
    """
    files = command.add_argument_group("folders")
    add_folder(files, folder)
    files.add_argument("--output", metavar="DIR", help="of results (default: output in -f)")
    files.add_argument(
        "--model", metavar="DIR", help="of model.pt, or that file (default: models in -f)"
    )
    group = command.add_argument_group("settings")
    overlays = group.add_argument(
        *("-c", "--config"),
        action="append",
        metavar="NAME",
        help="config laid over the command's own, by name or file; may be repeated",
    )
    values = group.add_argument(
        *("-s", "--set"),
        action="append",
        type=override,
        metavar="KEY=VALUE",
        help="value of a config; may be repeated",
    )
    offer_configs(overlays)
    offer_settings(values)
    return group


def overrides(args: Namespace) -> dict[str, Any]:
    """What the options of `add_settings` and the data set set, by key; -s wins."""
    given = {key: getattr(args, option, None) for option, key in _OPTIONS.items()}
    values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if "ckpt_dir" in values and Path(values["ckpt_dir"]).suffix == ".pt":
        values["ckpt_dir"] = str(_folder_of_model(Path(values["ckpt_dir"])))
    values |= dict(args.set or [])
    values.setdefault("bundle_root", str(args.folder))
    if getattr(args, "dataset", None) is not None:
        values.setdefault("dataset_dir", str(args.dataset))
    return values


def _folder_of_model(file: Path) -> Path:
    if file.name != "model.pt":  # beside which model.json lies
        raise UsageError(f"--model must be a folder with model.pt, or that file, got {file}")
    return file.parent


def config(args: Namespace) -> Any:
    """The merged config of a command that makes its own use of it."""
    overlays, values = list(args.config or []), overrides(args)
    (plan,) = PLANS[args.command]
    (checked,) = applicable([planned(plan, overlays, None)], values)
    models = models_folder(values)
    names = planned(plan, overlays, models)
    require_inputs(merged(names, checked), args.command, models if MODEL in plan else None)
    starting(args)
    return merged_config(names, checked)


def starting(args: Namespace) -> None:
    """Say at once that a command is at work: MONAI takes seconds to be imported."""
    if getattr(args, "quiet", False) or "monai" in sys.modules:  # as in the demo's second step
        return
    print(f"{args.command}: importing torch and MONAI", file=sys.stderr, flush=True)


def require_paths(*paths: Path) -> None:
    """Refuse paths of the command line that lead nowhere, before anything heavy is imported.

    Raises:
        FileNotFoundError: for the first of them.
    """
    for path in paths:
        if not path.expanduser().exists():
            raise MissingFileError(f"{path}: must exist, there is no such file or folder")


def models_folder(values: dict[str, Any]) -> Path:
    """Folder of the trained model."""
    return Path(values.get("ckpt_dir", Path(values["bundle_root"]) / "models"))
