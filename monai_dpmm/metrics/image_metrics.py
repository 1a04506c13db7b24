"""What an evaluation keeps of one image: its metrics, and parts that add up over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from monai_dpmm.metrics.bootstrap import group_numbers, ranking_statistics, ratio_statistics
from monai_dpmm.metrics.froc import ScanEvents, lesion_counts, scan_events
from monai_dpmm.metrics.score_histogram import ScoreHistogram
from monai_dpmm.network.thresholds import image_score

__all__ = [
    *("ImageRecord", "Thresholds", "dice_score", "froc_floor", "image_record"),
    *("over_images", "over_patients", "patient_groups"),
]


class Thresholds(NamedTuple):
    """Scores above which a pixel is anomalous, and their false-positive rates: (R,) each.

    Stands for a detector where there is none; R may be 0.
    """

    false_positive_rates: Tensor
    thresholds: Tensor


class ImageRecord(NamedTuple):
    """Results of an image, nothing that grows with its pixels.

    Attributes:
        metrics: its own, by name, for a table of images.
        ratios: by name numerator and denominator, whose sums over images give the metric of all.
        events: of its FROC curve, if it has one.
        patient: whose image it is, None if not known.
    """

    metrics: dict[str, float | bool | int | str]
    ratios: dict[str, tuple[float, float]]
    events: ScanEvents | None
    patient: str | None = None


def dice_score(mask: Tensor, label: Tensor) -> float:
    """Dice overlap of two boolean masks of one shape, in [0, 1]; NaN where both are empty."""
    total = mask.sum() + label.sum()
    return float(2 * (mask & label).sum() / total) if total else float("nan")


def image_record(
    scores: Tensor,
    regions: Tensor,
    histogram: ScoreHistogram,
    detector: Thresholds,
    *,
    lesion_iou: float,
    score: float | None = None,
) -> ImageRecord:
    """Record of an image or volume: (spatial...) float, (spatial...) int64.

    Args:
        scores: anomaly map.
        regions: number of the lesion of each pixel, see `connected_regions`.
        histogram: of this image alone.
        detector: whose thresholds make the masks.
        lesion_iou: see `AnomalyMetrics`.
        score: of the image; the mean of the highest 1 % of the map if None.
    """
    label = regions > 0
    anomalous, best = bool(label.any()), histogram.best_dice().value
    metrics: dict[str, float | bool | int | str] = {
        "score": float(image_score(scores)) if score is None else score,
        "anomalous": anomalous,
        "auroc": histogram.auroc().value,
        "aupr": histogram.aupr().value,
        "aupro": histogram.aupro().value,
        "best_dice": best,
    }
    thresholds = detector.thresholds.tolist()
    names = [f"fpr_{rate:.3g}" for rate in detector.false_positive_rates.tolist()]
    ratios = {"mean_best_dice": (best, 1.0) if anomalous else (0.0, 0.0)}
    for name, threshold in zip(names, thresholds, strict=True):
        metrics[f"dice_at_{name}"], parts = _dice_parts(scores > threshold, label)
        ratios |= {f"{key}dice_at_{name}": part for key, part in parts.items()}
    if scores.ndim < 3:
        return ImageRecord(metrics, ratios, None)
    for name, threshold in zip(names, thresholds, strict=True):
        found, lesions, false_positives = lesion_counts(scores > threshold, regions, lesion_iou)
        metrics |= {f"found_at_{name}": found, f"false_positives_at_{name}": false_positives}
        ratios[f"lesion_sensitivity_at_{name}"] = (found, lesions)
        ratios[f"false_positives_per_scan_at_{name}"] = (false_positives, 1)
    floor = froc_floor(detector)
    without = floor is None or bool(lesion_iou)
    events = None if without else scan_events(scores, regions, cast(float, floor))
    return ImageRecord(metrics | {"lesions": int(regions.max())}, ratios, events)


def froc_floor(detector: Thresholds) -> float | None:
    """Lowest calibrated threshold, from which on a FROC curve goes; None where there is none."""
    known = detector.thresholds[detector.thresholds.isfinite()]
    return float(known.min()) if len(known) else None


def patient_groups(images: Sequence[ImageRecord]) -> Tensor:
    """Number of each image's patient, of the image itself where that is not known: (I,)."""
    return group_numbers([i if im.patient is None else im.patient for i, im in enumerate(images)])


def over_images(images: Sequence[ImageRecord], weights: Tensor) -> dict[str, Tensor]:
    """Ratios of sums over images, and curves of image-level scores: weights (B, I) -> (B,) each."""
    names = list(dict.fromkeys(name for image in images for name in image.ratios))
    parts = [[image.ratios.get(name, (0.0, 0.0)) for name in names] for image in images]
    ratios = ratio_statistics(torch.tensor(parts, dtype=torch.float64), weights)
    scores = torch.tensor([image.metrics["score"] for image in images])
    labels = torch.tensor([image.metrics["anomalous"] for image in images])
    curves = ranking_statistics(scores, labels, weights)
    return {
        **dict(zip(names, ratios.unbind(1), strict=True)),
        **{f"image_{name}": values for name, values in curves.items()},
    }


def over_patients(images: Sequence[ImageRecord], counts: Tensor) -> dict[str, Tensor]:
    """AUROC of patients, by their highest image-level score, where any is known: (B, G) -> (B,)."""
    if all(image.patient is None for image in images):
        return {}
    groups, patients = patient_groups(images), counts.shape[1]
    scores = torch.tensor([image.metrics["score"] for image in images])
    labels = torch.tensor([image.metrics["anomalous"] for image in images])
    highest = torch.full((patients,), -torch.inf).scatter_reduce_(0, groups, scores, "amax")
    anomalous = torch.zeros(patients).scatter_reduce_(0, groups, labels.float(), "amax") > 0
    return {"patient_auroc": ranking_statistics(highest, anomalous, counts)["auroc"]}


def _dice_parts(mask: Tensor, label: Tensor) -> tuple[float, dict[str, tuple[float, float]]]:
    """Dice of an image, and what it adds to the Dice of all pixels and to the mean of images."""
    overlap, total = float(2 * (mask & label).sum()), float(mask.sum() + label.sum())
    dice = overlap / total if total else float("nan")
    of_lesions = (dice, 1.0) if bool(label.any()) else (0.0, 0.0)
    return dice, {"": (overlap, total), "mean_": of_lesions}
