"""Findings of a scan for other software: scores, volume and ranked connected lesions, as JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import TransformBackends
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.files import atomic_write
from monai_dpmm.io.formats import saved_beside
from monai_dpmm.transforms.healthy_maps import rank_p_value
from monai_dpmm.transforms.regions import connected_regions
from monai_dpmm.transforms.where import look_around

__all__ = ["AnomalyFindingsd", "SaveFindingsd", "anomaly_findings"]


def anomaly_findings(
    anomaly: Tensor,
    mask: Tensor,
    affine: Tensor | None = None,
    *,
    smallest: float = 0.0,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Volume of a mask and its connected lesions, ranked: the one with the most excess first.

    The "excess" of a lesion is the sum over its voxels of how far their score lies above the
    threshold, times the ml of a voxel (1 of a picture): a large faint lesion has as much as a small
    bright one.
    Of a volume, "mask_volume_ml" and for each of "lesions" its "volume_ml", "centroid_mm" and
    "peak_mm", in the world space of the affine (RAS: towards Right, Anterior, Superior), and the
    same as "centroid_lps_mm" and "peak_lps_mm", as DICOM has it (LPS: towards Left, Posterior,
    Superior). Of an image,
    "mask_area_px", "area_px", "centroid_px" and "peak_px", counted from 0 in the array's order.
    Of both, "rank" (from 1), "peak_score" and "mean_score" of each lesion, "peak_voxel", and the
    corners of its bounding box, "first_voxel" and "last_voxel" (both lie in it). "smaller_lesions"
    counts those left out.
    The dictionary holds only what JSON does, and no NaN.

    Args:
        anomaly: scores, (X, Y, Z) or (H, W).
        mask: 1 is anomaly, the same shape.
        affine: voxel indices to mm, (4, 4); needed for a volume, not used for an image.
        smallest: ml of a volume, pixels of an image, that a lesion must have to be listed.
        threshold: of the mask; its lowest score if None.

    Raises:
        ValueError: for other shapes, scores that are not finite, a volume without an invertible
            affine, or a negative `smallest`.
    """
    scores, region = _array(anomaly), connected_regions(torch.as_tensor(_array(mask)) > 0).numpy()
    _check(scores, region, smallest)
    volume = scores.ndim == 3
    world = _world(affine) if volume else np.eye(3)
    size = abs(np.linalg.det(world[:3, :3])) / 1000 if volume else 1
    sizes = np.bincount(region.ravel())[1:] * size
    listed = np.flatnonzero(sizes >= smallest * (1 - 1e-6)) + 1  # 5 voxels of 0.2 ml make 1 ml
    if threshold is None:
        threshold = float(scores[region > 0].min(initial=np.inf))
    lesions = [
        _lesion(scores, region, window, world, size, threshold)
        for window in _windows(region, listed)
    ]
    lesions.sort(key=lambda lesion: -lesion["excess"])
    return {
        _name("mask", volume): _number(sizes.sum(), volume),
        "lesions": [{"rank": rank, **lesion} for rank, lesion in enumerate(lesions, 1)],
        "smaller_lesions": len(sizes) - len(listed),
    }


