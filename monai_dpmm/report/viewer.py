"""A page to walk through a volume under its heat map: one HTML text that fetches nothing.

Drawn by nilearn's `view_img` (BrainSprite) on a grid along the world's axes, in the radiological
convention of the report's figures.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_dpmm.errors import InputError, MissingPackageError
from monai_dpmm.report.display import grey_range, peak_voxel
from monai_dpmm.report.html import page
from monai_dpmm.report.panels import HEAT_MAP, HeatScale
from monai_dpmm.report.scan_figure import heat_scale

if TYPE_CHECKING:
    from matplotlib.colors import ListedColormap
    from nibabel import Nifti1Image

MAX_VOXELS = 1_200_000  # of the page's grid: 240 x 240 x 155 mm at 2 mm, some 2 MB
_PARAMETERS = re.compile(r"(?<=brainsprite\()\{.*\}(?=\))")
_BODY = re.compile(r"<body>(.*)</body>", re.DOTALL)

__all__ = ["can_view", "has_nilearn", "require_nilearn", "viewer_page"]


def has_nilearn() -> bool:
    """Whether nilearn is installed."""
    return find_spec("nilearn") is not None


def require_nilearn() -> None:
    """Raise an ImportError that says what to install where nilearn is missing."""
    if not has_nilearn():
        raise MissingPackageError("viewer pages need nilearn: pip install monai-dpmm[demo]")


def can_view(image: np.ndarray) -> bool:
    """Whether an array is a volume (X, Y, Z) of several slices along every axis."""
    return image.ndim == 3 and min(image.shape) > 1


def viewer_page(
    image: np.ndarray,
    anomaly: np.ndarray,
    affine: np.ndarray,
    *,
    threshold: float | None = None,
    heat: tuple[float, float] | None = None,
    start: tuple[int, int, int] | None = None,
    title: str = "",
    back: str | None = None,
) -> str:
    """HTML of three slices through a point that a click moves.

    The volume is resampled to cubes along the world's axes, as small as `MAX_VOXELS` of them allow
    and not below the finest voxel size; the page says how large they are.

    Args:
        image: intensities (X, Y, Z), any units.
        anomaly: scores of the same shape, larger is more anomalous; NaN is left transparent.
        affine: from voxels to mm towards Right, Anterior, Superior, (4, 4), sheared or not.
        threshold: score from which on the overlay is opaque (default: the high end of the scale).
        heat: scores at the ends of the colour scale (default `heat_range`); give the same to
            several pages to compare them.
        start: voxel that the page opens at (default: the highest score).
        title: heading of the page.
        back: address of the report, if there is one.

    Raises:
        ValueError: for arrays that are no volumes of one shape, or a singular affine.
        ImportError: without nilearn.
    """
    require_nilearn()
    from nibabel.affines import apply_affine

    _check(image, anomaly, affine)
    scale = heat_scale(anomaly, heat, threshold)
    size = _cube(image.shape, affine)
    grey = _image(_grey(image), affine, size, outside=0)
    scores = _image(_scores(anomaly, scale), affine, size, outside=scale.low)
    opening = apply_affine(affine, peak_voxel(anomaly) if start is None else start)
    drawn = _drawn(grey, scores, tuple(opening), scale)
    return page(
        "viewer.html",
        title=title or "Anomaly viewer",
        back=back,
        drawn=drawn,
        facts=_facts(affine, size, scale),
    )


def _check(image: np.ndarray, anomaly: np.ndarray, affine: np.ndarray) -> None:
    if not can_view(image):
        raise InputError(f"image must be a volume of several slices, got shape {image.shape}")
    if anomaly.shape != image.shape:
        raise InputError(f"anomaly must have the image's shape {image.shape}, got {anomaly.shape}")
    finite = np.shape(affine) == (4, 4) and bool(np.isfinite(affine).all())
    if not finite or abs(np.linalg.det(affine)) < 1e-9:
        raise InputError(f"affine must be invertible, (4, 4), got {np.asarray(affine).tolist()}")


def _grey(image: np.ndarray) -> np.ndarray:
    """Intensities in [0, 1] between black and white, what is not finite black."""
    black, white = grey_range(image)
    grey = (np.nan_to_num(image.astype(np.float32), nan=black) - black) / (white - black)
    return grey.clip(0, 1)


def _scores(anomaly: np.ndarray, scale: HeatScale) -> np.ndarray:
    """Scores from the low to the high end; NaN is at the low end, where the overlay is clear."""
    return np.nan_to_num(anomaly.astype(np.float32), nan=scale.low).clip(scale.low, scale.high)


def _cube(shape: tuple[int, ...], affine: np.ndarray) -> float:
    """Side in mm of the page's voxels, to two digits."""
    from nibabel.affines import apply_affine, voxel_sizes

    corners = np.array(np.meshgrid(*([0, n - 1] for n in shape))).reshape(3, -1).T
    extent = np.ptp(apply_affine(affine, corners), axis=0)
    finest = float(voxel_sizes(affine).min())
    side = max(finest, float(extent.prod() / MAX_VOXELS) ** (1 / 3))
    step = 10.0 ** (math.floor(math.log10(side)) - 1)
    return math.ceil(side / step - 1e-6) * step


