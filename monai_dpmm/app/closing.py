"""What a command says when it is done, or stopped: what there is now, and what to type next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_dpmm.app.settings import SETTINGS
from monai_dpmm.files import json_object, json_value

__all__ = ["calibration_summary", "interruption_line", "threshold_line", "training_summary"]


def training_summary(values: Mapping[str, Any], seconds: float) -> str:
    """Lines on a finished training: the model, its prototypes, its threshold, the next command.

    Args:
        values: of the command line, by setting.
        seconds: that it took.
    """
    models = _models(values)
    settings, last = _read(models / "model.json"), _last_epoch(values)
    prototypes = f"{last['components']:.0f} prototypes, " if last.get("components") else ""
    lines = [f"Model: {models / 'model.pt'} ({prototypes}{seconds:.0f} s)"]
    lines += [line] if (line := threshold_line(settings)) else []
    return "\n".join([*lines, f"Next: monai-dpmm infer SCANS -f {_folder(values)}"])


def calibration_summary(values: Mapping[str, Any]) -> str:
    """What `infer` does from now on with a model that was calibrated."""
    settings = _read(_models(values) / "model.json")
    volumes = [f"{one['ml_per_scan']:g}" for one in settings.get("volume_thresholds") or []]
    lines = [line] if (line := threshold_line(settings)) else []
    if volumes:
        lines.append(f"Others: -s false_positive_volume=, one of {', '.join(volumes)}")
    if settings.get("scan_reference"):
        lines.append("infer warns of scans that are unlike the training data")
    return "\n".join(lines)


def interruption_line(command: str, values: Mapping[str, Any]) -> str:
    """How to go on with a command that was interrupted."""
    folder, models = _folder(values), _models(values)
    if command in ("train", "demo"):
        epoch = _last_epoch(values).get("epoch")
        if (models / "checkpoint.pt").is_file() and epoch:
            return f"interrupted after epoch {epoch}; the same command with --resume goes on"
        return (
            "interrupted before an epoch was over; the same command starts again, and what was"
            " embedded is kept"
        )
    if command in ("infer", "evaluate"):
        results = Path(values.get("output_dir", folder / "output"))
        done = len([*results.rglob("*_findings.json")]) if results.is_dir() else 0
        return f"interrupted; {results} holds results of {done} scans; the same command does all"
    return "interrupted"


def threshold_line(settings: Mapping[str, Any]) -> str:
    """What `infer` marks with a model of these settings, and what that means in a healthy scan."""
    known = {one["ml_per_scan"]: one for one in settings.get("volume_thresholds") or []}
    one = known.get(SETTINGS["false_positive_volume"].default) or next(iter(known.values()), None)
    if one is None:
        return "Threshold: 1 % of the patches of healthy scans; there is none in ml"
    left_out = (settings.get("healthy_scans") or {}).get("left_out", 0)
    held_back = one["scans"] - left_out
    scans = f"{held_back} held-back scan{'' if held_back == 1 else 's'}"
    scans += f" and {left_out} left out" if left_out else ""
    return (
        f"Threshold: infer marks scores above {one['threshold']:.3g}; a healthy scan then has"
        f" {one['mean_ml']:.2g} ml and {one['findings_per_scan']:.2g} false findings"
        f" (mean of {scans})"
    )


def _folder(values: Mapping[str, Any]) -> Path:
    return Path(values["bundle_root"])


def _models(values: Mapping[str, Any]) -> Path:
    return Path(values.get("ckpt_dir", _folder(values) / "models"))


def _read(file: Path) -> dict[str, Any]:
    try:
        return json_object(file)
    except (OSError, ValueError):
        return {}


def _last_epoch(values: Mapping[str, Any]) -> dict[str, Any]:
    """The last record of the training's history; empty where there is none."""
    file = Path(values.get("output_dir", _folder(values) / "output")) / "history.json"
    try:
        records = json_value(file)
    except (OSError, ValueError):
        return {}
    return records[-1] if isinstance(records, list) and records else {}