class AnomalyFindingsd(Transform):
    """Data with the findings at "findings", see `anomaly_findings`, a dictionary for JSON.

    It also holds the image-level "score", and the "threshold" of the mask with what it was
    calibrated for: its "false_positive_rate", or the mean "false_positive_volume_ml" of a healthy
    scan, the other being None. A "scan_check" among the data is taken along, and the "baseline"
    that `RefineAnomalyd` took off the map.

    Each lesion has a "p_value": the share of the healthy scans of the calibration and this one
    whose largest finding has at least its excess (see `rank_p_value`). "healthy_scans" is how many
    there were, so it is never below 1 / (healthy_scans + 1). The largest finding of a healthy scan
    that is exchangeable with them has a p-value below p with a probability of at most p; nearly
    so, since the threshold was chosen on the same scans. "score_p_value" is that of the score, and
    exact. Both are None where nothing was calibrated, the former also for a mask at a rate.

    Where the foreground is known, a lesion of a volume has a "position", see `position_words`, and
    "warnings" are lines that say why the scan may not be one for the model, see `look_around`.

    Args:
        detector, false_positive_rate, false_positive_volume: deprecated and without effect, the
            threshold is among the data.
        smallest: see `anomaly_findings`.
        volume_thresholds, healthy_scans: what `ScanCalibration` found (models/model.json).
        origin: of the model, see `ModelOrigin`.
        anomaly_key: key of the anomaly scores on the scan's own grid, (1, spatial...).
        mask_key: key of the mask.
        score_key: key of the image-level score.
        threshold_key: key of the mask's threshold, see `ThresholdAnomalyd`.
        foreground_key: key of a map that is above 0 in the foreground, where there is one.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self,
        detector: Any = None,
        false_positive_rate: float | None = None,
        smallest: float = 0.0,
        *,
        false_positive_volume: float | None = None,
        volume_thresholds: Sequence[Mapping[str, Any]] = (),
        healthy_scans: Mapping[str, Any] | None = None,
        origin: Mapping[str, Any] | None = None,
        anomaly_key: Hashable = "pred_anomaly",
        mask_key: Hashable = "pred_mask",
        score_key: Hashable = "score",
        threshold_key: Hashable = "threshold",
        foreground_key: Hashable = "pred_component",
    ) -> None:
        if smallest < 0:
            raise InputError(f"smallest must not be negative, got {smallest}")
        given = (detector, false_positive_rate, false_positive_volume)
        if any(value is not None for value in given):
            warnings.warn(
                "detector, false_positive_rate and false_positive_volume go: the threshold is"
                " among the data, where ThresholdAnomalyd puts it",
                DeprecationWarning,
                stacklevel=2,
            )
        self.smallest = smallest
        self.volume_thresholds = volume_thresholds
        self.healthy_scores: Sequence[float] = (healthy_scans or {}).get("scores", ())
        self.anomaly_key = anomaly_key
        self.mask_key = mask_key
        self.score_key = score_key
        self.threshold_key = threshold_key
        self.foreground_key = foreground_key
        self.origin = origin

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the findings."""
        anomaly, mask = data[self.anomaly_key], data[self.mask_key]
        affine = anomaly.affine if isinstance(anomaly, MetaTensor) else None
        score, point = float(data[self.score_key]), data[self.threshold_key]
        options = {"smallest": self.smallest, "threshold": point["threshold"]}
        largest = self._largest_findings(point["false_positive_volume_ml"])
        findings = {
            "score": score,
            "score_p_value": rank_p_value(score, self.healthy_scores),
            **point,
            "healthy_scans": max(len(largest), len(self.healthy_scores)),
            **anomaly_findings(anomaly[0], mask[0], affine, **options),
        }
        for lesion in findings["lesions"]:
            lesion["p_value"] = rank_p_value(lesion["excess"], largest)
        there = data.get(self.foreground_key)
        body = None if there is None else _array(there)[0] > 0
        world = _world(affine) if anomaly.ndim == 4 else None
        findings["warnings"] = look_around(
            findings["lesions"], _array(mask)[0] > 0, body, world, self.origin
        )
        for key in ("baseline", "scan_check"):
            if data.get(key) is not None:
                findings[key] = data[key]
        return {**data, "findings": findings}

    def _largest_findings(self, ml: float | None) -> Sequence[float]:
        """Excess of the largest finding of each healthy scan at the threshold of a volume."""
        known = [one for one in self.volume_thresholds if one["ml_per_scan"] == ml]
        return known[0].get("largest_findings", ()) if known else ()


