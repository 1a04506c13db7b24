"""How well anomaly volumes find lesions: over all pixels, and over whole images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from ignite.metrics import Metric
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from monai_dpmm.calibration import image_score
from monai_dpmm.distributed import gathered, interleaved
from monai_dpmm.streaming import MAX_BINS, ScoreHistogram, order_keys

if TYPE_CHECKING:
    from monai_dpmm.detector import AnomalyDetector

__all__ = ["AnomalyMetrics", "dice_score", "pixel_metrics"]


def dice_score(mask: Tensor, label: Tensor) -> float:
    """Dice overlap of two boolean masks of one shape, in [0, 1]; NaN where both are empty."""
    total = mask.sum() + label.sum()
    return float(2 * (mask & label).sum() / total) if total else float("nan")


def pixel_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Exact pixel AUROC and AUPR (average precision), in [0, 1]: (P,), (P,) bool.

    NaN where the labels are all of one class. Needs about 60 bytes a pixel.
    """
    if bool(labels.all()) or not bool(labels.any()):
        return {"auroc": float("nan"), "aupr": float("nan")}
    target = labels.long()
    # torchmetrics squashes scores outside [0, 1] by a sigmoid, which would tie large ones
    unit = (order_keys(scores) + 2**31).double() / 2**32
    return {
        "auroc": float(binary_auroc(unit, target, validate_args=False)),
        "aupr": float(binary_average_precision(unit, target, validate_args=False)),
    }


class AnomalyMetrics(Metric):
    """Metrics of an evaluation, over the pixels of all images together and over images.

    The result, also in `engine.state.metrics`, is a dictionary, over all pixels pooled:
    "pixel_auroc" and "pixel_aupr" (paper, Table 1), "pixel_binning_error", how far from the exact
    ones these two can be at most, "pixel_best_dice" and the "pixel_best_dice_threshold" that gives
    it, and "dice_at_fpr_0.05" and so on for each calibrated rate (Table 2), always exact; and
    "image_auroc" of the image-level scores (NaN unless healthy and anomalous images are there).
    `subjects` holds one dictionary an image.

    Pixels are counted in a histogram (`ScoreHistogram`): however many images come, the memory is
    some 150 MB and 30 bytes a pixel of the largest image, and processes exchange bins instead of
    pixels. An image of at most 2^18 different scores (512 x 512) has exact curves either way.

    Args:
        detector: whose calibrated thresholds make the masks.
        exact: keep all pixels for exact curves, a binning error of 0, at 5 bytes a pixel during the
            evaluation and some 170 at its end; of several processes each holds all pixels then.
        pred_key: key of the anomaly map (1, ...) in the engine's decollated output.
        label_key: key of the mask of lesions (1, ...), anomalous where above 0.
    """

    def __init__(
        self,
        detector: AnomalyDetector,
        *,
        exact: bool = False,
        pred_key: str = "pred",
        label_key: str = "label",
    ) -> None:
        self.detector = detector
        self.exact = exact
        self.pred_key = pred_key
        self.label_key = label_key
        super().__init__()

    def reset(self) -> None:
        """Forget all images."""
        self._pool = ScoreHistogram()
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._overlaps: list[Tensor] = []
        self.subjects: list[dict[str, Any]] = []

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Add the images of a decollated batch.

        Raises:
            ValueError: where a label's shape is not its anomaly map's, or a score is not finite.
        """
        for item in output:
            pred, label = item[self.pred_key], item[self.label_key]
            name = str(getattr(pred, "meta", {}).get("filename_or_obj", len(self.subjects)))
            if pred.shape != label.shape:
                raise ValueError(
                    f"{name}: the label must have the image's shape {tuple(pred.shape[1:])},"
                    f" got {tuple(label.shape[1:])}"
                )
            self._add(name, _plain(pred), _plain(label) > 0)

    def _add(self, name: str, pred: Tensor, label: Tensor) -> None:
        scores, labels = pred.flatten(), label.flatten()
        histogram = self._histogram(name, scores, labels)
        overlaps = self._thresholded(scores, labels)
        subject = {
            "name": name,
            "score": float(image_score(scores)),
            "anomalous": bool(label.any()),
            "auroc": histogram.auroc().value,
            "aupr": histogram.aupr().value,
            "best_dice": histogram.best_dice().value,
        }
        self.subjects.append(subject | self._dices(overlaps))
        self._overlaps.append(overlaps)
        if self.exact:
            self._scores.append(scores)
            self._labels.append(labels)
        else:
            self._pool.merge(histogram)

    def _histogram(self, name: str, scores: Tensor, labels: Tensor) -> ScoreHistogram:
        histogram = ScoreHistogram(None if self.exact else MAX_BINS)
        try:
            histogram.update(scores, labels)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        return histogram

    def _thresholded(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Twice the overlap of mask and label, and the sum of both, at each threshold: (R, 2)."""
        masks = [scores > threshold for threshold in self.detector.thresholds.tolist()]
        counts = [[2 * (mask & labels).sum(), mask.sum() + labels.sum()] for mask in masks]
        return torch.tensor(counts, dtype=torch.int64).view(-1, 2)

    def _dices(self, overlaps: Tensor) -> dict[str, float]:
        rates = self.detector.false_positive_rates.tolist()
        dices = (overlaps[:, 0].double() / overlaps[:, 1]).tolist()  # 0 / 0 is NaN
        return {f"dice_at_fpr_{rate:.3g}": dice for rate, dice in zip(rates, dices, strict=True)}

    def compute(self) -> dict[str, float]:
        """Metrics over all images so far.

        Raises:
            ValueError: where there was no image.
        """
        subjects = interleaved(self.subjects)
        if not subjects:
            raise ValueError("metrics need at least one image with a label, got none")
        pool = self._all_pixels()
        auroc, aupr, dice = pool.auroc(), pool.aupr(), pool.best_dice()
        image_scores = torch.tensor([subject["score"] for subject in subjects])
        image_labels = torch.tensor([subject["anomalous"] for subject in subjects])
        return {
            "pixel_auroc": auroc.value,
            "pixel_aupr": aupr.value,
            "pixel_binning_error": max(auroc.error, aupr.error),
            "pixel_best_dice": dice.value,
            "pixel_best_dice_threshold": dice.threshold,
            **self._dices(sum(interleaved(self._overlaps))),
            "image_auroc": pixel_metrics(image_scores, image_labels)["auroc"],
        }

    def _all_pixels(self) -> ScoreHistogram:
        """The pixels of all images of all processes."""
        if not self.exact:
            pool = ScoreHistogram()
            for histogram in interleaved([self._pool]):
                pool.merge(histogram)
            return pool
        pool = ScoreHistogram(None)
        scores = gathered(torch.cat([torch.zeros(0), *self._scores]))
        labels = gathered(torch.cat([torch.zeros(0, dtype=torch.bool), *self._labels]))
        pool.update(scores, labels)
        return pool


def _plain(x: Any) -> Tensor:
    """A tensor on the CPU without MONAI's metadata, which would travel along with the counts."""
    return torch.as_tensor(x).cpu().as_subclass(Tensor)
