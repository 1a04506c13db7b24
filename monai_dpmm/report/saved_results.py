"""Results that lie on disk, made a report of: no network runs, nothing is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from monai_dpmm.errors import InputError, cause, printable
from monai_dpmm.files import (
    atomic_write,
    json_number,
    json_object,
    json_value,
    plain,
    sweep,
)
from monai_dpmm.io.datalist import data_root, datalist
from monai_dpmm.io.result_files import result_files
from monai_dpmm.report.earlier_scans import EarlierScans, earlier_scans
from monai_dpmm.report.html import formatted
from monai_dpmm.report.prototype_colors import read_colors
from monai_dpmm.report.report import METRICS, PAGE, PARTS, metrics_table, write_report
from monai_dpmm.report.report_folder import aside, one_line, taken
from monai_dpmm.report.saved_findings import (
    OPERATING_POINT,
    SavedScan,
    findings_of,
    scan_subject,
    unique_names,
)

_SHOWN = 3  # files that are named

__all__ = ["curves_of", "report_measured", "rewrite_report"]


class _Measured(NamedTuple):
    """What a report's metrics.json tells of the run whose results lie beside it.

    Attributes:
        subjects: "metrics" and "direction" of each scan by its name, score and threshold, which
            tell whether the scan's results are still those that were measured.
        options: of `write_report`.
    """

    subjects: dict[tuple[Any, ...], dict[str, Any]]
    options: dict[str, Any]


def rewrite_report(
    dataset_dir: str | Path,
    results: str | Path,
    folder: str | Path | None = None,
    *,
    pattern: str | None = None,
    axis: int = 2,
    slices: int = 1,
) -> None:
    """Write the report of scans from the results of an earlier run, and print its table.

    Where `results/report/metrics.json` is there, the report is that of the same run: what was
    measured, its settings, its training curves, and what it was measured with are taken from it,
    and labels are drawn if it measured. Scans whose results have changed since have no metrics,
    and pooled metrics are left out unless they are of these very scans. Otherwise the settings
    are those of the findings, the curves those of `results/history.json`, and labels are drawn
    where there are some. Scans without results are left out, and named.

    Args:
        dataset_dir: as the run was given it, since results keep the scans' paths below it.
        results: folder that the run wrote, its output_dir.
        folder: of the new report; results/report if None.
        pattern: of the names of the scans, as the run was given it.
        axis: see `monai_dpmm.report.report.write_report`.
        slices: likewise.

    Raises:
        InputError: where no scan has results, or findings are broken; after the report of the
            others, for scans that could not be shown, with a line for each.
        ValueError: see `monai_dpmm.report.report.write_report`.
        OSError: where the report cannot be written.
    """
    results = Path(results)
    items, root = datalist(dataset_dir, "test", pattern=pattern), data_root(dataset_dir)
    scans, missing = [], []
    for item in items:
        files = result_files(item["image"], results, root)
        if absent := [path for path in files.values() if not path.is_file()]:
            missing.append(absent[0])
        else:
            scans.append(SavedScan(item["image"], item.get("label"), files))
    if not scans:
        raise InputError(
            f"{results}: must hold results of a scan to report on (infer and evaluate write them),"
            f" got none of {len(items)}: there is no {missing[0]}"
        )
    measured = _measured(results / "report" / METRICS)
    options = {"history": results / "history.json", "axis": axis, "slices": slices}
    folder = Path(folder or results / "report")
    with taken(folder):
        left_out = _report(scans, folder, measured, **options)
    if missing:
        names = [str(path) for path in missing[:_SHOWN]] + ["..."] * (len(missing) > _SHOWN)
        left = f"Left out, {len(missing)} of {len(items)} scans have no: {', '.join(names)}"
        print(printable(left))
    if left_out:
        lines = "".join(f"\n  {line}" for line in left_out)
        raise InputError(f"{len(left_out)} of {len(items)} scans were left out:{lines}")


def report_measured(
    scans: Sequence[SavedScan], folder: Path, measured: Mapping[str, Any]
) -> list[str]:
    """Keep what a run measured, as metrics.json of its report, and write the report.

    Returns a line for each scan that the report leaves out. Whatever fails later, the numbers are
    kept; the page of an earlier run goes before they come. Of an inference, it is the report of
    earlier inferences of other scans by the same model with the same settings as well, see
    `earlier_scans`. A report that would be lost is moved aside. Runs that end at the same time
    write one after the other.

    Args:
        scans: of the run.
        folder: of the report.
        measured: "metrics", "intervals", "settings", "environment" and "history" of the run,
            "left_out", a line for each scan that could not be read, "prototype_colors" of each
            direction, and "subjects", a dictionary of "name", "score", "threshold", "metrics" and
            "direction" for each other scan, in the scans' order.

    Raises:
        OSError: in one line, where the report cannot be written, as on a full disk.
    """
    places, images = [_place(scan, folder) for scan in scans], [scan.image for scan in scans]
    with taken(folder), one_line(folder):
        sweep(folder, PARTS)  # what a killed run had begun to put there is older
        earlier = earlier_scans(folder, measured, places, images)
        with aside(folder, earlier.apart):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / PAGE).unlink(missing_ok=True)
            record = earlier.joined(measured)
            with atomic_write(folder / METRICS) as partial:
                text = json.dumps(plain(record), indent=1, allow_nan=False, ensure_ascii=False)
                partial.write_text(f"{text}\n", encoding="utf-8", errors="replace")
            options = _measured(folder / METRICS)
            return _report(scans, folder, options, earlier)


def _report(
    scans: Sequence[SavedScan],
    folder: Path,
    measured: _Measured | None,
    earlier: EarlierScans | None = None,
    *,
    history: Path | None = None,
    **options: Any,
) -> list[str]:
    """Write a report of files and what was measured, print its table; lines of what is left out."""
    with_labels = measured is None or bool(measured.options["metrics"])
    subjects, points = [], []
    known = {record["name"] for record in (earlier.records if earlier else ())}
    for scan, name in zip(scans, unique_names([scan.image for scan in scans]), strict=True):
        found = findings_of(scan.files["findings"])
        label = scan.label if with_labels else None
        place = _place(scan, folder)
        name = str(PurePosixPath(place).parent) if place and name in known else name
        subject = scan_subject(name, scan.image, scan.files, found, label)
        subjects.append(subject | {"results": place})
        points.append({key: found[key] for key in OPERATING_POINT})
    run = _of_findings(points, history) if measured is None else _of_these(measured, subjects)
    metrics, intervals = run.get("metrics") or {}, run.get("intervals")
    apart = earlier is None and not metrics and _has_metrics(folder)
    with aside(folder, apart), one_line(folder):
        left_out: list[str] = []
        options |= run | {"left_out": left_out, "earlier": earlier}
        page = write_report(folder, subjects=subjects, **options)
    protocol = {k: v for k, v in run["settings"].items() if k == "protocol"}
    if metrics:
        print(metrics_table({**metrics, **protocol}, subjects, intervals))
    if earlier is not None and (kept := len(earlier.records)):
        print(f"The report has {kept} scan{'s' * (kept > 1)} of earlier runs, too")
    print(f"Report: {page}")
    return left_out


def _place(scan: SavedScan, folder: Path) -> str | None:
    """Where a scan's findings lie, from the folder that its report lies in; None elsewhere."""
    findings, output = Path(scan.files["findings"]).absolute(), folder.absolute().parent
    return findings.relative_to(output).as_posix() if findings.is_relative_to(output) else None


