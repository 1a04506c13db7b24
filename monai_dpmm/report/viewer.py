"""A page to walk through a scan under its anomaly map, in slices and in 3D, without a server.

Drawn by NiiVue (WebGL 2), whose script is carried in `niivue/` with its licence. The page fetches
nothing: volumes lie in it, and the script lies in it or beside it, once for all pages.
"""

from __future__ import annotations

import base64
import gzip
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from monai_dpmm.errors import InputError
from monai_dpmm.report.display import component_color, grey_range, peak_voxel
from monai_dpmm.report.html import page
from monai_dpmm.report.panels import LABEL, PREDICTED, HeatScale
from monai_dpmm.report.scan_figure import heat_scale
from monai_dpmm.report.scan_text import finding_row

MAX_VOXELS = 20_000_000  # 256 x 256 x 256 are 16.8; more are brought to coarser voxels
SCRIPT, ORDER = "niivue.js", "scans.js"  # which pages of a report share
_LEVELS = 4095  # of what is no whole number
_TITLES = {
    "image": "Scan",
    "anomaly": "Heat map from the threshold on",
    "mask": "Mask that was saved",
    "label": "Label: lesion",
    "components": "Prototypes",
}

__all__ = ["ORDER", "SCRIPT", "can_view", "library", "viewer_page"]


def can_view(image: np.ndarray) -> bool:
    """Whether an array is a volume (X, Y, Z) of several slices along every axis."""
    return image.ndim == 3 and min(image.shape) > 1


def library() -> str:
    """NiiVue's script, unchanged, which pages share as the file `SCRIPT` beside them."""
    return (files("monai_dpmm.report") / "niivue" / SCRIPT).read_text(encoding="utf-8")


def viewer_page(
    image: np.ndarray,
    anomaly: np.ndarray,
    affine: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    components: np.ndarray | None = None,
    label: np.ndarray | None = None,
    threshold: float | None = None,
    heat: tuple[float, float] | None = None,
    component_colors: np.ndarray | None = None,
    start: tuple[int, int, int] | None = None,
    findings: Sequence[Mapping[str, Any]] = (),
    title: str = "",
    notes: Sequence[str] = (),
    back: str | None = None,
    script: str | None = None,
) -> str:
    """HTML of three slices through a point and a 3D view, under layers that can be switched.

    It opens at the first finding, at the one that its address names (`#finding-2`), or where there
    is none at `start`. Volumes keep their own grid up to `MAX_VOXELS`; beyond, voxels are joined
    and the page says how large they are. Intensities that are no whole numbers have 4096 levels.

    Args:
        image: intensities (X, Y, Z), any units.
        anomaly: scores of the same shape, larger is more anomalous; NaN is left transparent.
        affine: from voxels to mm towards Right, Anterior, Superior, (4, 4), sheared or not.
        mask: the prediction, where above 0.
        components: number (from 1) of the mixture component of each voxel, 0 for none.
        label: the reference, where above 0.
        threshold: score from which on the overlay is seen at first (default: the low end).
        heat: scores at the ends of the colour scale (default `heat_range`); give the same to
            several pages to compare them.
        component_colors: see `subject_figure`.
        start: voxel that a page without findings opens at (default: the highest score).
        findings: as `anomaly_findings` lists them, the first the most conspicuous.
        title: heading of the page.
        notes: lines that a reader must see first, such as why the scan may not be read.
        back: address of the report, if there is one.
        script: address of NiiVue's script, `library`, which `ORDER` lies beside; None to have the
            script in the page, 2.3 MB.

    Raises:
        ValueError: for arrays that are no volumes of one shape, or a singular affine.
    """
    given = {"mask": mask, "label": label, "components": components}
    volumes = {"image": image, "anomaly": anomaly}
    volumes |= {k: v for k, v in given.items() if v is not None}
    volumes = {name: np.asarray(array) for name, array in volumes.items()}
    _check(volumes, affine)
    scale, grey = heat_scale(anomaly, heat, threshold), grey_range(volumes["image"])
    opening = peak_voxel(anomaly) if start is None else start
    steps = _steps(image.shape, affine)
    joined = _joined_affine(np.asarray(affine, float), steps)
    coded = {name: _coded(name, array, steps, joined) for name, array in volumes.items()}
    return page(
        "viewer.html",
        title=title or "Anomaly viewer",
        notes=list(notes),
        back=back,
        findings=[finding_row(finding) for finding in findings],
        layers=[
            {"name": name, "title": _TITLES[name], "shown": name in ("image", "anomaly", "label")}
            for name in volumes
        ],
        sliders=_sliders(anomaly, scale, grey),
        facts=_facts(affine, joined, scale)
        + ["Prototypes: similar colours for similar ones."] * (component_colors is not None),
        scan={
            "volumes": coded,
            "findings": [{"peak_mm": list(finding["peak_mm"])} for finding in findings],
            "start": (np.asarray(affine) @ [*opening, 1])[:3].tolist(),
            "heat": [scale.start, scale.high],
            "colors": _heat_table(scale),
            "labels": _label_tables(volumes, component_colors),
        },
        script=script,
        order=ORDER,
        library=library() if script is None else "",
    )


