"""What a figure shows of a volume, in numpy only: which slices, which way up, which colours.

Volumes are (X, Y, Z) with axes towards Right, Anterior, Superior; pictures on screen are (H, W),
row 0 on top, in radiological convention: the patient's right on the viewer's left.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from monai_dpmm.errors import InputError

PLANES = ("sagittal", "coronal", "axial")
_LETTERS = ("APSI", "RLSI", "RLAP")  # per axis: left, right, top, bottom of the screen
_SAMPLES = 1 << 20

__all__ = [
    "Scan",
    "checked_array",
    "colored_components",
    "component_color",
    "displayed_slice",
    "fullest_slice",
    "grey_range",
    "heat_range",
    "peak_slices",
    "peak_voxel",
    "scale_bar",
    "slice_scores",
]


class Scan(NamedTuple):
    """The volumes of one subject, all (X, Y, Z), and how a slice of them lies on the screen."""

    image: np.ndarray
    anomaly: np.ndarray
    mask: np.ndarray | None
    components: np.ndarray | None
    label: np.ndarray | None
    axis: int
    extent: tuple[float, float]  # width and height of a displayed slice in mm
    letters: str  # left, right, top, bottom; empty where the directions are unknown

    @classmethod
    def of(
        cls,
        image: Any,
        anomaly: Any,
        mask: Any = None,
        components: Any = None,
        label: Any = None,
        axis: int = 2,
        spacing: Sequence[float] = (1, 1, 1),
    ) -> Scan:
        """Scan of arrays that share one shape (X, Y, Z), (X, Y, 1) or (X, Y).

        A 2D array (X, Y) is a picture, first axis to the right and second axis down: it has
        neither anatomical directions nor millimetres, so it gets no letters and no scale bar.

        Raises:
            ValueError: naming the array, for another number of dimensions, a shape that differs
                from the image's, no voxel, no finite value, or numbers that are not real; for an
                axis or a spacing out of range.
        """
        if axis not in (0, 1, 2):
            raise InputError(f"axis must be 0, 1 or 2, got {axis}")
        if len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing):
            raise InputError(f"spacing must be 3 positive numbers in mm, got {tuple(spacing)}")
        given = {"image": image, "anomaly": anomaly, "mask": mask}
        given |= {"components": components, "label": label}
        arrays = {k: None if v is None else checked_array(k, v) for k, v in given.items()}
        shape = np.shape(image)
        for name, array in arrays.items():
            if array is not None and array.shape != shape:
                raise InputError(f"{name} must have the image's shape {shape}, got {array.shape}")
        picture = len(shape) == 2
        if picture:  # flipped here, because `displayed_slice` flips both axes of a slice
            arrays = {k: None if v is None else v[::-1, ::-1, None] for k, v in arrays.items()}
            axis = 2
        volume = arrays["image"]
        assert volume is not None
        w, h = (i for i in range(3) if i != axis)
        extent = (volume.shape[w] * float(spacing[w]), volume.shape[h] * float(spacing[h]))
        return cls(**arrays, axis=axis, extent=extent, letters="" if picture else _LETTERS[axis])  # type: ignore[arg-type]


def checked_array(name: str, array: Any) -> np.ndarray:
    """The array itself, (X, Y, Z) or (X, Y), real and somewhere finite; else a ValueError."""
    array = np.asarray(array)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(
            f"{name} must be a volume (X, Y, Z) or an image (X, Y), got shape {array.shape}"
        )
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).any():
        raise InputError(f"{name} must have finite values, got only NaN or infinity")
    return array


def displayed_slice(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """Slice as the screen shows it, radiological convention: (X, Y, Z) -> (H, W), a view.

    Axial: right of the patient on the left, anterior on top. Coronal: right on the left, superior
    on top. Sagittal: anterior on the left, superior on top.
    """
    plane = volume[(slice(None),) * axis + (index,)]
    return plane[::-1, ::-1].T


def slice_scores(anomaly: np.ndarray, axis: int) -> np.ndarray:
    """Anomaly of every slice, the mean of its highest 1 % of voxels: (X, Y, Z) -> (S,)."""
    flat = np.moveaxis(anomaly, axis, 0).reshape(anomaly.shape[axis], -1)
    finite = np.isfinite(flat)
    if not finite.all():
        flat = np.where(finite, flat, flat[finite].min())
    rest = flat.shape[1] - max(1, round(flat.shape[1] / 100))
    return np.partition(flat, rest, axis=1)[:, rest:].mean(axis=1)


def fullest_slice(mask: np.ndarray | None, axis: int) -> int | None:
    """Index of the slice where a mask (X, Y, Z) is largest; None where there is none."""
    if mask is None or not mask.any():
        return None
    area = np.moveaxis(mask != 0, axis, 0).reshape(mask.shape[axis], -1).sum(1)
    return int(area.argmax())


def peak_slices(
    anomaly: np.ndarray, axis: int, count: int = 1, first: int | None = None
) -> list[int]:
    """Indices of the slices worth showing, the highest `slice_scores` first, ties from the middle.

    A further slice is the highest of those at least S / (2 count) slices away from the ones
    already taken, so that it shows another place; a thin volume may have fewer than `count`. A
    label has no say in it: what is shown is what the model says.
    `first` is the slice to begin with instead of the highest.

    Raises:
        ValueError: for a count below 1 or a first slice that does not exist.
    """
    if count < 1:
        raise InputError(f"slices must be at least 1, got {count}")
    scores = slice_scores(anomaly, axis)
    if first is not None and not 0 <= first < len(scores):
        raise InputError(f"index must be in 0..{len(scores) - 1} along axis {axis}, got {first}")
    taken: list[int] = [] if first is None else [first]
    apart = max(1, len(scores) // (2 * count))
    middle = abs(np.arange(len(scores)) - (len(scores) - 1) / 2)
    for index in np.lexsort((middle, -scores)):
        if len(taken) < count and all(abs(int(index) - t) >= apart for t in taken):
            taken.append(int(index))
    return taken


def peak_voxel(
    anomaly: np.ndarray, mask: np.ndarray | None = None, axis: int = 2
) -> tuple[int, int, int]:
    """Voxel of the highest score, of the slice where the mask is largest if there is one.

    Of several, the one nearest to the middle of the volume.
    """
    index = fullest_slice(mask, axis)
    scores = np.where(np.isnan(anomaly), -np.inf, anomaly)
    if index is not None:
        apart = np.arange(anomaly.shape[axis]) != index
        scores[(slice(None),) * axis + (apart,)] = -np.inf
    highest = np.argwhere(scores == scores.max())
    distances = abs(highest - (np.array(anomaly.shape) - 1) / 2).sum(1)
    x, y, z = highest[distances.argmin()].tolist()
    return x, y, z


def grey_range(image: np.ndarray) -> tuple[float, float]:
    """Intensities shown black and white: 0.5 and 99.5 % of the voxels above the minimum."""
    values = _sample(image)
    above = values[values > values.min()]
    if above.size == 0:  # a constant image is shown black
        return float(values[0]), float(values[0]) + 1.0
    low, high = (float(q) for q in np.percentile(above, (0.5, 99.5)))
    return (low, high) if low < high else (float(values.min()), high)


def heat_range(anomaly: np.ndarray, threshold: float | None = None) -> tuple[float, float]:
    """Scores at the two ends of the colour scale, low < high.

    From the median to the maximum; the threshold (else the 99th percentile) is always inside and
    never below a third of the scale, so that one outlier does not flatten everything else. Where
    the median is above the threshold, which marks most of the map then, the scale goes from the
    threshold to the 99.9th percentile: what stands out of such a map is still seen.
    """
    values = _sample(anomaly)
    finite = np.isfinite(anomaly)
    top = float(anomaly.max() if finite.all() else anomaly[finite].max())
    low = float(np.median(values))
    inside = float(np.percentile(values, 99)) if threshold is None else float(threshold)
    if low >= inside and top > inside:
        return inside, max(float(np.percentile(values, 99.9)), inside + 0.1 * (top - inside))
    low = min(low, inside)
    high = max(inside, min(top, low + 3 * (inside - low)))
    return (low, high) if high > low else (low, low + max(abs(low), 1.0) * 1e-3)


def colored_components(components: np.ndarray, colors: np.ndarray | None = None) -> np.ndarray:
    """Colours of a component map: (H, W) -> (H, W, 4) in [0, 1]; 0 and NaN are transparent.

    Args:
        components: numbers from 1 on.
        colors: see `component_color`.
    """
    labels = np.where(np.isfinite(components), np.rint(components), 0).astype(np.int64)
    found, place = np.unique(labels, return_inverse=True)
    return np.array([component_color(int(k), colors) for k in found])[place.reshape(labels.shape)]


def scale_bar(width: float) -> float:
    """Length in mm of a scale bar: the 1, 2 or 5 times 10^n next below a third of the width."""
    power = 10.0 ** math.floor(math.log10(width / 3))
    return max(step * power for step in (1, 2, 5) if step * power <= width / 3 * (1 + 1e-9))


def component_color(
    index: int, colors: np.ndarray | None = None
) -> tuple[float, float, float, float]:
    """Colour of a component, the same in every slice and scan, clear for 0.

    Args:
        index: number of the component, from 1.
        colors: of all components, (K, 3), see `monai_dpmm.report.prototype_colors`. Without them, a
            component's is that of its number: consecutive ones are a golden angle of hue and a step
            of lightness apart.

    Raises:
        InputError: for a component that has no colour.
    """
    if index < 1:
        return (0.0, 0.0, 0.0, 0.0)
    if colors is not None:
        if index > len(colors):
            raise InputError(f"components must be at most {len(colors)}, got {index}")
        red, green, blue = colors[index - 1].tolist()
        return (red, green, blue, 1.0)
    lightness = (0.66, 0.48, 0.80)[index % 3]
    return (*colorsys.hls_to_rgb(index * 0.618033988749895 % 1, lightness, 0.6), 1.0)


def _sample(array: np.ndarray) -> np.ndarray:
    """Finite values, at most a million, evenly taken: statistics for display need no more."""
    values = array.reshape(-1)[:: array.size // _SAMPLES + 1]
    values = values[np.isfinite(values)]
    return values if values.size else array[np.isfinite(array)]
