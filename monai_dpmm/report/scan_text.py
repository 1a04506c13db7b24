"""What was found in one scan, in words: for the screen, the report and the viewer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["finding_row", "p_text", "scan_sentence", "size_text", "verdict"]


def scan_sentence(findings: Mapping[str, Any]) -> str:
    """One sentence of what `AnomalyFindingsd` found: how many, how large, where, how rare.

    "3 findings, 12 ml; the most conspicuous: 9.1 ml right anterior upper (31, 52, 40 mm),
    p = 0.02 against 49 healthy scans".
    """
    lesions = findings.get("lesions") or []
    total = size_text(findings)
    smaller = findings.get("smaller_lesions") or 0
    if not lesions:
        left = f" ({total} in parts too small to list)" if smaller else ""
        return f"no finding{left}"
    first = finding_row(lesions[0])
    count = f"{len(lesions)} finding{'s' * (len(lesions) > 1)}"
    p = "" if first["p"] == "-" else f", p = {first['p']}{_against(findings)}"
    return f"{count}, {total}; the most conspicuous: {first['size']} {first['where']}{p}"


def verdict(findings: Mapping[str, Any]) -> list[str]:
    """Lines that say why a scan may not be read with its model; none where it may."""
    lines = []
    check = findings.get("scan_check") or {}
    if check.get("suspicious"):
        lines.append(f"not like the training data: {check.get('reason', '')}")
    return [*lines, *(str(line) for line in findings.get("warnings") or [])]


def finding_row(finding: Mapping[str, Any]) -> dict[str, str]:
    """Cells of a finding: rank, size with its unit, peak score, where it is, p-value."""
    place = finding.get("peak_mm") or finding.get("peak_px") or []
    unit = "mm" if "peak_mm" in finding else "px"
    position = f"{finding['position']} " if finding.get("position") else "at "
    return {
        "rank": str(finding["rank"]),
        "size": size_text(finding),
        "where": f"{position}({', '.join(f'{x:.0f}' for x in place)} {unit})",
        "peak": f"{finding['peak_score']:.3g}",
        "p": p_text(finding.get("p_value")),
    }


def size_text(found: Mapping[str, Any]) -> str:
    """Volume or area of a finding or of a whole mask: "9.1 ml", "310 px"."""
    for name, unit in (("volume_ml", "ml"), ("mask_volume_ml", "ml")):
        if name in found:
            return f"{_short(found[name])} {unit}"
    return f"{found.get('area_px', found.get('mask_area_px', 0)):.0f} px"


def p_text(p_value: float | None) -> str:
    """A p-value to two digits; "-" where nothing was calibrated."""
    return "-" if p_value is None else f"{p_value:.2g}"


def _against(findings: Mapping[str, Any]) -> str:
    scans = findings.get("healthy_scans")
    return f" against {scans} healthy scan{'s' * (scans != 1)}" if scans else ""


def _short(number: float) -> str:
    """Two digits below ten, whole numbers above: 0.12, 9.1, 12, 340."""
    return f"{number:.2g}" if number < 9.95 else f"{number:.0f}"
