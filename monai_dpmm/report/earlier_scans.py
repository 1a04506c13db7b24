"""The report that is there when an inference ends, and what of it the new one keeps.

Two inferences of other scans into one folder give one report of both: scans that have been drawn
stay as they are, and nothing is drawn again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai_dpmm.errors import InputError
from monai_dpmm.files import json_number, json_object, linked, plain
from monai_dpmm.report.html import formatted
from monai_dpmm.report.saved_findings import OPERATING_POINT, findings_of

# names of a scan's figure and page, which begin with its number
FILES = {"figure": r"\d{3,}-[\w.-]*\.png", "viewer": r"\d{3,}-[\w.-]*\.html"}
_CELLS = ("rank", "size", "where", "peak", "p")
_COUNTS = ("found", "marked", "lowest_p", "healthy_scans")

__all__ = ["FILES", "EarlierScans", "earlier_scans"]


class EarlierScans(NamedTuple):
    """Scans of an earlier report that a new one in its folder keeps.

    Attributes:
        records: of `subject_record`, with number, figure, figure_size and viewer.
        heat: ends of the colour scale that they share.
        left_out: lines of scans that could not be read.
        settings: of their runs.
        apart: whether the report has more that the new one cannot keep.
    """

    records: Sequence[dict[str, Any]] = ()
    heat: tuple[float, float] | None = None
    left_out: Sequence[str] = ()
    settings: Mapping[str, Any] | None = None
    apart: bool = False

    @property
    def last(self) -> int:
        """Highest number of a scan."""
        return max((record["number"] for record in self.records), default=0)

    def joined(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        """What a run tells, and of the earlier scans the same; "data" names the data of both."""
        settings = {**(self.settings or {}), **measured["settings"]}
        data = [str(of["data"]) for of in (self.settings or {}, settings) if of.get("data")]
        if len(data) == 2 and data[1] not in data[0].split(", "):
            settings["data"] = ", ".join(data)
        elif len(data) == 2:
            settings["data"] = data[0]
        subjects = [*measured["subjects"], *self.records]
        return {**measured, "settings": settings, "subjects": subjects, "heat": self.heat}

    def linked(self, folder: Path, partial: Path) -> Sequence[dict[str, Any]]:
        """The records; their files in `folder` are in `partial` as well."""
        for record in self.records:
            for address in filter(None, (record["figure"], record["viewer"])):
                linked(folder / address, partial / address)
        return self.records


def earlier_scans(
    folder: Path,
    measured: Mapping[str, Any],
    results: Sequence[str | None],
    images: Sequence[str],
) -> EarlierScans:
    """What a new report in a folder keeps of the one that is there.

    Scans are kept where neither report has metrics, and model, settings, operating point and
    version are the same, as long as their results are still those that were drawn.

    Args:
        folder: of both reports.
        measured: see `report_measured`.
        results: places of the new scans' findings, from the folder above.
        images: the new scans.
    """
    try:
        report = json_object(folder / "metrics.json")
        subjects, metrics = list(report.get("subjects") or ()), dict(report.get("metrics") or {})
        settings, versions = (dict(report.get(k) or {}) for k in ("settings", "environment"))
        lines = [str(line) for line in report.get("left_out") or []]
        names = {str(one["name"]) for one in measured["subjects"]}
        others = [one for one in subjects if not _again(one, results, names)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return EarlierScans()  # there is none, or none that can be read
    # runs that read no scan have no operating point
    left = {"data", *(() if subjects and measured["subjects"] else OPERATING_POINT)}
    old, new = (
        {k: v for k, v in of.items() if k not in left}
        for of in (settings, plain(measured["settings"]))
    )
    same = old == new and versions.get("monai_dpmm") == measured["environment"].get("monai_dpmm")
    if metrics or measured["metrics"] or not same:
        lost = bool(metrics) and not measured["metrics"]
        page = (folder / "report.html").is_file()
        return EarlierScans(apart=lost or (bool(others) and page))
    kept = [record for one in others if (record := _whole(one, folder)) is not None]
    if gone := len(others) - len(kept):
        print(f"Not in the report any more: {gone} scans of it whose results or figures are gone")
    tried = [line.partition(": ")[0] for line in measured["left_out"]]
    tried += map(str, images)
    paths = [line.partition(": ")[0] for line in lines]
    lines = [
        line
        for line, path in zip(lines, paths, strict=True)
        if path not in tried and Path(path).exists()
    ]
    return EarlierScans(kept, _heat(report.get("heat")) if kept else None, lines, settings)


def _again(subject: Mapping[str, Any], results: Sequence[str | None], names: set[str]) -> bool:
    """Whether a scan of the earlier report is one of the new ones."""
    place = subject.get("results")
    return subject["name"] in names if place is None else place in results


def _heat(value: Any) -> tuple[float, float] | None:
    try:
        low, high = map(json_number, value)
    except (ValueError, TypeError, OverflowError):
        return None
    return None if low is None or high is None or not low < high else (low, high)


def _whole(subject: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """A record whose files and results are there; None for any other."""
    try:
        return _record(subject, folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def _record(subject: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A record of an earlier report, which is untrusted: numbers are numbers, and text is text.

    Raises:
        ValueError: where its results or files are not those that it tells of.
        OSError, TypeError, KeyError, AttributeError, OverflowError: where it is broken.
    """
    output, place = folder.parent.resolve(), str(subject["results"])
    findings = (output / place).resolve()
    if not findings.is_relative_to(output):
        raise InputError(f"results must lie in {output}, got {place}")
    found = findings_of(findings)
    if any(found[key] != json_number(subject[key]) for key in ("score", "threshold")):
        raise InputError(f"{findings}: its results are of a later run")
    record: dict[str, Any] = {key: json_number(subject[key]) for key in ("score", "threshold")}
    record |= {key: json_number(subject[key]) for key in _COUNTS}
    record |= {key: formatted(subject[key]) for key in ("name", "sentence")}
    record |= {"results": place, "metrics": {}, "direction": int(subject.get("direction", 0))}
    record["unit"] = None if subject["unit"] is None else formatted(subject["unit"])
    record["verdict"] = [formatted(line) for line in list(subject["verdict"])]
    record["rows"] = [{key: formatted(row[key]) for key in _CELLS} for row in subject["rows"]]
    for key, part in (("figure", "figures"), ("viewer", "viewers")):
        record[key] = address = subject[key]
        if address is None and key == "viewer":
            continue
        path = folder / part / str(address).removeprefix(f"{part}/")
        if not re.fullmatch(f"{part}/{FILES[key]}", str(address), re.ASCII):
            raise InputError(f"{key} must be a file of a report, got {address}")
        if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
            raise InputError(f"{path}: must be a file")
    record["number"] = int(re.findall(r"\d+", record["figure"])[0])
    width, height = (int(side) for side in subject["figure_size"])
    return record | {"figure_size": [width, height]}