class SaveFindingsd(Transform):
    """Deprecated, see `SaveResultsd`: findings written as NAME_findings.json beside a volume.

    The volume is one that SaveImaged saved with savepath_in_metadict=True. A labelling server
    leaves SaveImaged out and sends the findings itself: nothing is written then.

    Args:
        key: key of the findings.
        beside: key of the saved volume.

    Raises:
        OSError: where the file cannot be written, as on a full disk.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, key: Hashable = "findings", beside: Hashable = "pred_mask") -> None:
        warnings.warn(
            "SaveFindingsd goes: SaveResultsd writes them", DeprecationWarning, stacklevel=2
        )
        self.key = key
        self.beside = beside

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data, with the file at findings_path where one was written."""
        path = saved_beside(data[self.beside], "findings.json")
        if path is None:
            return dict(data)
        text = json.dumps(data[self.key], indent=2, allow_nan=False) + "\n"
        with atomic_write(path) as partial:
            partial.write_text(text)
        return {**data, f"{self.key}_path": str(path)}


def _array(image: Tensor) -> np.ndarray:
    return (image.as_tensor() if isinstance(image, MetaTensor) else image).cpu().numpy()


def _check(scores: np.ndarray, region: np.ndarray, smallest: float) -> None:
    if scores.shape != region.shape or scores.ndim not in (2, 3):
        raise InputError(
            "anomaly and mask must both be (X, Y, Z) or (H, W), got"
            f" {scores.shape} and {region.shape}"
        )
    if not np.isfinite(scores).all():
        raise InputError(f"anomaly must be finite, got {(~np.isfinite(scores)).sum()} NaN or inf")
    if not smallest >= 0:
        raise InputError(f"smallest must not be negative, got {smallest}")


def _world(affine: Tensor | None) -> np.ndarray:
    """Affine as an array, (4, 4), float64."""
    array = np.zeros(0) if affine is None else np.asarray(affine, dtype=np.float64)
    if array.shape != (4, 4) or not abs(np.linalg.det(array)) > 0:
        got = "none" if affine is None else array.tolist()
        raise InputError(f"affine must be an invertible 4 x 4 matrix for a volume, got {got}")
    return array


def _windows(region: np.ndarray, listed: np.ndarray) -> list[tuple[int, tuple[slice, ...]]]:
    """Numbers of the listed regions, each with its bounding box."""
    from scipy.ndimage import find_objects

    boxes = find_objects(region)
    return [(int(number), boxes[number - 1]) for number in listed]


def _lesion(
    scores: np.ndarray,
    region: np.ndarray,
    window: tuple[int, tuple[slice, ...]],
    world: np.ndarray,
    size: float,
    threshold: float,
) -> dict[str, Any]:
    """One lesion, see `anomaly_findings`."""
    number, box = window
    inside = region[box] == number
    first = np.array([side.start for side in box])
    voxels = np.argwhere(inside) + first
    values = scores[box][inside].astype(np.float64)
    volume = scores.ndim == 3
    peak = voxels[values.argmax()]
    return {
        "excess": float((values - threshold).clip(min=0).sum() * size),
        "peak_score": float(values.max()),
        "mean_score": float(values.mean()),
        _name("", volume): _number(len(values) * size, volume),
        **_positions("centroid", world, voxels.mean(0)),
        **_positions("peak", world, peak),
        "peak_voxel": peak.tolist(),
        "first_voxel": first.tolist(),
        "last_voxel": [side.stop - 1 for side in box],
    }


def _name(of: str, volume: bool) -> str:
    """Key of a volume in ml or of an area in pixels."""
    return f"{of}_{'volume_ml' if volume else 'area_px'}".lstrip("_")


def _number(size: float, volume: bool) -> float | int:
    """ml, or whole pixels."""
    return float(size) if volume else int(size)


def _positions(of: str, world: np.ndarray, voxel: np.ndarray) -> dict[str, list[float]]:
    """Where a voxel's centre lies: in mm of a volume, itself in an image."""
    if len(voxel) == 2:
        return {f"{of}_px": [float(index) for index in voxel]}
    right, anterior, superior = map(float, world[:3, :3] @ voxel + world[:3, 3])
    return {
        f"{of}_mm": [right, anterior, superior],
        f"{of}_lps_mm": [-right, -anterior, superior],
    }
