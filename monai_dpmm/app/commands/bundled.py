"""`demo`, `train`, `calibrate`, `evaluate` and `infer`: the bundle's own workflows."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from monai_dpmm.app.config import merged
from monai_dpmm.app.options import (
    LABELLED,
    SETTINGS_HELP,
    Command,
    add_settings,
    models_folder,
    overrides,
    starting,
)
from monai_dpmm.app.workflows import (
    MODEL,
    PLANS,
    applicable,
    planned,
    require_inputs,
    run_workflow,
)

_HEALTHY = "folder of healthy scans, or data set with train and val"
_SCANS = "a scan, or a folder of scans"

__all__ = ["COMMANDS"]


def _options(
    data: str | None, *, metavar: str = "DATASET", folder: str = "."
) -> Callable[[ArgumentParser], None]:
    """What declares the options of a workflow, whose data are described by a sentence."""

    def declare(command: ArgumentParser) -> None:
        if data is not None:
            command.add_argument("dataset", type=Path, metavar=metavar, help=data)
        add_settings(command, folder).add_argument(
            "--dry-run",
            action="store_true",
            help="print the config as JSON (of demo: two), and run nothing",
        )

    return declare


def _run(args: Namespace) -> None:
    """Run the workflows of a command one after another, or print the configs they would have."""
    overlays, values = list(args.config or []), overrides(args)
    plans = PLANS[args.command]
    checked = applicable([planned(plan, overlays, None) for plan in plans], values)
    models = models_folder(values)
    for plan, own in zip(plans, checked, strict=True):
        names = planned(plan, overlays, models)
        if args.dry_run:
            print(json.dumps(merged(names, own), indent=4))
            continue
        require_inputs(merged(names, own), args.command, models if MODEL in plan else None)
        starting(args)
        run_workflow(names, **own)


COMMANDS = [
    Command(
        "demo",
        "train and evaluate on a simulated cohort of brains",
        _options(None, folder="demo"),
        _run,
        SETTINGS_HELP,
    ),
    Command(
        "train",
        "fit a model of normality to healthy scans",
        _options(_HEALTHY),
        _run,
        """\
examples:
  monai-dpmm train healthy_scans -f brain -c kmeans_start
  monai-dpmm train ct_scans -f head -s window=brain -s max_epochs=20
  monai-dpmm train healthy_scans --dry-run           all values that can be set

"""
        + SETTINGS_HELP,
    ),
    Command(
        "calibrate",
        "find thresholds in ml a scan, and what the scan check needs",
        _options(_HEALTHY),
        _run,
        SETTINGS_HELP,
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
  monai-dpmm infer series_folder -f brain -s dicom_output=true

A scan that cannot be used does not stop the others; it is named at the end,
and the exit code is 1.

"""
        + SETTINGS_HELP,
    ),
]
