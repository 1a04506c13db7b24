"""The pages of a report: HTML that fetches nothing, of templates that escape what they show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_ACRONYMS = {word: word.upper() for word in ("auroc", "aupr", "aupro", "fpr", "froc")}

__all__ = ["formatted", "formatted_interval", "metric_names", "page", "report_page"]


def formatted(value: Any) -> str:
    """A value for a reader: four decimals, "-" for what is missing, never more than one line."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {formatted(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(formatted(item) for item in value)
    return "".join(c if c.isprintable() else " " for c in str(value))


def formatted_interval(interval: Sequence[Any] | None) -> str:
    """An interval for a reader, "[0.9600, 0.9810]"; nothing for none."""
    return f"[{formatted(interval)}]" if interval else ""


def metric_names(subjects: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of all metrics that any subject has, in order of appearance."""
    return list(dict.fromkeys(name for s in subjects for name in s["metrics"]))


def report_page(report: Mapping[str, Any]) -> str:
    """HTML of a report that stands alone: no script, font or style comes from elsewhere.

    Args:
        report: what `metrics.json` holds: "metrics", "settings" and "environment" by name,
            "intervals" (low and high of some metrics, where there are),
            "subjects" (dictionaries of name, score, threshold, metrics, figure, the address of the
            picture beside the page, figure_size in pixels, and viewer, the address of a page to
            walk through the volume, or None), and "training", the address of the curves, or None.
    """
    names = metric_names(report["subjects"])
    subjects = [
        {
            **subject,
            "values": [subject["score"], *(subject["metrics"].get(name) for name in names)],
            "facts": {k: subject[k] for k in ("score", "threshold")} | subject["metrics"],
        }
        for subject in report["subjects"]
    ]
    return page(
        "report.html",
        metrics=report["metrics"],
        intervals=report.get("intervals", {}),
        heads=["Subject", "Score", *map(_title, names)],
        subjects=subjects,
        training=report["training"],
        settings=list(_flat(report["settings"])),
        environment=list(_flat(report["environment"])),
    )


def page(template: str, **values: Any) -> str:
    """A page of values, which are untrusted: whatever they hold is text on it."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("monai_dpmm.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "formatted": formatted,
        "interval": formatted_interval,
        "sort_key": _sort_key,
        "title_of": _title,
    }
    return environment


def _title(name: str) -> str:
    """Heading of a metric: pixel_auroc -> Pixel AUROC."""
    text = " ".join(_ACRONYMS.get(word, word) for word in name.split("_"))
    return text[:1].upper() + text[1:]


def _sort_key(value: Any) -> str:
    """Text that the page's script sorts by; empty, which sorts last, for what is missing."""
    return "" if value is None else str(float(value) if isinstance(value, bool) else value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves of nested dictionaries with dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