def _image(array: np.ndarray, affine: np.ndarray, size: float, outside: float) -> Nifti1Image:
    """Image on a grid of cubes along the world's axes that holds all of the volume."""
    from nibabel import Nifti1Image
    from nilearn.image import resample_img

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Resampling binary images")  # for a picture it is right
        return resample_img(
            Nifti1Image(array, affine),
            target_affine=np.eye(3) * size,
            interpolation="linear",
            fill_value=outside,
        )


def _drawn(
    grey: Nifti1Image, anomaly: Nifti1Image, opening: tuple[float, ...], scale: HeatScale
) -> str:
    """HTML elements and scripts of nilearn's viewer."""
    from nilearn.plotting import view_img

    view = view_img(
        anomaly,
        bg_img=grey,
        cut_coords=opening,
        threshold=None,
        cmap=_color_map(scale),
        symmetric_cmap=False,
        vmin=scale.low,
        vmax=scale.high,
        dim=0,
        black_bg=True,
        radiological=True,
    )
    return _body(view.get_standalone())


def _body(page: str) -> str:
    """What nilearn's page shows, without its head, which names an icon in the network.

    Raises:
        RuntimeError: where the page is another than expected, so that left and right might be
            mixed up.
    """
    body = _BODY.search(page)
    parameters = _PARAMETERS.findall(body[1]) if body else []
    if body is None or len(parameters) != 1:
        raise RuntimeError("nilearn's view_img must be that of nilearn 0.14, its page is another")
    mirrored = json.dumps(_mirrored(json.loads(parameters[0])))
    return body[1].replace(parameters[0], mirrored)


def _color_map(scale: HeatScale) -> ListedColormap:
    """Colours of the report's overlay, clear at the low end."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    colors = colormaps[HEAT_MAP](np.linspace(0, 1, 256))
    colors[:, 3] = scale.alpha(np.linspace(scale.low, scale.high, 256))
    return ListedColormap(colors)


def _mirrored(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the viewer whose slices are numbered as they lie in a radiological sprite.

    nilearn mirrors the pictures along x, but neither the slice that it opens nor the coordinates.
    """
    count = parameters["nbSlice"]["X"]
    x, y, z = np.array(parameters["affine"])[:3]  # of the slices counted from 1
    x = [-x[0], 0.0, 0.0, x[3] + x[0] * (count + 1)]
    places = parameters["numSlice"]
    return {
        **parameters,
        "affine": [x, y.tolist(), z.tolist(), [0, 0, 0, 1]],
        "numSlice": {**places, "X": count - 1 - places["X"]},
        "smooth": True,
        "colorCrosshair": "#6cc5ff",
        "sizeFont": 0.045,
    }


def _facts(affine: np.ndarray, size: float, scale: HeatScale) -> list[str]:
    """What a reader must know to read the page, a line each."""
    from nibabel.affines import voxel_sizes

    spacing = " \N{MULTIPLICATION SIGN} ".join(f"{side:.3g}" for side in voxel_sizes(affine))
    full = scale.high if scale.threshold is None else scale.threshold
    reached = "" if scale.threshold is None else " (the threshold)"
    return [
        "Click or drag in a slice to move the other two. From left to right: sagittal (anterior"
        " on the right), coronal and axial, both in radiological convention: the patient's right"
        " is on the left.",
        "x, y and z in mm towards the patient's right, anterior and superior.",
        f"Anomaly score: clear at {scale.low:.3g}, opaque from {full:.3g}{reached} on; the"
        f" colours end at {scale.high:.3g}.",
        f"Voxels of {spacing} mm, resampled to {size:.2g} mm for this page. The saved volumes hold"
        " the full resolution.",
    ]
