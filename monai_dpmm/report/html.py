"""The pages of a report: HTML that fetches nothing, of templates that escape what they show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from monai_dpmm.report.summary import (
    cards,
    made_with,
    plain_number,
    title_of,
    verdict_of_run,
)

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
            "intervals" (low and high of some metrics, where there are), "left_out" (a line for each
            scan that is not in it), "subjects" (records of `subject_record` with number, figure,
            the address of the picture beside the page, figure_size in pixels, and viewer, the
            address of a page to walk through the volume, or None), and "training", the address of
            the curves, or None.
    """
    names = metric_names(report["subjects"])
    subjects = [
        {
            "number": number,  # of older records
            **subject,
            "values": [subject["metrics"].get(name) for name in names],
            "facts": {k: subject[k] for k in ("score", "threshold")} | subject["metrics"],
        }
        for number, subject in enumerate(report["subjects"], 1)
    ]
    fitting = [subject for subject in subjects if not subject["verdict"]]
    with_findings = any(subject["found"] is not None for subject in subjects)
    shown = ["Scan", *(["Findings", "Marked"] if with_findings else []), "Scan score"]
    return page(
        "report.html",
        verdict=verdict_of_run(subjects, report["left_out"]),
        cards=cards(report),
        made_with=made_with(report),
        best=(fitting or subjects or [None])[0],
        odd=[subject for subject in subjects if subject["verdict"]],
        left_out=report["left_out"],
        metrics=report["metrics"],
        intervals=report.get("intervals", {}),
        heads=[*shown, *map(title_of, names)],
        with_findings=with_findings,
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
        "title_of": title_of,
        "number": plain_number,
        "shown": _shown,
    }
    return environment


def _shown(value: Any) -> str:
    """A value of a table for a reader: numbers with at most three digits."""
    number = isinstance(value, float) and not isinstance(value, bool)
    return plain_number(value) if number else formatted(value)


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
