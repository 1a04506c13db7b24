"""What a command would do, in twenty lines: to which scans, with which model, where to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_dpmm.app.closing import threshold_line
from monai_dpmm.app.settings import SETTINGS
from monai_dpmm.files import json_object

_SHOWN = 3  # scans that are named

__all__ = ["plan_text"]


def plan_text(command: str, config: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Lines that say what a run would do; nothing is written.

    Args:
        command: train, calibrate, evaluate, infer or a part of demo.
        config: merged, of the run.
        values: of the command line, by setting.

    Raises:
        InputError: as the run would, where the data cannot be used.
    """
    folder = Path(values["bundle_root"])
    models = Path(values.get("ckpt_dir", folder / "models"))
    output = Path(values.get("output_dir", folder / "output"))
    lines = [f"{command} would do this; nothing is done now."]
    lines += _scans(command, config)
    changed = [f"{k}={v}" for k, v in values.items() if k in SETTINGS and k not in _PLACES]
    lines.append(f"Settings of the command line: {', '.join(changed) or 'none'}")
    backbone = f"{config['backbone_architecture']} at {config['image_size']} pixels"
    lines.append(f"Backbone: {backbone}; slices along axes {config['slice_axis']}")
    if command == "train":
        lines.append(
            f"Mixture: at most {config['components']} prototypes a direction,"
            f" {config['max_epochs']} epochs"
        )
        lines += _model_to_be(models, config)
    else:
        lines += _model_there(models)
    if command in ("infer", "evaluate"):
        there = len([*output.rglob("*_findings.json")]) if output.is_dir() else 0
        replaced = f" (results of {there} scans lie there; those of the same names are replaced)"
        lines.append(f"Results: {output}{replaced if there else ''}")
        lines.append(f"Report: {output / 'report/report.html'}")
    lines.append(f"Device: {values.get('device', 'CUDA where there is one, else the CPU')}")
    return "\n".join([*lines, "--show-config prints every value that would be used."])


_PLACES = {"bundle_root", "dataset_dir", "ckpt_dir", "output_dir", "device"}


def _scans(command: str, config: Mapping[str, Any]) -> list[str]:
    data = config["dataset_dir"]
    if str(data).startswith("$"):
        return [f"Data: {data}"]
    from monai_dpmm.io.datalist import datalist

    sections = {
        "train": {"train": "to train on", "val": "to validate with"},
        "calibrate": {"val": "healthy ones to calibrate with"},
    }.get(command, {"test": "to look at"})
    options = {key: config[key] for key in ("val_fraction", "seed", "pattern")}
    lines = [f"Data: {data}"]
    for section, what in sections.items():
        labels = command == "evaluate"
        items = datalist(data, section, labels=labels, **options)  # type: ignore[arg-type]
        lines.append(f"  {len(items)} scans {what}: {_names([item['image'] for item in items])}")
    return lines


def _names(paths: Sequence[str]) -> str:
    shown = [Path(path).name for path in paths[:_SHOWN]]
    return ", ".join([*shown, "..."] if len(paths) > _SHOWN else shown)


def _model_to_be(models: Path, config: Mapping[str, Any]) -> list[str]:
    lines = [f"Model: {models / 'model.pt'}"]
    if config["resume"]:
        lines.append(f"  goes on from {models / 'checkpoint.pt'}")
    elif (models / "model.pt").is_file():
        lines.append(
            "  replaces the one that is there"
            if config["overwrite"]
            else f"  the one that is there is kept as {models}/earlier-N after the first epoch"
        )
    return lines


def _model_there(models: Path) -> list[str]:
    try:
        settings = json_object(models / "model.json")
    except (OSError, ValueError):
        return [f"Model: {models / 'model.pt'}: there is none that can be read"]
    origin = settings.get("origin") or {}
    scans = (origin.get("scans") or {}).get("training")
    trained = f" (trained on {scans} scans, {origin.get('date')})" if scans else ""
    return [f"Model: {models / 'model.pt'}{trained}", f"  {threshold_line(settings)}"]
