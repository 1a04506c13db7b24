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
    low, high = scores.aminmax()
    unit = (scores.double() - low) / (high - low).clamp(min=1e-30)
    return {
        "auroc": float(binary_auroc(unit, target, validate_args=False)),
        "aupr": float(binary_average_precision(unit, target, validate_args=False)),
    }


class AnomalyMetrics(Metric):
    """Metrics of an evaluation, over the pixels of all images together and over images.

    The result, also in `engine.state.metrics`, is a dictionary: "pixel_auroc" and "pixel_aupr"
    (paper, Table 1), "dice_at_fpr_0.05" and so on for each calibrated rate (Table 2), over all
    pixels pooled, and "image_auroc" of the image-level scores (NaN unless healthy and anomalous
    images are there). `subjects` holds one dictionary an image.

    Args:
        detector: whose calibrated thresholds make the masks.
        pred_key: key of the anomaly map (1, ...) in the engine's decollated output.
        label_key: key of the mask of lesions (1, ...), anomalous where above 0.
    """

    _state_dict_all_req_keys = ("_scores", "_labels", "subjects")

    def __init__(
        self, detector: AnomalyDetector, *, pred_key: str = "pred", label_key: str = "label"
    ) -> None:
        self.detector = detector
        self.pred_key = pred_key
        self.label_key = label_key
        super().__init__()

    def reset(self) -> None:
        """Forget all images."""
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []
        self.subjects: list[dict[str, Any]] = []

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Add the images of a decollated batch.

        Raises:
            ValueError: where a label's shape is not its anomaly map's.
        """
        for item in output:
            pred, label = item[self.pred_key], item[self.label_key]
            name = str(getattr(pred, "meta", {}).get("filename_or_obj", len(self.subjects)))
            if pred.shape != label.shape:
                raise ValueError(
                    f"{name}: the label must have the image's shape {tuple(pred.shape[1:])},"
                    f" got {tuple(label.shape[1:])}"
                )
            self._add(name, torch.as_tensor(pred).cpu(), torch.as_tensor(label).cpu() > 0)

    def _add(self, name: str, pred: Tensor, label: Tensor) -> None:
        scores, labels = pred.flatten(), label.flatten()
        subject = {
            "name": name,
            "score": float(image_score(scores)),
            "anomalous": bool(label.any()),
        }
        subject |= pixel_metrics(scores, labels) | self._dices(scores, labels)
        self.subjects.append(subject)
        self._scores.append(scores)
        self._labels.append(labels)

    def _dices(self, scores: Tensor, labels: Tensor) -> dict[str, float]:
        thresholds = self.detector.thresholds.tolist()
        rates = self.detector.false_positive_rates.tolist()
        return {
            f"dice_at_fpr_{rate:.3g}": dice_score(scores > threshold, labels)
            for rate, threshold in zip(rates, thresholds, strict=True)
        }

    def compute(self) -> dict[str, float]:
        """Metrics over all images so far.

        Raises:
            ValueError: where there was no image.
        """
        subjects = interleaved(self.subjects)
        if not subjects:
            raise ValueError("metrics need at least one image with a label, got none")
        scores = gathered(torch.cat([torch.zeros(0), *self._scores]))
        labels = gathered(torch.cat([torch.zeros(0, dtype=torch.bool), *self._labels]))
        pooled = {f"pixel_{name}": value for name, value in pixel_metrics(scores, labels).items()}
        image_scores = torch.tensor([subject["score"] for subject in subjects])
        image_labels = torch.tensor([subject["anomalous"] for subject in subjects])
        image_auroc = pixel_metrics(image_scores, image_labels)["auroc"]
        return pooled | self._dices(scores, labels) | {"image_auroc": image_auroc}