def _has_metrics(folder: Path) -> bool:
    try:
        return bool(json_object(folder / METRICS).get("metrics"))
    except (OSError, ValueError):
        return False


def curves_of(history: str | Path | None) -> dict[str, list[Any]] | None:
    """Lists of the metrics over epochs, from the records that `History` wrote, where it did.

    Raises:
        InputError: where the file holds anything else.
    """
    if history is None or not Path(history).is_file():
        return None
    try:
        records = [{k: json_number(v) for k, v in r.items()} for r in json_value(history)]
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{history}: must be a training's history, {error}") from error
    names = sorted({name for record in records for name in record})
    return {name: [record.get(name) for record in records] for name in names}


def _measured(file: Path) -> _Measured | None:
    """What a report's metrics.json tells, where there is one; which is untrusted."""
    if not file.is_file():
        return None
    try:
        report = json_object(file)
        subjects = {
            _key(subject): {
                "metrics": {formatted(k): v for k, v in subject["metrics"].items()},
                "direction": abs(int(subject.get("direction", 0))),
            }
            for subject in report["subjects"]
        }
        options = {
            "metrics": {formatted(k): json_number(v) for k, v in report["metrics"].items()},
            "intervals": {k: [json_number(v) for v in of] for k, of in report["intervals"].items()},
            "settings": dict(report["settings"]),
            "history": report["history"] and {k: list(v) for k, v in report["history"].items()},
            "measured_with": dict(report["environment"]),
            "skipped": [str(line) for line in report.get("left_out") or []],
            "prototype_colors": [str(text) for text in report.get("prototype_colors") or []],
        }
        for text in options["prototype_colors"]:
            read_colors(text)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(f"{file}: must be the metrics.json of a report, {cause(error)}") from error
    return _Measured(subjects, options)


def _key(subject: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(subject[key] for key in ("name", "score", "threshold"))


def _of_these(measured: _Measured, subjects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Options of the report; its scans get what was measured of them."""
    for subject in subjects:
        subject |= measured.subjects.get(_key(subject), {"metrics": {}})
    if {_key(subject) for subject in subjects} == measured.subjects.keys():
        return measured.options
    if measured.options["metrics"]:
        print("The pooled metrics are those of other scans or results, and left out")
    return measured.options | {"metrics": {}, "intervals": {}, "prototype_colors": []}


def _of_findings(points: Sequence[Mapping[str, Any]], history: Path | None) -> dict[str, Any]:
    """Options of a report of which nothing was measured: what its findings agree on, the curves."""
    agreed = points[0] if all(point == points[0] for point in points) else {}
    settings = {key: value for key, value in agreed.items() if value is not None}
    return {"settings": settings, "history": curves_of(history)}
