"""What a released model says of itself: its data, settings, thresholds and measured quality."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from monai_dpmm.tensor_files import load_tensors

__all__ = ["model_card", "read_metrics"]

_FOUND = ("scan_reference", "volume_thresholds")  # long, and found by `calibrate`


def model_card(
    model: str | Path, *, data: str | None = None, metrics: Mapping[str, Any] | None = None
) -> str:
    """Markdown section on one trained model, to follow the document of its kind.

    Args:
        model: a model.pt, beside its model.json.
        data: a sentence on the healthy scans; without it the card says that it was not told.
        metrics: of an evaluation of this model, see `read_metrics`.

    Raises:
        InputError: for a model.pt that holds no tensors, see `load_tensors`.
        ValueError: for one that is no trained model.
    """
    file = Path(model)
    state = load_tensors(file)
    missing = [key for key in ("mixture.offsets", "thresholds") if key not in state]
    if missing:
        raise ValueError(f"{file}: must be a trained model, it has no {missing[0]}")
    settings = json.loads(file.with_suffix(".json").read_text())
    components, features = state["mixture.offsets"].shape
    rates = zip(state["false_positive_rates"].tolist(), state["thresholds"].tolist(), strict=True)
    rows = {
        **{name: json.dumps(value) for name, value in settings.items() if name not in _FOUND},
        "prototypes kept, features": f"{components}, {features}",
        "size of models/model.pt": f"{file.stat().st_size / 1e6:.1f} MB",
        **{f"threshold at {rate:.0%} false positives": f"{at:.4g}" for rate, at in rates},
        "thresholds in ml a scan": _yes(settings.get("volume_thresholds")),
        "check of whole scans": _yes(settings.get("scan_reference")),
    }
    return "\n".join(
        [
            *("## This model", "", f"Healthy scans: {data or 'not told when it was built.'}", ""),
            *_table("setting", rows),
            *("", "## Performance", ""),
            *(_performance(metrics) if metrics else ["Not measured when it was built."]),
            "",
        ]
    )


def read_metrics(path: str | Path) -> dict[str, float]:
    """Pooled metrics of an evaluation or of `score`, from the metrics.json that it wrote.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it holds no metrics, as after an inference without labels.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: must exist, there is no such file (evaluate first)")
    try:
        content = json.loads(file.read_text())
        found = content["metrics"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file}: must be the metrics.json of an evaluation") from None
    numbers = {name: float(value) for name, value in found if isinstance(value, int | float)}
    if not numbers:
        raise ValueError(f"{file}: must hold metrics, got none (were there labels?)")
    return numbers


def _performance(metrics: Mapping[str, Any]) -> list[str]:
    return _table("metric, over all test scans", {k: f"{v:.4f}" for k, v in metrics.items()})


def _table(head: str, rows: Mapping[str, str]) -> list[str]:
    body = (f"| {escape(k, quote=False)} | {escape(v, quote=False)} |" for k, v in rows.items())
    return [f"| {head} | value |", "|---|---|", *body]


def _yes(value: Any) -> str:
    return "calibrated" if value else "not calibrated"
