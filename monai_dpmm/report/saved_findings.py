"""Results of a scan on disk, as a report takes them: findings read without trust, names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai_dpmm.errors import InputError, InputTypeError, cause
from monai_dpmm.files import json_number, json_object
from monai_dpmm.io.result_files import scan_name

OPERATING_POINT = ("false_positive_rate", "false_positive_volume_ml")
_NUMBERS = ("mask_volume_ml", "mask_area_px", "smaller_lesions", "healthy_scans", "score_p_value")
_OF_LESION = ("rank", "volume_ml", "area_px", "peak_score", "mean_score", "p_value")

__all__ = ["OPERATING_POINT", "SavedScan", "findings_of", "scan_subject", "unique_names"]


class SavedScan(NamedTuple):
    """A scan's file or folder, its label's, and the files of its results, see `result_files`."""

    image: str
    label: str | None
    files: Mapping[str, Path]


def unique_names(paths: Sequence[str]) -> list[str]:
    """A name for each scan, as short as tells it from the others: 001, or anna/001 and ben/001.

    Files of one name in one folder keep their suffixes: seg.mha, seg.nrrd.
    """
    names = [scan_name(path) for path in paths]
    whole = Counter((Path(path).parent, name) for path, name in zip(paths, names, strict=True))
    for number, path in enumerate(paths):
        if whole[Path(path).parent, names[number]] > 1:
            names[number] = Path(path).name
    parts = [Path(path).parent.parts for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        doubled = {name for name, count in Counter(names).items() if count > 1}
        if not doubled:
            break
        for number, name in enumerate(names):
            if name in doubled and len(parts[number]) >= depth:
                names[number] = f"{parts[number][-depth]}/{name}"
    return names


def scan_subject(
    name: str,
    image: str | Path,
    saved: Mapping[str, str | Path],
    findings: Mapping[str, Any],
    label: str | Path | None = None,
) -> dict[str, Any]:
    """A scan as `write_report` takes it.

    Args:
        name: of the scan.
        image: its file or folder.
        saved: files of its results, by their postfix "anomaly", "mask" and "component".
        findings: see `findings_of`.
        label: file of the label, where there is one.
    """
    subject = {
        "name": name,
        "image": str(image),
        "anomaly": saved["anomaly"],
        "mask": saved["mask"],
        "components": saved["component"],
        "score": findings["score"],
        "threshold": findings["threshold"],
        "findings": findings if "lesions" in findings else None,
    }
    return subject if label is None else {**subject, "label": str(label)}


def findings_of(file: Path) -> dict[str, Any]:
    """What `SaveResultsd` wrote of a scan, of which only what a report shows is taken.

    Raises:
        InputError: where it is anything else: numbers are numbers, and text is text.
    """
    try:
        found = json_object(file)
        known = {key: json_number(found[key]) for key in ("score", "threshold", *OPERATING_POINT)}
        known |= {key: json_number(found[key]) for key in _NUMBERS if key in found}
        if "lesions" in found:
            known["lesions"] = [_lesion(one) for one in found["lesions"]]
        known["warnings"] = [str(line) for line in found.get("warnings") or []]
        check = found.get("scan_check") or {}
        known["scan_check"] = {
            "suspicious": check.get("suspicious") is True,
            "reason": str(check.get("reason", "")),
        }
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise InputError(f"{file}: must be the findings of a scan, {cause(error)}") from error
    return known


def _lesion(one: Mapping[str, Any]) -> dict[str, Any]:
    lesion: dict[str, Any] = {key: json_number(one[key]) for key in _OF_LESION if key in one}
    for key in ("peak_mm", "peak_px"):
        if key in one:
            lesion[key] = [json_number(value) for value in one[key]]
    told = lesion.get("rank"), lesion.get("peak_score"), lesion.get("peak_mm", one.get("peak_px"))
    if None in told:
        raise InputTypeError("a lesion must have a rank, a peak score and a place")
    return lesion | {"position": str(one.get("position") or "")}
