"""Results that lie on disk, made a report of again: no network runs, nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai_dpmm.errors import InputError, cause, printable
from monai_dpmm.files import json_number, json_object
from monai_dpmm.io.datalist import data_root, datalist
from monai_dpmm.io.result_files import result_files
from monai_dpmm.report.handler import (
    OPERATING_POINT,
    curves_of,
    publish_report,
    scan_subject,
)
from monai_dpmm.report.html import formatted
from monai_dpmm.report.report import METRICS

_SHOWN = 3  # files that are named

__all__ = ["findings_of", "rewrite_report"]


class _Earlier(NamedTuple):
    """What an earlier report tells of the run whose results lie beside it.

    Attributes:
        subjects: metrics of each scan by its name, score and threshold, which tell whether the
            scan's results are still those that were measured.
        options: of `publish_report`.
    """

    subjects: dict[tuple[Any, ...], dict[str, Any]]
    options: dict[str, Any]


def rewrite_report(
    dataset_dir: str | Path,
    results: str | Path,
    folder: str | Path | None = None,
    *,
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
        axis: see `monai_dpmm.report.report.write_report`.
        slices: likewise.

    Raises:
        InputError: where no scan has results, or findings are broken; after the report of the
            others, for scans that could not be shown, with a line for each.
        ValueError: see `monai_dpmm.report.report.write_report`.
        OSError: where the report cannot be written.
    """
    results = Path(results)
    earlier = _earlier(results / "report" / METRICS)
    with_labels = earlier is None or bool(earlier.options["metrics"])
    items, root = datalist(dataset_dir, "test"), data_root(dataset_dir)
    subjects, points, missing = [], [], []
    for item in items:
        saved = result_files(item["image"], results, root)
        if absent := [path for path in saved.values() if not path.is_file()]:
            missing.append(absent[0])
            continue
        found = findings_of(saved["findings"])
        shown = {"label": item.get("label") if with_labels else None}
        shown |= {key: found[key] for key in ("score", "threshold")}
        subjects.append(scan_subject(item["image"], saved, **shown))
        points.append({key: found.get(key) for key in OPERATING_POINT})
    if not subjects:
        raise InputError(
            f"{results}: must hold results of a scan to report on (infer and evaluate write them),"
            f" got none of {len(items)}: there is no {missing[0]}"
        )
    options = _of_findings(points, results) if earlier is None else _of_these(earlier, subjects)
    place = folder or results / "report"
    left_out = publish_report(place, subjects, axis=axis, slices=slices, **options)
    if missing:
        names = [str(path) for path in missing[:_SHOWN]] + ["..."] * (len(missing) > _SHOWN)
        left = f"Left out, {len(missing)} of {len(items)} scans have no: {', '.join(names)}"
        print(printable(left))
    if left_out:
        lines = "".join(f"\n  {line}" for line in left_out)
        raise InputError(f"{len(left_out)} of {len(items)} scans were left out:{lines}")


def findings_of(file: Path) -> dict[str, Any]:
    """What `SaveResultsd` wrote of a scan."""
    try:
        found = json_object(file)
        numbers = {key: json_number(found[key]) for key in ("score", "threshold", *OPERATING_POINT)}
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{file}: must be the findings of a scan, {cause(error)}") from error
    return numbers


def _earlier(file: Path) -> _Earlier | None:
    """What a report's metrics.json tells, where there is one; it may come from a stranger."""
    if not file.is_file():
        return None
    try:
        report = json_object(file)
        subjects = {
            _key(subject): {formatted(k): v for k, v in subject["metrics"].items()}
            for subject in report["subjects"]
        }
        options = {
            "metrics": {formatted(k): json_number(v) for k, v in report["metrics"].items()},
            "intervals": {k: [json_number(v) for v in of] for k, of in report["intervals"].items()},
            "settings": dict(report["settings"]),
            "history": report["history"] and {k: list(v) for k, v in report["history"].items()},
            "measured_with": dict(report["environment"]),
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(f"{file}: must be the metrics.json of a report, {cause(error)}") from error
    return _Earlier(subjects, options)


def _key(subject: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(subject[key] for key in ("name", "score", "threshold"))


def _of_these(earlier: _Earlier, subjects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Options of the report; its scans get what was measured of them."""
    for subject in subjects:
        subject["metrics"] = earlier.subjects.get(_key(subject), {})
    if {_key(subject) for subject in subjects} == earlier.subjects.keys():
        return earlier.options
    if earlier.options["metrics"]:
        print("The pooled metrics are those of other scans or results, and left out")
    return earlier.options | {"metrics": {}, "intervals": {}}


def _of_findings(points: Sequence[Mapping[str, Any]], results: Path) -> dict[str, Any]:
    """Options of a report without an earlier one: what its findings agree on, and the curves."""
    agreed = points[0] if all(point == points[0] for point in points) else {}
    settings = {key: value for key, value in agreed.items() if value is not None}
    return {"settings": settings, "history": curves_of(results / "history.json")}
