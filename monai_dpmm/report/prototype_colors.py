"""A colour for each prototype: similar colours for similar prototypes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from monai_dpmm.mixture.dpmm import DPMM

_SPREAD = ((0.36, 0.94), (-0.11, 0.11), (-0.11, 0.11))  # OKLab's lightness, a and b
_TO_CONES = (  # OKLab, its inverse as its author publishes it
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
_TO_RGB = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)

_WRITTEN = re.compile(r"([0-9a-f]{6}( [0-9a-f]{6})*)?", re.ASCII)

__all__ = ["colors_of", "prototype_colors", "read_colors", "written_colors"]


def colors_of(mixtures: Sequence[DPMM]) -> list[np.ndarray]:
    """Colours of the prototypes of each direction, (K, 3) in [0, 1]; none of an unfitted one.

    Those of all directions are of one feature space, so a colour means the same in all of them.
    """
    fitted = [one for one in mixtures if one.fitted]
    parts = [[x.detach().double().cpu().numpy() for x in (m.means, m.weights)] for m in fitted]
    if not parts:
        return [np.empty((0, 3)) for _ in mixtures]
    means, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    colors = iter(np.split(prototype_colors(means, weights), len(parts)))
    return [next(colors) if one.fitted else np.empty((0, 3)) for one in mixtures]


def written_colors(colors: np.ndarray) -> str:
    """Colours as text, (K, 3): "ff8000 0080ff"."""
    return " ".join(bytes(color).hex() for color in np.round(255 * colors).astype(np.uint8))


def read_colors(text: str) -> np.ndarray:
    """Colours that `written_colors` wrote: (K, 3) in [0, 1].

    Raises:
        ValueError: for any other text.
    """
    if not _WRITTEN.fullmatch(text):
        raise ValueError(f"colours must be written as 'ff8000 0080ff', got {text[:40]!r}")
    return np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, 3) / 255


def prototype_colors(means: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Colours of prototypes, similar ones for similar prototypes: (K, D), (K,) -> (K, 3) in [0, 1].

    Ranks along the first three principal components of the prototypes, as their weights count, are
    lightness and the two opponent colours of OKLab: the first, which says most, is also seen in
    grey and by the colour-blind.
    """
    share = weights / weights.sum()
    centred = means - share @ means
    _, _, axes = np.linalg.svd(centred * np.sqrt(share)[:, None], full_matrices=False)
    axes = axes[:3]
    largest = np.take_along_axis(axes, abs(axes).argmax(axis=1)[:, None], axis=1)
    places = centred @ (axes * np.sign(largest)).T  # else a sign is up to the decomposition
    order = places.argsort(axis=0, kind="stable")
    unit = np.empty_like(places)
    np.put_along_axis(unit, order, share[order].cumsum(axis=0) - share[order] / 2, axis=0)
    low, high = np.array(_SPREAD).T[:, : unit.shape[1]]
    lab = np.zeros((len(means), 3))
    lab[:, : unit.shape[1]] = low + unit * (high - low)
    return _from_oklab(lab)


def _from_oklab(lab: np.ndarray) -> np.ndarray:
    """Colours of the screen (sRGB, clipped) of OKLab colours: (n, 3) -> (n, 3)."""
    linear = ((lab @ np.array(_TO_CONES).T) ** 3 @ np.array(_TO_RGB).T).clip(0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