def _check(volumes: Mapping[str, np.ndarray], affine: np.ndarray) -> None:
    image = volumes["image"]
    if not can_view(image):
        raise InputError(f"image must be a volume of several slices, got shape {image.shape}")
    for name, array in volumes.items():
        if array.shape != image.shape:
            raise InputError(f"{name} must have the image's shape {image.shape}, got {array.shape}")
    finite = np.shape(affine) == (4, 4) and bool(np.isfinite(affine).all())
    if not finite or abs(np.linalg.det(affine)) < 1e-9:
        raise InputError(f"affine must be invertible, (4, 4), got {np.asarray(affine).tolist()}")


def _steps(shape: Sequence[int], affine: np.ndarray) -> list[int]:
    """How many voxels are joined along each axis, the finest axis first, to fit `MAX_VOXELS`."""
    steps, sizes = [1, 1, 1], np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    while math.prod(math.ceil(n / s) for n, s in zip(shape, steps, strict=True)) > MAX_VOXELS:
        steps[int(np.argmin(sizes * steps))] += 1
    return steps


def _joined_affine(affine: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Affine of joined voxels, whose centres are those of the blocks."""
    scaled = affine @ np.diag([*steps, 1.0])
    scaled[:3, 3] += affine[:3, :3] @ ((np.array(steps) - 1) / 2)
    return scaled


def _coded(name: str, array: np.ndarray, steps: Sequence[int], affine: np.ndarray) -> str:
    """A volume as a NIfTI file in base64: codes of few bytes and the slope that undoes them."""
    from nibabel import Nifti1Image

    values = array.astype(np.float32)
    values = np.nan_to_num(values, nan=float(np.nanmin(np.where(np.isinf(values), np.nan, values))))
    for axis, step in enumerate(steps):
        if step > 1:  # a finding of one voxel is still seen, a prototype stays one
            starts = np.arange(0, values.shape[axis], step)
            if name == "image":
                counts = np.diff([*starts, values.shape[axis]])
                counts = counts.reshape([-1 if i == axis else 1 for i in range(3)])
                values = np.add.reduceat(values, starts, axis=axis) / counts
            elif name == "components":
                values = values.take(starts, axis=axis)
            else:
                values = np.maximum.reduceat(values, starts, axis=axis)
    if name in ("mask", "label"):
        codes, slope, low = (values > 0).astype(np.uint8), 1.0, 0.0
    elif name == "components":
        codes, slope, low = values.round().astype(np.uint16), 1.0, 0.0
    else:
        codes, slope, low = _levels(values)
    volume = Nifti1Image(codes, affine)
    volume.header.set_slope_inter(slope, low)
    packed = gzip.compress(volume.to_bytes(), compresslevel=6, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def _levels(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Codes of values, and the slope and the offset that bring them back."""
    low, high = float(values.min()), float(values.max())
    whole = high - low <= np.iinfo(np.int16).max and bool((values == values.round()).all())
    slope = 1.0 if whole or high == low else (high - low) / _LEVELS
    codes = ((values - low) / slope).round()
    return codes.astype(np.uint8 if codes.max() <= 255 else np.int16), slope, low


def _heat_table(scale: HeatScale) -> dict[str, list[int]]:
    """Colours of the report's overlay as NiiVue takes them, clear at the low end."""
    colors = np.round(255 * scale.colors(np.linspace(0, 1, 64))).astype(int)
    red, green, blue = colors[:, :3].T.tolist()
    places = [0, *np.linspace(1, 255, 64).round().astype(int).tolist()]
    rgb = {"R": [0, *red], "G": [0, *green], "B": [0, *blue]}
    return {**rgb, "A": [0, *[255] * 64], "I": places}


def _label_tables(
    volumes: Mapping[str, np.ndarray], component_colors: np.ndarray | None
) -> dict[str, dict[str, list[Any]]]:
    """Colours of what is no scale, each by its number."""
    tables = {}
    for name, color in (("mask", PREDICTED), ("label", LABEL)):
        rgb = tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        tables[name] = {1: rgb}
    if "components" in volumes:
        found = np.unique(volumes["components"][volumes["components"] >= 1]).astype(int)
        tables["components"] = {
            int(k): component_color(int(k), component_colors)[:3] for k in found
        }
    return {name: _table(colors) for name, colors in tables.items() if name in volumes}


def _table(colors: Mapping[int, Sequence[float]]) -> dict[str, list[Any]]:
    """Colours by number, clear from below 0 on.

    NiiVue draws all above the lowest number in no colour before the 2nd of 256 parts of a table,
    which in a long one is that of a prototype: so many clear numbers stand before it.
    """
    numbers = [-1 - math.ceil(max(colors, default=0) / 127), 0, *colors]
    rgb = [[0] * 3, [0] * 3, *([round(255 * part) for part in color] for color in colors.values())]
    red, green, blue = (list(part) for part in zip(*rgb, strict=True))
    return {"R": red, "G": green, "B": blue, "A": [0, 0, *[255] * len(colors)], "I": numbers}


def _sliders(
    anomaly: np.ndarray, scale: HeatScale, grey: tuple[float, float]
) -> list[dict[str, Any]]:
    finite = anomaly[np.isfinite(anomaly)]
    lowest, highest = float(finite.min()), max(float(finite.max()), scale.high)
    reach = grey[1] - grey[0]

    def slider(id_: str, title: str, low: float, high: float, value: float) -> dict[str, Any]:
        ends = {"low": low, "high": high, "value": value}
        return {"id": id_, "title": title, **{k: f"{v:.6g}" for k, v in ends.items()}}

    return [
        slider("threshold", "Heat map from", min(lowest, scale.start), highest, scale.start),
        slider("opacity", "Opacity", 0, 1, 0.75),
        slider("black", "Black at", grey[0] - reach, grey[1], grey[0]),
        slider("white", "White at", grey[0], grey[1] + reach, grey[1]),
    ]


def _facts(affine: np.ndarray, joined: np.ndarray, scale: HeatScale) -> list[str]:
    """What a reader must know to read the page, a line each."""
    from nibabel.affines import voxel_sizes

    def sizes(of: np.ndarray) -> str:
        return " \N{MULTIPLICATION SIGN} ".join(f"{side:.3g}" for side in voxel_sizes(of))

    own = np.allclose(affine, joined)
    shown = "" if own else f", joined to {sizes(joined)} mm for this page"
    start = "the low end of the scale" if scale.threshold is None else "the threshold of the mask"
    return [
        "Radiological convention: the patient's right is on the left. Positions in mm in the scan's"
        " own coordinates.",
        f"Heat map: clear below {scale.start:.3g} ({start}), the colours end at {scale.high:.3g}.",
        f"Voxels of {sizes(affine)} mm{shown}.",
    ]
