"""A report of an evaluation: figures, metrics as JSON and on screen, and a page that shows all."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_dpmm.errors import InputError
from monai_dpmm.files import plain, replacement
from monai_dpmm.report.display import checked_array, heat_range, peak_voxel
from monai_dpmm.report.environment import environment
from monai_dpmm.report.findings_text import findings_text
from monai_dpmm.report.html import formatted, formatted_interval, metric_names, report_page
from monai_dpmm.report.scan_figure import require_matplotlib, subject_figure
from monai_dpmm.report.training_curves import training_figure
from monai_dpmm.report.viewer import can_view, has_nilearn, require_nilearn, viewer_page
from monai_dpmm.report.volumes import subject_volume, subject_volumes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, METRICS, FIGURES, VIEWERS = "report.html", "metrics.json", "figures", "viewers"
PARTS = {
    FIGURES: re.compile(r"(training|\d{3,}-[\w.-]*)\.png", re.ASCII),
    VIEWERS: re.compile(r"\d{3,}-[\w.-]*\.html", re.ASCII),
}
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
    records = [_record(subject) for subject in _ranked(subjects)]
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
    viewers: bool | None = None,
    left_out: list[str] | None = None,
) -> Path:
    """Path of the page `report.html`, written with `metrics.json`, `figures/` and `viewers/`.

    All figures and viewer pages share one colour scale. An earlier report in the folder stays as
    it is until the new one is complete; then it is replaced, the page last: where there is a page,
    all it shows is there. Other files in the folder are left alone.

    Args:
        folder: made where it does not exist.
        subjects: dictionaries of "name", "image" and "anomaly", and where there are "mask",
            "components", "label" (see `subject_figure`), "score" (of the whole image),
            "threshold", "metrics" (by name) and "spacing" (mm, for arrays). A volume is an array
            or the path of a NIfTI file, which is loaded when its figure is drawn, as closest to
            Right, Anterior, Superior.
        history: training curves, see `training_figure`.
        metrics: pooled metrics by name, NaN for what is undefined.
        intervals: (low, high) of some of them by name, at 95 %.
        settings: anything worth keeping of how the results came about, may be nested.
        measured_with: date, versions and hardware by name; None: now, and what is here.
        axis: spatial axis that the slices are perpendicular to.
        slices: slices shown of each subject.
        viewers: write a page to walk through each volume, see `viewer_page`;
            images of a single slice get none. None: where nilearn is installed.
        left_out: gets a line for each subject that cannot be shown, as where a file of it cannot be
            read or lies on another grid; the report is that of the others. None: an error.

    Raises:
        ValueError: naming subject, key and value, for no subjects, a missing key, subjects that
            cannot be shown (none of them, if `left_out` is given), and see `subject_figure` and
            `training_figure`.
        ImportError: without matplotlib, or nilearn where viewers are asked for.
    """
    require_matplotlib()
    if viewers:
        require_nilearn()
    folder, ranked = Path(folder), _ranked(subjects)
    if not ranked:
        raise InputError("subjects must not be empty, got none")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder must be a folder, got the file {folder}")
    curves = training_figure(history) if history else None
    shown, heat = _common_heat(ranked, left_out)
    view = {"axis": axis, "slices": slices, "heat": heat}
    with_viewers = has_nilearn() if viewers is None else viewers
    with replacement(folder, PARTS, (METRICS, PAGE)) as partial:
        records: list[dict[str, Any]] = []
        for subject in shown:
            with _leaving_out(left_out):
                written = _write_subject(partial, len(records) + 1, subject, view, with_viewers)
                records.append(_record(subject) | written)
        if left_out and not records:
            raise InputError(left_out[0])
        if curves is not None:
            _save(curves, partial / FIGURES / "training.png")
        report = {
            "metrics": metrics or {},
            "intervals": intervals or {},
            "subjects": records,
            "history": history,
            "training": None if curves is None else f"{FIGURES}/training.png",
            "settings": settings or {},
            "environment": measured_with or environment(),
        }
        _write_texts(partial, plain(report))
    return folder / PAGE


def _ranked(subjects: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Subjects, the highest score first, those without one last."""
    for number, subject in enumerate(subjects):
        if "name" not in subject:
            raise InputError(f"subjects[{number}] must have the key 'name', got {sorted(subject)}")

    def key(subject: Mapping[str, Any]) -> float:
        score = subject.get("score")
        return math.inf if score is None or not math.isfinite(score) else -float(score)

    return sorted(subjects, key=key)


