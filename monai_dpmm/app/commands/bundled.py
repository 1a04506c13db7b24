"""`demo`, `train`, `calibrate`, `evaluate` and `infer`: the bundle's own workflows."""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from monai_dpmm.app.closing import calibration_summary, interruption_line, training_summary
from monai_dpmm.app.config import merged
from monai_dpmm.app.console import console
from monai_dpmm.app.options import (
    LABELLED,
    SETTINGS_HELP,
    Command,
    add_settings,
    add_verbosity,
    models_folder,
    overrides,
    positive,
    starting,
)
from monai_dpmm.app.plan import plan_text
from monai_dpmm.app.workflows import (
    MODEL,
    PLANS,
    applicable,
    planned,
    require_inputs,
    run_workflow,
)
from monai_dpmm.errors import printable

_HEALTHY = "folder of healthy scans, or data set with train and val"
_SCANS = "a scan, or a folder of scans"

__all__ = ["COMMANDS"]


def _options(
    data: str | None, *, metavar: str = "DATASET", folder: str = ".", trains: bool = False
) -> Callable[[ArgumentParser], None]:
    """What declares the options of a workflow, whose data are described by a sentence."""

    def declare(command: ArgumentParser) -> None:
        if data is not None:
            command.add_argument("dataset", type=Path, metavar=metavar, help=data)
        group = add_settings(command, folder)
        group.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:1")
        group.add_argument("--seed", type=int, metavar="N", help="of split, start and order")
        if trains:
            group.add_argument("--epochs", type=positive, metavar="N", help="passes over the data")
            group.add_argument(
                *("--resume",),
                action="store_true",
                default=None,
                help="go on with a training that was interrupted",
            )
            group.add_argument(
                *("--overwrite",),
                action="store_true",
                default=None,
                help="replace an earlier model, which is kept aside otherwise",
            )
        group.add_argument(
            "--dry-run",
            action="store_true",
            help="say what would be done to which scans, and do nothing",
        )
        group.add_argument(
            "--show-config",
            action="store_true",
            help="print the config as JSON (of demo: two), and run nothing",
        )
        add_verbosity(command)

    return declare


def _run(args: Namespace) -> None:
    """Run the workflows of a command one after another, or say what they would do."""
    overlays, values = list(args.config or []), overrides(args)
    plans = PLANS[args.command]
    checked = applicable([planned(plan, overlays, None) for plan in plans], values)
    models = models_folder(values)
    if args.dry_run or args.show_config:
        for plan, own in zip(plans, checked, strict=True):
            config = merged(planned(plan, overlays, models), own)
            step = {"demo": "evaluate" if MODEL in plan else "train"}.get(
                args.command, args.command
            )
            told = json.dumps(config, indent=4) if args.show_config else None
            print(told or printable(plan_text(step, config, values)))
        return
    start = time.monotonic()
    try:
        with console(args.verbose, args.quiet):
            for plan, own in zip(plans, checked, strict=True):
                names = planned(plan, overlays, models)
                require_inputs(merged(names, own), args.command, models if MODEL in plan else None)
                starting(args)
                logging = {} if args.verbose else {"logging_file": False}
                run_workflow(names, **logging, **own)
            if args.command == "train":
                print(training_summary(values, time.monotonic() - start))
            elif args.command == "calibrate":
                print(calibration_summary(values))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(interruption_line(args.command, values)) from None


COMMANDS = [
    Command(
        "demo",
        "train and evaluate on a simulated cohort of brains",
        _options(None, folder="demo", trains=True),
        _run,
        """\
example:
  monai-dpmm demo --epochs 3

"""
        + SETTINGS_HELP,
    ),
    Command(
        "train",
        "fit a model of normality to healthy scans",
        _options(_HEALTHY, trains=True),
        _run,
        """\
examples:
  monai-dpmm train healthy_scans -f brain -c kmeans_start
  monai-dpmm train ct_scans -f head -s window=brain --epochs 20
  monai-dpmm train healthy_scans -f brain --resume   after an interruption
  monai-dpmm train healthy_scans --dry-run           what would be done
  monai-dpmm train healthy_scans --show-config       all values that can be set

"""
        + SETTINGS_HELP,
    ),
    Command(
        "calibrate",
        "find thresholds in ml a scan, and what the scan check needs",
        _options(_HEALTHY),
        _run,
        """\
example:
  monai-dpmm calibrate healthy_scans -f brain

"""
        + SETTINGS_HELP,
    ),
    Command(
        "evaluate",
        "measure a model on labelled scans, with a report",
        _options(LABELLED),
        _run,
        """\
example:
  monai-dpmm evaluate dataset -f brain -s bootstrap=200

"""
        + SETTINGS_HELP,
    ),
    Command(
        "infer",
        "write anomaly volumes and a report",
        _options(_SCANS, metavar="SCANS"),
        _run,
        """\
examples:
  monai-dpmm infer scans -f brain
  monai-dpmm infer scans --model brain/models/earlier-1 --output compared
  monai-dpmm infer series_folder -f brain -s dicom_output=true

A scan that cannot be used does not stop the others; it is named at the end,
and the exit code is 1.

"""
        + SETTINGS_HELP,
    ),
]
