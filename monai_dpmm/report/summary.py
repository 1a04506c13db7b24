"""What the first screen of a report says: the run's verdict, a few figures, what it was made with.

Everything is words and short numbers by then; the page only places them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["cards", "made_with", "plain_number", "title_of", "verdict_of_run"]

_ACRONYMS = {word: word.upper() for word in ("auroc", "aupr", "aupro", "fpr", "froc")}
_TITLES = {
    "anomalous": "Label: lesion",
    "score": "Scan score",
    "threshold": "Mask threshold",
    "lesions": "Lesions in the label",
    "protocol": "Compared at",
    "false_positive_volume_ml": "Threshold for, ml in a healthy scan",
    "false_positive_rate": "Threshold for, share of healthy foreground",
}


def verdict_of_run(subjects: Sequence[Mapping[str, Any]], left_out: Sequence[str]) -> list[str]:
    """Sentences on the run: how many scans were read, which were not, which must not be trusted.

    Args:
        subjects: records of the report, with "verdict", lines that say why not to trust a scan, and
            "found", how many findings, None where that is not known.
        left_out: a line for each scan that is not in the report.
    """
    total, odd = len(subjects) + len(left_out), [s for s in subjects if s["verdict"]]
    read = f"{len(subjects)} of {_scans(total)} read" if left_out else f"{_scans(total)} read"
    lines = [read + (f", {len(left_out)} left out." if left_out else ".")]
    if odd:
        whose = "its map" if len(odd) == 1 else "their maps"
        lines.append(f"{_scans(len(odd))} unlike the training data: do not rely on {whose}.")
    known = [s for s in subjects if s["found"] is not None and not s["verdict"]]
    if known:
        marked = sum(s["found"] > 0 for s in known)
        fitting = " that fit the model" if odd else ""
        lines.append(f"Findings in {marked} of {_scans(len(known))}{fitting}.")
    return lines


def cards(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Up to six figures: what an evaluation measured, else what an inference found.

    Dictionaries of "title", "value" and "note", which may be empty.
    """
    metrics, intervals = report["metrics"], report.get("intervals") or {}
    if metrics:
        return _measured(metrics, intervals)
    fitting = [s for s in report["subjects"] if s["found"] is not None and not s["verdict"]]
    if not fitting:
        return []
    volumes = sorted(s["marked"] for s in fitting)
    p_values = [s["lowest_p"] for s in fitting if s["lowest_p"] is not None]
    unit = fitting[0]["unit"]
    found = [
        ("Scans with findings", f"{sum(s['found'] > 0 for s in fitting)} of {len(fitting)}", ""),
        ("Findings", str(sum(s["found"] for s in fitting)), ""),
        ("Marked in a scan", f"{plain_number(volumes[len(volumes) // 2])} {unit}", "median"),
        ("Most marked", f"{plain_number(volumes[-1])} {unit}", "in one scan"),
    ]
    if p_values:
        scans = max(s["healthy_scans"] or 0 for s in fitting)
        note = f"no p is below 1 / {scans + 1}"
        found.append(("Lowest p-value", plain_number(min(p_values)), note))
    if (expected := report["settings"].get("expected_false_findings")) is not None:
        found.append(("Expected false findings", plain_number(expected), "in a healthy scan"))
    return [dict(zip(("title", "value", "note"), one, strict=True)) for one in found]


def _measured(
    metrics: Mapping[str, Any], intervals: Mapping[str, Sequence[Any]]
) -> list[dict[str, str]]:
    def share(part: str, of: str, interval: str) -> tuple[str, str, str] | None:
        if not metrics.get(of):
            return None
        bounds = [None if b is None else 100 * b for b in intervals.get(interval) or ()]
        note = _bounds(bounds, " %")
        return interval, f"{metrics[part]:.0f} of {metrics[of]:.0f}", note

    titles = {
        "finding_sensitivity": "Lesions found",
        "first_finding_precision": "First finding is a lesion",
        "false_findings_per_healthy_scan": "False findings, healthy scan",
        "image_auroc": "Healthy and ill told apart (AUROC)",
        "pixel_aupr": "Voxels, precision and recall (AUPR)",
        "pixel_best_dice": "Voxels, best Dice",
        "pixel_auroc": "Voxels told apart (AUROC)",
    }
    found = []
    for name, title in titles.items():
        if name == "finding_sensitivity" and "lesions_found" in metrics:
            one = share("lesions_found", "lesions", name)
        elif name == "first_finding_precision" and "first_findings_true" in metrics:
            one = share("first_findings_true", "scans_with_lesions", name)
        else:
            value = metrics.get(name)
            one = None if value is None else (name, plain_number(value), "")
        if one is not None:
            note = one[2] or _bounds(intervals.get(name) or ())
            found.append({"title": title, "value": one[1], "note": note})
    return found[:6]


def made_with(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader must know of a run, by name: model, data, backbone, threshold, versions."""
    settings, environment = report["settings"], report["environment"]
    origin = settings.get("origin") or {}
    healthy = origin.get("scans") or {}
    trained = "" if not healthy else f"{healthy.get('training', '?')} healthy scans"
    volume, rate = settings.get("false_positive_volume_ml"), settings.get("false_positive_rate")
    point = None if volume is None else f"{volume:g} ml of false positives in a healthy scan"
    if point is None and rate is not None:
        point = f"{100 * rate:g} % of the healthy foreground"
    named = [name for name in ("monai_dpmm", "torch", "monai") if name in environment]
    known = {
        "Model": settings.get("model"),
        "trained on": ", ".join(filter(None, (trained, str(origin.get("date") or "")[:10]))),
        "Data": settings.get("data"),
        "Backbone": settings.get("backbone"),
        "Prototypes": settings.get("prototypes"),
        "Mask threshold": point,
        "Versions": ", ".join(f"{name} {environment[name]}" for name in named),
        "Date": str(environment.get("date") or "")[:16].replace("T", " "),
    }
    return [(name, str(value)) for name, value in known.items() if value not in (None, "")]


def title_of(name: str) -> str:
    """Heading of a metric or a setting: pixel_auroc -> Pixel AUROC."""
    if name in _TITLES:
        return _TITLES[name]
    text = " ".join(_ACRONYMS.get(word, word) for word in name.split("_"))
    return text[:1].upper() + text[1:]


def plain_number(value: Any) -> str:
    """A number with at most three digits that say something; "-" where it is not defined."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1000:
        digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:.{min(digits, 3)}f}"
        return text.rstrip("0").rstrip(".") if value == round(value) else text
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1g}"


def _scans(count: int) -> str:
    return f"{count} scan{'s' * (count != 1)}"


def _bounds(interval: Sequence[Any], unit: str = "") -> str:
    """A 95 % interval in words; none where there is none, or of no width."""
    if len(interval) != 2 or None in interval or interval[0] == interval[1]:
        return ""
    low, high = (f"{b:.0f}" if unit else plain_number(b) for b in interval)
    return f"{low} to {high}{unit}"