def _record(subject: Mapping[str, Any]) -> dict[str, Any]:
    """What a report keeps of a subject, no volumes."""
    record = {key: subject.get(key) for key in ("score", "threshold")}
    metrics = dict(subject.get("metrics") or {})
    return plain({"name": str(subject["name"]), **record, "metrics": metrics})


def _common_heat(
    subjects: Sequence[Mapping[str, Any]], left_out: list[str] | None
) -> tuple[list[Mapping[str, Any]], tuple[float, float]]:
    """The subjects that can be shown, and one colour scale for all of them.

    Volumes are loaded one after the other and let go.
    """
    shown, ranges = [], []
    for subject in subjects:
        with _leaving_out(left_out), _naming(subject):
            anomaly = checked_array("anomaly", subject_volume(subject, "anomaly")[0])
            ranges.append(heat_range(anomaly, _record(subject)["threshold"]))
            shown.append(subject)
    if left_out and not shown:
        raise InputError(left_out[0])
    return shown, (min(low for low, _ in ranges), max(high for _, high in ranges))


@contextmanager
def _leaving_out(left_out: list[str] | None) -> Iterator[None]:
    """Keep why a subject cannot be shown, and go on, where there is a list for it."""
    try:
        yield
    except InputError as error:
        if left_out is None:
            raise
        left_out.append(str(error))


@contextmanager
def _naming(subject: Mapping[str, Any]) -> Iterator[None]:
    """Put the subject's name before what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"subject {formatted(str(subject['name']))}: {error}") from None


def _write_subject(
    folder: Path, number: int, subject: Mapping[str, Any], view: Mapping[str, Any], viewer: bool
) -> dict[str, Any]:
    """Draw and save figure and viewer: addresses relative to the report, the figure's size."""
    record = _record(subject)
    name, score = formatted(record["name"]), record["score"]
    title = name if score is None else f"{name} · score {formatted(score)}"
    slug = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)[-60:]
    address = f"{FIGURES}/{number:03d}-{slug}.png"
    with _naming(subject):
        volumes, spacing, affine = subject_volumes(subject)
        options = {**view, "spacing": spacing, "threshold": record["threshold"], "title": title}
        figure = subject_figure(**volumes, **options)
    _save(figure, folder / address)
    width, height = figure.get_size_inches() * figure.dpi
    written = {"figure": address, "figure_size": [int(width), int(height)], "viewer": None}
    if viewer and can_view(np.asarray(volumes["image"])):
        affine = np.diag([*spacing, 1.0]) if affine is None else affine
        written["viewer"] = f"{VIEWERS}/{number:03d}-{slug}.html"
        with _naming(subject):
            page = _viewer(volumes, affine, options, back=f"../{PAGE}#subject-{number}")
        (folder / written["viewer"]).write_text(page, encoding="utf-8", errors="replace")
    return written


def _viewer(
    volumes: Mapping[str, Any], affine: np.ndarray, options: Mapping[str, Any], back: str
) -> str:
    """Viewer page that opens in the slice that the figure shows first, at its highest score."""
    image, anomaly, mask = (volumes[key] for key in ("image", "anomaly", "mask"))
    shared = {key: options[key] for key in ("threshold", "heat", "title")}
    start = peak_voxel(anomaly, mask, options["axis"])
    return viewer_page(image, anomaly, affine, **shared, start=start, back=back)


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        # a name in a script that the font lacks is legible on the page
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, format="png", dpi=figure.dpi, facecolor=figure.get_facecolor())


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
