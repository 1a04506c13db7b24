"""What a released model says of itself: its data, settings, thresholds and measured quality."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from torch import Tensor

from monai_dpmm import __version__
from monai_dpmm.app.settings import CALIBRATED, RENAMED
from monai_dpmm.errors import InputError, MissingFileError
from monai_dpmm.files import json_object, load_tensors
from monai_dpmm.mixture.scores import SCORES
from monai_dpmm.network.backbones.registry import BACKBONES

__all__ = ["model_card", "read_metrics"]

_NEEDED = ("thresholds", "false_positive_rates")
_MEANS = re.compile(r"mixture\.(\d+\.)?offsets")  # of the only direction, or of each of several
_METRIC = re.compile(r"\w[\w.-]*", re.ASCII)  # no markup of Markdown, nothing that MONAI runs


def model_card(
    model: str | Path,
    template: str,
    *,
    name: str,
    data: str | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> str:
    """Markdown document of one trained model.

    Args:
        model: a model.pt, beside its model.json.
        template: the document, with a place (`string.Template`) for each part that is the model's.
        name: of the bundle.
        data: a sentence on the healthy scans; without it the card says that it is unknown.
        metrics: of an evaluation of this model, see `read_metrics`.

    Raises:
        InputError: for a model.pt that holds no tensors, see `load_tensors`.
        ValueError: for one that is no trained model, or a template whose places are others.
    """
    file = Path(model)
    state = load_tensors(file)
    means = [value for key, value in state.items() if _MEANS.fullmatch(key)]
    missing = [key for key in _NEEDED if not isinstance(state.get(key), Tensor)]
    missing += [] if means else ["mixture.offsets"]
    if missing:
        raise InputError(f"{file}: must be a trained model, it has no {missing[0]}")
    beside = json_object(file.with_suffix(".json"))
    settings = {RENAMED.get(key, key): value for key, value in beside.items()}
    components, features = means[0].shape
    known = defaultdict(lambda: "unknown", {key: _shown(value) for key, value in settings.items()})
    backbone = known["backbone_architecture"]
    parts = {
        "name": _text(name),
        "version": __version__,
        "data": _text(data or "Not given when this bundle was built."),
        "model": (
            f"Backbone: `{backbone}`, frozen, {features} features a patch. Mixture: {components}"
            f" components{_directions(len(means))}, {known['component_kind']}. Both are in"
            f" `models/model.pt` ({file.stat().st_size / 1e6:.1f} MB)."
        ),
        "input": _input(
            known, scaled_by="percentiles" if settings.get("window") is None else "window"
        ),
        "output": _output(known),
        "settings": "\n".join(_table("setting", _settings(state, settings))),
        "performance": "\n".join(_performance(metrics)),
        "weights": BACKBONES[backbone].licence if backbone in BACKBONES else "",
    }
    return _filled(template, parts)


def read_metrics(path: str | Path) -> dict[str, float]:
    """Pooled metrics of an evaluation or of `score`, from the metrics.json that it wrote.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it holds no metrics, as after an inference without labels.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFileError(f"{file}: must exist, there is no such file (evaluate first)")
    try:
        found = json_object(file)["metrics"].items()
        numbers = {name: float(value) for name, value in found if isinstance(value, int | float)}
    except (ValueError, KeyError, AttributeError, OverflowError):
        raise InputError(f"{file}: must be the metrics.json of an evaluation") from None
    if odd := [name for name in numbers if not _METRIC.fullmatch(name)]:
        raise InputError(f"{file}: names of metrics must be plain words, got {odd[0]!r}")
    if not numbers:
        raise InputError(f"{file}: must hold metrics, got none (were there labels?)")
    return numbers


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with all its places filled, each of the parts in one at least.

    Raises:
        ValueError: where a part has no place, or a place no part.
    """
    matches = Template.pattern.finditer(template)
    places = {match["named"] or match["braced"] or match[0] for match in matches}
    if places != parts.keys():
        raise InputError(
            f"the template must have places for {', '.join(sorted(parts))}, "
            f"got {', '.join(sorted(places)) or 'none'}"
        )
    return Template(template).substitute(parts)


def _directions(count: int) -> str:
    return "" if count == 1 else f" in each of {count} slice directions"


def _input(known: Mapping[str, str], scaled_by: str) -> str:
    """What the model takes."""
    return (
        "A volume of one channel, of any size and voxels, or a picture. It is turned to the"
        f" orientation {known['orientation']}, its intensities are brought to [0, 1] by the"
        f" {scaled_by} {known[scaled_by]}, and it is cut along axis {known['slice_axis']}. The"
        " network itself takes such slices, (S, 1, H, W), and brings their shorter side to"
        f" {known['image_size']} pixels."
    )


def _output(known: Mapping[str, str]) -> str:
    """What the model gives."""
    score = known["score"]
    text = SCORES[score].text if score in SCORES else score
    return (
        "An anomaly score for each voxel, on the scan's own grid, larger is more anomalous:"
        f" {text}. The network gives a map for each slice, (S, 1, H, W). The"
        " mask of scores above a threshold, the number of the nearest prototype and the findings"
        " as JSON are written beside the heat map."
    )


def _settings(state: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    rates = zip(state["false_positive_rates"].tolist(), state["thresholds"].tolist(), strict=True)
    return {
        **{name: _shown(value) for name, value in settings.items() if name not in CALIBRATED},
        **{f"threshold at {rate:.0%} false positives": f"{at:.4g}" for rate, at in rates},
        "thresholds in ml a scan": _yes(settings.get("volume_thresholds")),
        "check of whole scans": _yes(settings.get("scan_reference")),
    }


def _performance(metrics: Mapping[str, Any] | None) -> list[str]:
    if not metrics:
        return ["Not measured when this bundle was built."]
    rows = {k: f"{v:.4f}" if v == 0 or abs(v) >= 1e-3 else f"{v:.0e}" for k, v in metrics.items()}
    head = (
        "Over all scans of the evaluation; `at_fpr_0.01`: with 1 % false positives in calibration."
    )
    return [head, "", *_table("metric", rows)]


def _table(head: str, rows: Mapping[str, str]) -> list[str]:
    body = (f"| {_cell(_text(name))} | {_cell(value)} |" for name, value in rows.items())
    return [f"| {head} | value |", "|---|---|", *body]


def _cell(text: str) -> str:
    """Text that does not end its cell."""
    return text.replace("|", "\\|")


def _text(text: str) -> str:
    """Text in one line, without markup of HTML."""
    return escape(" ".join(text.split()), quote=False)


def _shown(value: Any) -> str:
    """A setting as text: what JSON makes of it, without the quotes."""
    return _text(value if isinstance(value, str) else json.dumps(value))


def _yes(value: Any) -> str:
    return "calibrated" if value else "not calibrated"
