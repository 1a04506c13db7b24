"""Scans of a folder that are unlike the others, or unlike those of a training: sizes, intensities.

Nothing is judged by what a scan shows; that is the check of whole scans (`ScanCheck`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from monai.data import MetaTensor

from monai_dpmm.errors import InputError
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.io.suffixes import is_picture

PERCENTILES = (5, 50, 95)  # of what is above a scan's lowest value
_FACTOR = 2.0  # of a voxel's side, from which on it is far
_BRIGHTER = 4.0  # of the upper percentile
_CONTRAST = 0.25  # where the median lies between the outer two

__all__ = [
    "PERCENTILES",
    "Outliers",
    "ScanNumbers",
    "looked_at",
    "numbers_of",
    "scan_numbers",
    "scan_outliers",
]


class ScanNumbers(NamedTuple):
    """What is compared of a scan.

    Attributes:
        spacing: sides of a voxel in mm, sorted; empty of a picture.
        orientation: where its axes point, as RAS.
        intensity: percentiles 5, 50 and 95 of what is above the lowest value.
    """

    spacing: tuple[float, ...]
    orientation: str
    intensity: tuple[float, ...]

    @property
    def contrast(self) -> float:
        """Where the median lies between the outer percentiles, from 0 to 1."""
        low, middle, high = self.intensity
        return (middle - low) / (high - low) if high > low else 0.5


class Outliers(NamedTuple):
    """What is said of scans beside each other, a line each.

    Attributes:
        usual: directions that axes point to, what is usual of voxels and intensities, also of the
            model's training.
        unlike: scans that are unlike the others or the training's, or cannot be read; a line begins
            with the scan's path.
    """

    usual: list[str]
    unlike: list[str]


def scan_numbers(path: str) -> ScanNumbers:
    """Numbers of one scan.

    Raises:
        InputError: where it cannot be used.
    """
    return numbers_of(LoadVolume()(path), path)


def looked_at(path: str) -> ScanNumbers | InputError:
    """Numbers of a scan, or why there are none."""
    try:
        return scan_numbers(path)
    except InputError as error:
        return error


def numbers_of(image: MetaTensor, path: str) -> ScanNumbers:
    """Numbers of a scan that has been read: (1, X, Y, Z)."""
    from nibabel import aff2axcodes

    values = np.asarray(image.as_tensor(), dtype=np.float32)
    above = values[values > np.nanmin(values)]
    intensity = tuple(float(q) for q in np.nanpercentile(above, PERCENTILES))
    if is_picture(path):
        return ScanNumbers((), "picture", intensity)
    affine = np.asarray(image.affine, dtype=np.float64)
    sides = sorted(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    return ScanNumbers(tuple(sides), "".join(aff2axcodes(affine)), intensity)


def scan_outliers(
    scans: Mapping[str, ScanNumbers | InputError], origin: Mapping[str, Any] | None = None
) -> Outliers:
    """Scans that are unlike the others, and unlike the training's where that is known.

    Args:
        scans: numbers of each by its path, or why there are none, see `looked_at`.
        origin: of a model, see `ModelOrigin`.
    """
    found = {path: one for path, one in scans.items() if isinstance(one, ScanNumbers)}
    unlike = [str(one) for one in scans.values() if isinstance(one, InputError)]
    if not found:
        return Outliers([], unlike)
    directions = Counter(numbers.orientation for numbers in found.values())
    told = ", ".join(f"{name} ({count})" for name, count in directions.most_common())
    middle = _usual(list(found.values()))
    usual = [f"axes point to {told}; all are turned to one orientation"]
    usual.append(f"usual (medians): {_told(middle)}")
    if origin and (of_training := _of_training(origin)):
        usual.append(f"the model's training: {of_training}")
    for path, numbers in found.items():
        reasons = _against(numbers, middle, middle, "of the others")
        if origin:
            reasons += _against_training(numbers, origin)
        if reasons:
            unlike.append(f"{path}: {'; '.join(reasons)}")
    return Outliers(usual, unlike)


def _usual(scans: Sequence[ScanNumbers]) -> ScanNumbers:
    """Medians of the scans' numbers; their spacing is that of volumes."""
    volumes = [scan.spacing for scan in scans if scan.spacing]
    spacing = tuple(np.median(volumes, axis=0).tolist()) if volumes else ()
    intensity = tuple(np.median([scan.intensity for scan in scans], axis=0).tolist())
    return ScanNumbers(spacing, "", intensity)


def _against_training(numbers: ScanNumbers, origin: Mapping[str, Any]) -> list[str]:
    def end(name: str) -> ScanNumbers:
        spacing = (origin.get("spacing_mm") or {}).get(name) or ()
        intensity = (origin.get("intensity") or {}).get(name) or numbers.intensity
        return ScanNumbers(tuple(spacing), "", tuple(intensity))

    return _against(numbers, end("lowest"), end("highest"), "of the training")


def _against(numbers: ScanNumbers, low: ScanNumbers, high: ScanNumbers, whose: str) -> list[str]:
    """Reasons why a scan lies outside of two ends, with a margin."""
    reasons = []
    if numbers.spacing and low.spacing:
        ends = zip(numbers.spacing, low.spacing, high.spacing, strict=True)
        if any(own > _FACTOR * above or own * _FACTOR < below for own, below, above in ends):
            reasons.append(f"voxels of {_sizes(numbers)} mm, those {whose} {_sizes(low)}")
    top, ends_of_top = numbers.intensity[2], (low.intensity[2], high.intensity[2])
    if not ends_of_top[0] / _BRIGHTER <= top <= ends_of_top[1] * _BRIGHTER:
        reasons.append(f"intensities up to {top:.3g}, those {whose} up to {ends_of_top[1]:.3g}")
    contrasts = sorted((low.contrast, high.contrast))
    if not contrasts[0] - _CONTRAST <= numbers.contrast <= contrasts[1] + _CONTRAST:
        reasons.append(
            f"another contrast: its median lies at {numbers.contrast:.2f} of its range,"
            f" that {whose} at {low.contrast:.2f}"
        )
    return reasons


def _told(numbers: ScanNumbers) -> str:
    """Voxels, intensities and contrast in words."""
    voxels = f"voxels of {_sizes(numbers)} mm, " if numbers.spacing else ""
    low, _, high = numbers.intensity
    return (
        f"{voxels}intensities {low:.3g} to {high:.3g} (5 and 95 %), their median at"
        f" {numbers.contrast:.2f} of that"
    )


def _of_training(origin: Mapping[str, Any]) -> str:
    """What is usual of the scans that a model was trained on, "" where it does not say."""
    spacing = (origin.get("spacing_mm") or {}).get("median") or ()
    intensity = (origin.get("intensity") or {}).get("median")
    return _told(ScanNumbers(tuple(spacing), "", tuple(intensity))) if intensity else ""


def _sizes(numbers: ScanNumbers) -> str:
    return " x ".join(f"{side:.2g}" for side in numbers.spacing)
