"""One scan of a report: its record, its figure, its viewer page, its share in the colour scale."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_dpmm.errors import InputError
from monai_dpmm.files import plain
from monai_dpmm.report.display import checked_array, heat_range, peak_voxel
from monai_dpmm.report.html import formatted
from monai_dpmm.report.scan_figure import subject_figure
from monai_dpmm.report.scan_text import finding_row, scan_sentence, size_text, verdict
from monai_dpmm.report.summary import plain_number
from monai_dpmm.report.viewer import ORDER, SCRIPT, can_view, library, viewer_page
from monai_dpmm.report.volumes import subject_volume, subject_volumes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES, VIEWERS = "figures", "viewers"

__all__ = [
    "FIGURES",
    "VIEWERS",
    "SubjectFiles",
    "common_heat",
    "leaving_out",
    "save",
    "subject_record",
]


def subject_record(subject: Mapping[str, Any]) -> dict[str, Any]:
    """What a report keeps of a subject, no volumes: numbers, what was found in words and rows.

    "verdict" are the lines that say why not to trust it, "found" and "marked" count findings and
    what the mask covers, in "unit"; None where there are no findings to tell.
    """
    found = subject.get("findings")
    p_values = [] if found is None else [one.get("p_value") for one in found["lesions"]]
    known = [p for p in p_values if p is not None]
    told: dict[str, Any] = {"sentence": "", "verdict": [], "rows": []}
    told |= dict.fromkeys(("found", "marked", "unit", "lowest_p", "healthy_scans"))
    if found is not None:
        size, unit = size_text(found).split()
        told = {
            "sentence": scan_sentence(found),
            "verdict": verdict(found),
            "rows": [finding_row(one) for one in found["lesions"]],
            "found": len(found["lesions"]),
            "marked": found.get("mask_volume_ml", found.get("mask_area_px", float(size))),
            "unit": unit,
            "lowest_p": min(known, default=None),
            "healthy_scans": found.get("healthy_scans"),
        }
    record = {key: subject.get(key) for key in ("score", "threshold", "results")}
    record["direction"] = subject.get("direction", 0)
    metrics = dict(subject.get("metrics") or {})
    return plain({"name": str(subject["name"]), **record, "metrics": metrics, **told})


def common_heat(
    subjects: Sequence[Mapping[str, Any]],
    left_out: list[str] | None,
    earlier: tuple[float, float] | None = None,
) -> tuple[list[tuple[Mapping[str, Any], tuple[float, float]]], tuple[float, float] | None]:
    """The subjects that can be shown with their own colour scales, and the one that they share.

    A scan that is not to be trusted, or whose map lies above the threshold as a whole, has no say
    in the shared scale: it would stretch it until nothing was seen in the others. It keeps its own.
    Where scans have been drawn on an earlier scale, those that it serves share it, too.
    Volumes are loaded one after the other and let go.
    """
    shown, shared = [], []
    for subject in subjects:
        with leaving_out(left_out), _naming(subject):
            anomaly = checked_array("anomaly", subject_volume(subject, "anomaly")[0])
            record = subject_record(subject)
            threshold = record["threshold"]
            ends = heat_range(anomaly, threshold)
            above = threshold is not None and float(np.nanmedian(anomaly)) >= threshold
            shown.append((subject, ends))
            tenth = 0.0 if earlier is None else (earlier[1] - earlier[0]) / 10
            inside = earlier is None or ends[1] <= earlier[1] + tenth
            if inside and not above and not record["verdict"]:
                shared.append(ends)
    if left_out and not shown:
        raise InputError(left_out[0])
    if not shared:
        return shown, earlier
    common = earlier or (min(low for low, _ in shared), max(high for _, high in shared))
    return [(s, common if ends in shared else ends) for s, ends in shown], common


class SubjectFiles:
    """Writes the files of subjects into a report's folder.

    Args:
        folder: of the report, with its `figures` and `viewers`.
        page: name of the report's page.
        view: "axis" and "slices" of figures.
        viewers: whether volumes get a viewer page.
        first: number of the last subject of an earlier report that stays.
    """

    def __init__(
        self, folder: Path, page: str, view: Mapping[str, Any], viewers: bool, first: int = 0
    ) -> None:
        self.folder, self.page, self.view, self.viewers = folder, page, view, viewers
        self.first = first

    def write(
        self, number: int, subject: Mapping[str, Any], heat: tuple[float, float], own: bool
    ) -> dict[str, Any]:
        """Draw and save figure and viewer: addresses relative to the report, the figure's size.

        Args:
            number: of the subject among those that are new, from 1.
            subject: see `write_report`.
            heat: ends of the colour scale.
            own: whether that is the subject's own scale, which is told then.
        """
        record = subject_record(subject)
        number += self.first
        name, score = formatted(record["name"]), record["score"]
        title = name if score is None else f"{name} · scan score {plain_number(score)}"
        slug = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)[-60:]
        address = f"{FIGURES}/{number:03d}-{slug}.png"
        with _naming(subject):
            volumes, spacing, affine = subject_volumes(subject)
            drawn = {"heat": heat, "threshold": record["threshold"]}
            drawn["component_colors"] = subject.get("component_colors")
            shown = f"{title} · own colour scale" if own else title
            figure = subject_figure(**volumes, **self.view, **drawn, spacing=spacing, title=shown)
        save(figure, self.folder / address)
        width, height = figure.get_size_inches() * figure.dpi
        written = {"number": number, "figure": address, "viewer": None}
        written["figure_size"] = [int(width), int(height)]
        if self.viewers and can_view(np.asarray(volumes["image"])):
            affine = np.diag([*spacing, 1.0]) if affine is None else affine
            written["viewer"] = f"{VIEWERS}/{number:03d}-{slug}.html"
            found = (subject.get("findings") or {}).get("lesions") or []
            with _naming(subject):
                start = peak_voxel(volumes["anomaly"], volumes["mask"], self.view["axis"])
                text = viewer_page(
                    **volumes,
                    affine=affine,
                    **drawn,
                    start=start,
                    findings=found if all("peak_mm" in one for one in found) else (),
                    title=title,
                    notes=record["verdict"],
                    back=f"../{self.page}#subject-{number}",
                    script=SCRIPT,
                )
            (self.folder / written["viewer"]).write_text(text, "utf-8", errors="replace")
        return written

    def write_shared(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write what all viewer pages share, where there are any: the script, and their order."""
        pages = [Path(record["viewer"]).name for record in records if record["viewer"] is not None]
        if pages:
            (self.folder / VIEWERS / SCRIPT).write_text(library(), encoding="utf-8")
            order = f"globalThis.scans = {json.dumps(pages)};\n"
            (self.folder / VIEWERS / ORDER).write_text(order, encoding="utf-8")


@contextmanager
def leaving_out(left_out: list[str] | None) -> Iterator[None]:
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


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with warnings.catch_warnings():
        # a name in a script that the font lacks is legible on the page
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, format="png", dpi=figure.dpi, facecolor=figure.get_facecolor())
