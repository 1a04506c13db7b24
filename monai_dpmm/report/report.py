"""A report of an evaluation: figures, metrics as JSON and on screen, and a page that shows all."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from monai_dpmm.errors import InputError
from monai_dpmm.files import plain, replacement
from monai_dpmm.report.earlier_scans import FILES, EarlierScans
from monai_dpmm.report.environment import environment
from monai_dpmm.report.findings_text import findings_text
from monai_dpmm.report.html import formatted, formatted_interval, metric_names, report_page
from monai_dpmm.report.prototype_colors import read_colors
from monai_dpmm.report.scan_figure import require_matplotlib, subject_figure
from monai_dpmm.report.subjects import (
    FIGURES,
    VIEWERS,
    SubjectFiles,
    common_heat,
    leaving_out,
    save,
    subject_record,
)
from monai_dpmm.report.training_curves import training_figure
from monai_dpmm.report.viewer import ORDER, SCRIPT

PAGE, METRICS = "report.html", "metrics.json"
PARTS = {
    FIGURES: re.compile(rf"training\.png|{FILES['figure']}", re.ASCII),
    VIEWERS: re.compile(rf"{FILES['viewer']}|{re.escape(SCRIPT)}|{re.escape(ORDER)}", re.ASCII),
}
_Subject = TypeVar("_Subject", bound=Mapping[str, Any])
_LONGEST = 48  # letters of a name on screen

__all__ = ["metrics_table", "subject_figure", "training_figure", "write_report"]


def metrics_table(
    metrics: Mapping[str, Any],
    subjects: Sequence[Mapping[str, Any]],
    intervals: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """Text for the screen: findings in words, the pooled metrics, one line per subject.

    What findings are worth is told where it was measured, see `findings_text`. Subjects come with
    the highest score first.

    Args:
        metrics: pooled metrics by name.
        subjects: dictionaries with "name" and, where there are, "score" and "metrics".
        intervals: (low, high) of some of the metrics, by name.
    """
    records = [subject_record(subject) for subject in _ranked(subjects)]
    names = metric_names(records)
    rows = [["subject", "score", *names]]
    for record in records:
        name = formatted(record["name"])
        name = name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"
        values = (record["score"], *(record["metrics"].get(key) for key in names))
        rows.append([name, *map(formatted, values)])
    pooled = [["all subjects", "value"], *([str(k), formatted(v)] for k, v in metrics.items())]
    if intervals:
        bounds = [formatted_interval(intervals.get(name)) for name in metrics]
        for row, bound in zip(pooled, ["95 % interval", *bounds], strict=True):
            row.append(bound)
    tables = [_aligned(table) for table in (pooled, rows) if len(table) > 1]
    return "\n\n".join(filter(None, [findings_text(metrics, intervals), *tables]))


def write_report(
    folder: str | os.PathLike[str],
    *,
    subjects: Sequence[Mapping[str, Any]],
    history: Mapping[str, Sequence[float | None]] | None = None,
    metrics: Mapping[str, Any] | None = None,
    intervals: Mapping[str, Sequence[float]] | None = None,
    settings: Mapping[str, Any] | None = None,
    measured_with: Mapping[str, Any] | None = None,
    axis: int = 2,
    slices: int = 1,
    viewers: bool = True,
    skipped: Sequence[str] = (),
    left_out: list[str] | None = None,
    earlier: EarlierScans | None = None,
    prototype_colors: Sequence[str] = (),
) -> Path:
    """Path of the page `report.html`, written with `metrics.json`, `figures/` and `viewers/`.

    Figures and viewer pages share one colour scale, but for scans that the findings call unlike the
    training data or whose map lies above the threshold as a whole, which have their own. An earlier
    report in the folder stays as it is until the new one is complete; then it is replaced, the page
    last: where there is a page, all it shows is there. Other files in the folder are left alone.

    Args:
        folder: made where it does not exist.
        subjects: dictionaries of "name", "image" and "anomaly", and where there are "mask",
            "components", "label" (see `subject_figure`), "score" (of the whole image),
            "threshold", "findings" (see `AnomalyFindingsd`), "metrics" (by name), "direction"
            (whose prototypes its components are, 0 if none) and "spacing" (mm, for arrays). A
            volume is an array or the path of a NIfTI file, which is loaded when its figure is
            drawn, as closest to Right, Anterior, Superior.
        history: training curves, see `training_figure`.
        metrics: pooled metrics by name, NaN for what is undefined.
        intervals: (low, high) of some of them by name, at 95 %.
        settings: anything worth keeping of how the results came about, may be nested.
        measured_with: date, versions and hardware by name; None: now, and what is here.
        axis: spatial axis that the slices are perpendicular to.
        slices: slices shown of each subject.
        viewers: write a page to walk through each volume, see `viewer_page`;
            images of a single slice get none.
        skipped: a line for each scan of the run that is not among the subjects, as one that could
            not be read; shown first.
        left_out: gets a line for each subject that cannot be shown, as where a file of it cannot be
            read or lies on another grid; the report is that of the others. None: an error.
        earlier: scans of the report that is in the folder, which stay as they are.
        prototype_colors: of each direction, see `monai_dpmm.report.prototype_colors`; without them
            a prototype's colour is that of its number.

    Raises:
        ValueError: naming subject, key and value, for no subjects, a missing key, subjects that
            cannot be shown (none of them, if `left_out` is given), and see `subject_figure` and
            `training_figure`.
        ImportError: without matplotlib.
    """
    require_matplotlib()
    folder, ranked = Path(folder), _ranked(subjects)
    if not ranked and not skipped:
        raise InputError("subjects must not be empty, got none")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder must be a folder, got the file {folder}")
    curves = training_figure(history) if history else None
    before = len(left_out or ())
    earlier = earlier or EarlierScans()
    shown, heat = common_heat(ranked, left_out, earlier.heat) if ranked else ([], earlier.heat)
    colors = [read_colors(text) for text in prototype_colors]
    view = {"axis": axis, "slices": slices}
    with replacement(folder, PARTS, (METRICS, PAGE)) as partial:
        files = SubjectFiles(partial, PAGE, view, viewers, earlier.last)
        records: list[dict[str, Any]] = []
        for subject, ends in shown:
            with leaving_out(left_out):
                own = subject.get("direction", 0)
                table = colors[own] if own < len(colors) and len(colors[own]) else None
                drawn = {**subject, "component_colors": table}
                written = files.write(len(records) + 1, drawn, ends, ends != heat)
                records.append(subject_record(subject) | written)
        if left_out and ranked and not records:
            raise InputError(left_out[0])
        records = _ranked([*records, *earlier.linked(folder, partial)])
        files.write_shared(records)
        if curves is not None:
            save(curves, partial / FIGURES / "training.png")
        report = {
            "metrics": metrics or {},
            "intervals": intervals or {},
            "left_out": [*earlier.left_out, *skipped, *(left_out or [])[before:]],
            "subjects": records,
            "heat": heat,
            "history": history,
            "training": None if curves is None else f"{FIGURES}/training.png",
            "settings": settings or {},
            "environment": measured_with or environment(),
            "prototype_colors": list(prototype_colors),
        }
        _write_texts(partial, plain(report))
    return folder / PAGE


def _ranked(subjects: Sequence[_Subject]) -> list[_Subject]:
    """Subjects, the highest score first, those without one last."""
    for number, subject in enumerate(subjects):
        if "name" not in subject:
            raise InputError(f"subjects[{number}] must have the key 'name', got {sorted(subject)}")

    def key(subject: Mapping[str, Any]) -> float:
        score = subject.get("score")
        return math.inf if score is None or not math.isfinite(score) else -float(score)

    return sorted(subjects, key=key)


def _write_texts(folder: Path, report: Mapping[str, Any]) -> None:
    text = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / METRICS).write_text(f"{text}\n", encoding="utf-8", errors="replace")
    (folder / PAGE).write_text(report_page(report), encoding="utf-8", errors="replace")


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text under a ruled heading, the first flush left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
