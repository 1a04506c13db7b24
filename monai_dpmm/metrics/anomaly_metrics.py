"""How well anomaly maps find lesions: over all pixels, images, lesions and patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from monai_dpmm.engines.distributed import interleaved
from monai_dpmm.errors import InputError
from monai_dpmm.metrics.bootstrap import ImageHistograms, drawn_counts, interval, pixel_statistics
from monai_dpmm.metrics.evaluation_size import Protocol, protocol_size, resized
from monai_dpmm.metrics.finding_metrics import finding_counts, finding_record
from monai_dpmm.metrics.froc import Froc, froc
from monai_dpmm.metrics.image_metrics import (
    ImageRecord,
    Thresholds,
    froc_floor,
    image_record,
    over_images,
    over_patients,
    patient_groups,
)
from monai_dpmm.metrics.score_histogram import MAX_BINS, ScoreHistogram
from monai_dpmm.network.thresholds import order_keys
from monai_dpmm.transforms.regions import connected_regions

if TYPE_CHECKING:
    from monai_dpmm.network.detector import AnomalyDetector

__all__ = ["AnomalyMetrics", "pixel_metrics"]


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
    """Metrics of an evaluation: over the pixels of all images together, images, lesions, patients.

    The result, also in `engine.state.metrics`, is a dictionary. A rate x is each calibrated one:

    - of what a reader is shown, where items have findings (see `finding_record`):
      "lesions_found" of "lesions", "first_findings_true" of "scans_with_lesions", "healthy_scans",
      "finding_sensitivity", "first_finding_precision", "false_findings_per_healthy_scan" and
      "false_findings_per_ill_scan";
    - over all pixels pooled "pixel_auroc" and "pixel_aupr" (paper, Table 1), "pixel_aupro" to a
      false-positive rate of 30 %, "pixel_binning_error", how far from the exact ones these can be
      at most, "pixel_best_dice" and the "pixel_best_dice_threshold" that gives it, and always exact
      "dice_at_fpr_x" (Table 2);
    - as means over the images with a lesion "mean_best_dice", each image at its own best threshold,
      and "mean_dice_at_fpr_x";
    - of image-level scores "image_auroc" and "image_aupr", and where images name their patient
      "patient_auroc", a patient's score being the highest of their images';
    - of volumes "lesion_sensitivity_at_fpr_x", "false_positives_per_scan_at_fpr_x" and
      "froc_sensitivity", the mean at 1/8 to 8 false positives a scan (see
      `monai_dpmm.metrics.froc`), whose curve is `froc`.

    What is not defined, as the AUROC of healthy images alone, is NaN. `subjects` holds one
    dictionary an image, `pool` the pixels of this process's images. With `bootstrap`, `intervals`
    holds the 95 % percentile intervals by name, (low, high), from resamples of the patients, or of
    the images whose patient is unknown; none of a single patient. An item's patient is at
    "patient", in the output or the batch; and at "anomalous", where it is known, whether the image
    is, whatever its mask: a slice that was sorted out as anomalous may have an empty one. Otherwise
    it is if its mask is not empty.

    Pixels are counted in a histogram (`ScoreHistogram`): however many images come, the memory is
    some 200 MB and 30 bytes a pixel of the largest image, and processes exchange bins instead of
    pixels. With `bootstrap` an image adds some 100 kB, at most 400. An image of at most 2^18
    different scores (512 x 512) has exact curves either way.

    Args:
        detector: whose calibrated thresholds make the masks.
        exact: a bin for each different score, for exact curves, a binning error of 0: at most 40
            bytes a pixel during the evaluation, and some 200 at its end.
        bootstrap: resamples for the intervals, 0 for none.
        protocol: size at which maps and masks are compared, see
            `monai_dpmm.metrics.evaluation_size`.
        lesion_iou: intersection over union from which on a lesion counts as found, 0 for any
            overlap; the FROC curve, which is of any overlap, is left out otherwise.
        score_key: key of an image's own score; the mean of the highest 1 % of the map if None.
        findings_key: key of the findings, see `AnomalyFindingsd`; None without them.
        mask_key: key of the mask that they are parts of.
        pred_key: key of the anomaly map (1, ...) in the engine's decollated output.
        label_key: key of the mask of lesions (1, ...), anomalous where above 0.
    """

    def __init__(
        self,
        detector: AnomalyDetector | Thresholds,
        *,
        exact: bool = False,
        bootstrap: int = 0,
        protocol: Protocol | int = "native",
        lesion_iou: float = 0.0,
        score_key: str | None = None,
        findings_key: str | None = None,
        mask_key: str = "pred_mask",
        pred_key: str = "pred",
        label_key: str = "label",
    ) -> None:
        if bootstrap < 0:
            raise InputError(f"bootstrap must be a number of resamples or 0, got {bootstrap}")
        if not 0 <= lesion_iou <= 1:
            raise InputError(f"lesion_iou must lie in [0, 1], got {lesion_iou}")
        self.detector = detector
        self.exact = exact
        self.bootstrap = bootstrap
        self.protocol = str(protocol)
        self.lesion_iou = lesion_iou
        self.score_key = score_key
        self.findings_key = findings_key
        self.mask_key = mask_key
        self.pred_key = pred_key
        self.label_key = label_key
        self._size = protocol_size(protocol)
        super().__init__()

    def reset(self) -> None:
        """Forget all images."""
        self.pool = ScoreHistogram(None if self.exact else MAX_BINS)
        self._histograms = ImageHistograms()
        self._images: list[ImageRecord] = []
        self._result: dict[str, float] | None = None
        self.subjects: list[dict[str, Any]] = []
        self.intervals: dict[str, tuple[float, float]] = {}
        self.froc: Froc | None = None

    def iteration_completed(self, engine: Engine) -> None:
        """Add the images of a batch, with what the engine's decollated batch says of them."""
        batch: Any = engine.state.batch
        named = isinstance(batch, Sequence) and all(isinstance(item, Mapping) for item in batch)
        known = [{k: item[k] for k in _KNOWN if k in item} for item in batch if named]
        output = self._output_transform(engine.state.output)
        if len(known) == len(output):
            output = [{**of, **item} for of, item in zip(known, output, strict=True)]
        self.update(output)

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Add the images of a decollated batch.

        Raises:
            ValueError: where a label's shape is not its anomaly map's, a score is not finite, or
                the protocol is not for such images.
        """
        self._result = None
        for item in output:
            pred, label = item[self.pred_key], item[self.label_key]
            name = str(getattr(pred, "meta", {}).get("filename_or_obj", len(self.subjects)))
            if pred.shape != label.shape:
                raise InputError(
                    f"{name}: the label must have the image's shape {tuple(pred.shape[1:])},"
                    f" got {tuple(label.shape[1:])}"
                )
            self._add(name, _plain(pred)[0], _plain(label)[0] > 0, item)

    def _add(self, name: str, scores: Tensor, label: Tensor, item: Mapping[str, Any]) -> None:
        histogram, lesions = ScoreHistogram(self.pool.max_bins), label
        try:
            if self._size is not None:
                scores, label = resized(scores, label, self._size)
            regions = connected_regions(label)
            histogram.update(scores, label, regions)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from None
        score = None if self.score_key is None else float(item[self.score_key])
        record = image_record(
            scores,
            regions,
            histogram,
            self._thresholds(),
            lesion_iou=self.lesion_iou,
            score=score,
        )
        if self.findings_key is not None:
            if self._size is not None:
                regions = connected_regions(lesions)
            mask = _plain(item[self.mask_key])[0]
            found = finding_record(item[self.findings_key]["lesions"], mask, regions)
            record = record._replace(
                metrics={**record.metrics, **found[0]}, ratios={**found[1], **record.ratios}
            )
        patient, anomalous = _patient(item), item.get("anomalous")
        known = {} if anomalous is None else {"anomalous": bool(anomalous)}
        record = record._replace(patient=patient, metrics=record.metrics | known)
        named = {"name": name} if patient is None else {"name": name, "patient": patient}
        self.subjects.append(named | record.metrics)
        self._images.append(record)
        self.pool.merge(histogram)
        if self.bootstrap:
            self._histograms.add(histogram)

    def _thresholds(self) -> Thresholds:
        rates, thresholds = self.detector.false_positive_rates, self.detector.thresholds
        return Thresholds(rates.cpu(), thresholds.cpu())

    def compute(self) -> dict[str, float]:
        """Metrics over all images so far; `intervals` and `froc` are set as well.

        Raises:
            ValueError: where there was no image.
        """
        if self._result is None:
            self._result = self._computed()
        return dict(self._result)

    def _computed(self) -> dict[str, float]:
        images = interleaved(self._images)
        if not images:
            raise InputError("metrics need at least one image with a label, got none")
        groups = patient_groups(images)
        once = torch.ones(1, len(images)), torch.ones(1, int(groups.max()) + 1)
        self.froc = self._froc(images)
        self.intervals = self._intervals(images)
        curve = {} if self.froc is None else {"froc_sensitivity": self.froc.mean_sensitivity()}
        of_images = {name: float(value) for name, value in over_images(images, once[0]).items()}
        counts = finding_counts([image.ratios for image in images])
        first = {name: of_images[name] for name in of_images if counts and "finding" in name}
        return {
            **counts,
            **first,
            **self._pooled(),
            **of_images,
            **{name: float(value) for name, value in over_patients(images, once[1]).items()},
            **curve,
        }

    def _pooled(self) -> dict[str, float]:
        """Metrics of the pixels of all images of all processes."""
        pool = ScoreHistogram(self.pool.max_bins)
        for histogram in interleaved([self.pool]):
            pool.merge(histogram)
        areas = {"auroc": pool.auroc(), "aupr": pool.aupr(), "aupro": pool.aupro()}
        dice = pool.best_dice()
        return {
            **{f"pixel_{name}": area.value for name, area in areas.items()},
            "pixel_binning_error": max(area.error for area in areas.values()),
            "pixel_best_dice": dice.value,
            "pixel_best_dice_threshold": dice.threshold,
        }

    def _froc(self, images: Sequence[ImageRecord]) -> Froc | None:
        """FROC curve, None unless all images are volumes whose thresholds are calibrated."""
        scans = [image.events for image in images if image.events is not None]
        floor = froc_floor(self._thresholds())
        lesions = any(len(scan.peaks) for scan in scans)
        if floor is None or not lesions or len(scans) < len(images):
            return None
        return froc(scans, floor)

    def _intervals(self, images: Sequence[ImageRecord]) -> dict[str, tuple[float, float]]:
        """Intervals by name; none without resamples or with a single patient."""
        groups = patient_groups(images)
        if not self.bootstrap or int(groups.max()) == 0:
            return {}
        counts = drawn_counts(int(groups.max()) + 1, self.bootstrap)
        weights = counts[:, groups]
        rows = interleaved([image.clone() for image in self._histograms.images])
        bits = max(interleaved([self._histograms.ignored_bits]))
        pixels = pixel_statistics(rows, bits, weights)
        statistics = {f"pixel_{name}": values for name, values in pixels.items()}
        statistics |= over_images(images, weights) | over_patients(images, counts)
        return {name: interval(values) for name, values in statistics.items()}


_KNOWN = ("patient", "anomalous")


def _patient(item: Mapping[str, Any]) -> str | None:
    """Patient that an item names, if it does; collating makes tensors of numbers."""
    value = item.get("patient")
    return None if value is None else str(value.item() if isinstance(value, Tensor) else value)


def _plain(x: Any) -> Tensor:
    """A tensor on the CPU without MONAI's metadata, which would travel along with the counts."""
    return torch.as_tensor(x).cpu().as_subclass(Tensor)
