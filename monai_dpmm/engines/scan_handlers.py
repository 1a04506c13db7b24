"""Ignite handlers of whole scans: calibration on healthy ones, a line about those unlike them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys as Keys
from torch import Tensor

from monai_dpmm.engines.model_files import save_model
from monai_dpmm.errors import printable
from monai_dpmm.files import atomic_write, json_object
from monai_dpmm.mixture.planes import mixture_of
from monai_dpmm.network.geometry import slice_axes
from monai_dpmm.transforms.array import ImageScore
from monai_dpmm.transforms.healthy_maps import HealthyFindings, PooledScores
from monai_dpmm.transforms.metatensors import plain
from monai_dpmm.transforms.operating_point import (
    DEFAULT_VOLUME,
    FalsePositiveVolumes,
    voxel_ml,
)
from monai_dpmm.transforms.scan_check import MIN_SCANS, prototype_usage, scan_reference

if TYPE_CHECKING:
    from monai_dpmm.network.detector import AnomalyDetector

__all__ = ["ScanCalibration", "SuspiciousScans"]

_KEPT = 10  # times the largest volume, of the highest voxels of a scan


class ScanCalibration:
    """Calibrate a trained model on finished maps of healthy scans: thresholds, and what is usual.

    Attach it to an evaluator whose inferer returns the component map and whose postprocessing is
    that of inference up to the mask. Only the foreground counts. What it finds is added to the
    model's settings:

    - "volume_thresholds" by false-positive volume, see `FalsePositiveVolumes.calibrated` and
      `HealthyFindings.summary`; none of pictures, which have no ml, nor of a volume that is more
      than half of a mean scan's foreground;
    - "healthy_scans", a dictionary of their "scores", and how many of them were trained on and
      scored by a model without them ("left_out", see `LeaveOneOut`);
    - "scan_reference", see `scan_reference`; None for fewer than 3 scans.

    The detector's thresholds at rates become those of the maps' voxels, unless they are those of
    patches and hold for the maps as well (`AnomalyDetector.keeps_patch_scores`); model.pt beside
    the settings, where there is one, is written anew with them.

    Args:
        path: JSON file of the settings, models/model.json; replaced atomically at the end.
        detector: that scores the volumes.
        false_positive_volumes: mean ml of false positives in a healthy scan to find thresholds for.
        axis: that the slices were taken along, or several.
        anomaly_key: key of the finished anomaly map on the scan's own grid.
        foreground_key: key of a map that is above 0 in the foreground.
        baseline_key: key of what was taken off the map, where that was done.
        min_lesion_ml: of the findings that are counted.
        score_fraction: of the foreground's scores that the score of a scan is the mean of.
        held_back: how many scans, the first ones, were held back from the training; all if None.
    """

    def __init__(
        self,
        path: str | Path,
        detector: AnomalyDetector,
        false_positive_volumes: Sequence[float],
        axis: int | Sequence[int] = 2,
        anomaly_key: str = "pred_anomaly",
        *,
        foreground_key: str = "pred_component",
        baseline_key: str = "baseline",
        min_lesion_ml: float = 0.0,
        score_fraction: float = 0.001,
        held_back: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.detector = detector
        self.false_positive_volumes = list(false_positive_volumes)
        self.axis = slice_axes(axis)[0]
        self.anomaly_key = anomaly_key
        self.foreground_key = foreground_key
        self.baseline_key = baseline_key
        self.min_lesion_ml = min_lesion_ml
        self.held_back = held_back
        self._score = ImageScore(score_fraction)
        self._clear()

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self._clear())
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._see)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.COMPLETED, self)

    def _clear(self) -> None:
        self._volumes, self._pool = FalsePositiveVolumes(), PooledScores()
        self._findings = HealthyFindings(_KEPT * max(self.false_positive_volumes))
        self._usages: list[Tensor] = []
        self._scores: list[float] = []
        self._baselines: list[float] = []

    def _see(self, engine: Any) -> None:
        count = mixture_of(self.detector.mixture, 0).components
        for pred in engine.state.output[Keys.PRED].as_subclass(Tensor):
            self._usages.append(prototype_usage(pred[0], pred[1], count, self.axis))

    def _count(self, engine: Any) -> None:
        for item in engine.state.output:
            anomaly, there = item[self.anomaly_key], item[self.foreground_key]
            self._scores.append(self._score(anomaly, there))
            if self.baseline_key in item:
                self._baselines.append(item[self.baseline_key])
            foreground = plain(there) > 0
            scores = plain(anomaly)[foreground]
            self._pool.add(scores)
            if anomaly.ndim == 4:
                ml = voxel_ml(anomaly.affine)
                self._volumes.add(scores, ml)
                self._findings.add(anomaly[0], foreground[0], ml)

    def __call__(self, engine: Engine) -> None:
        """Write what was found into the model's files, and print it."""
        if not self.detector.keeps_patch_scores:
            thresholds = self._pool.thresholds(self.detector.false_positive_rates)
            self.detector.thresholds.copy_(thresholds)
        enough = len(self._usages) >= MIN_SCANS
        baselines = self._baselines or None
        scans = len(self._scores)
        left_out = scans - min(scans, scans if self.held_back is None else self.held_back)
        scores = [float(f"{score:.6g}") for score in self._scores]
        found: dict[str, Any] = {
            "volume_thresholds": self._volume_thresholds(),
            "healthy_scans": {"scores": scores, "left_out": left_out},
            "scan_reference": scan_reference(self._usages, baselines) if enough else None,
        }
        self._write(json_object(self.path) | found)
        if found["volume_thresholds"]:
            print(_volume_table(found["volume_thresholds"], _scans_text(scans, left_out)))
        print(_check_line(found["scan_reference"], len(self._usages)))
        print(f"Written to {self.path}")
        if found["volume_thresholds"]:
            print(expected_sentence(found["volume_thresholds"], left_out))

    def _volume_thresholds(self) -> list[dict[str, Any]]:
        """Thresholds by volume and what lies above them in healthy scans; none of pictures."""
        if not len(self._volumes):
            return []
        mean = self._volumes.mean_ml
        asked = [ml for ml in self.false_positive_volumes if ml <= mean / 2]
        if left := [f"{ml:g}" for ml in self.false_positive_volumes if ml > mean / 2]:
            print(f"No threshold for {', '.join(left)} ml: a mean scan's foreground has {mean:.3g}")
        calibrated = self._volumes.calibrated(asked, self.detector)
        return [
            one | self._findings.summary(one["threshold"], self.min_lesion_ml) for one in calibrated
        ]

    def _write(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, and the model with them where its thresholds have changed."""
        model = self.path.with_suffix(".pt")
        if model.is_file() and not self.detector.keeps_patch_scores:
            save_model(self.detector, model, settings)
            return
        with atomic_write(self.path) as partial:
            partial.write_text(json.dumps(settings, indent=4))


class SuspiciousScans:
    """Print one line for each scan that the scan check finds unlike the training data.

    Args:
        key: of the finding, see `CheckScand`.
    """

    def __init__(self, key: str = "scan_check") -> None:
        self.key = key

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Print the suspicious scans of a batch."""
        for item in engine.state.output:
            if item[self.key] is not None and item[self.key]["suspicious"]:
                name = item["image"].meta["filename_or_obj"]
                reason = item[self.key]["reason"]
                print(printable(f"{name}: not like the training data: {reason}"))


def expected_sentence(thresholds: Sequence[Mapping[str, Any]], left_out: int = 0) -> str:
    """What to expect of a healthy scan at the default threshold, or else the lowest volume's.

    Args:
        thresholds: see `FalsePositiveVolumes.calibrated` and `HealthyFindings.summary`.
        left_out: how many of the scans were trained on, see `LeaveOneOut`.
    """
    chosen = [one for one in thresholds if one["ml_per_scan"] == DEFAULT_VOLUME]
    one = (chosen or list(thresholds))[0]
    scans, smallest = one["scans"], one["min_lesion_ml"]
    of_size = f" of at least {smallest:g} ml" if smallest else ""
    alone = ", which says nothing about how scans differ" if scans == 1 else ""
    return (
        f"At the threshold for {one['ml_per_scan']:g} ml, expect {one['mean_ml']:.1f} ml"
        f"{_shown(one['interval'])} and {one['findings_per_scan']:.1f} findings{of_size}"
        f"{_shown(one['findings_interval'])} in a healthy scan (from"
        f" {_scans_text(scans, left_out)}{alone})."
    )


def _scans_text(scans: int, left_out: int) -> str:
    """Which healthy scans a calibration has seen, in words."""
    held_back = scans - left_out
    text = f"{held_back} held-back scan{'' if held_back == 1 else 's'}"
    if left_out:
        text += f" and {left_out} training scans, each scored by the model without it"
    return text


def _shown(interval: Sequence[float] | None) -> str:
    """An interval in words; nothing where it is unknown."""
    return "" if interval is None else f" (95 % interval {interval[0]:.1f} to {interval[1]:.1f})"


def _volume_table(thresholds: Sequence[Mapping[str, Any]], which: str) -> str:
    """False-positive volumes with their thresholds and how sure they are, for the screen."""
    scans = thresholds[0]["scans"]
    header = "{:>10} {:>10} {:>26} {:>13} {:>10}"
    lines = [
        f"False-positive volume of healthy scans, ml a scan: {which}",
        header.format(
            "asked for", "threshold", "95 % interval of the mean", "highest scan", "findings"
        ),
    ]
    for one in thresholds:
        interval = one["interval"]
        shown = "unknown" if interval is None else f"{interval[0]:.2g} to {interval[1]:.2g}"
        lines.append(
            f"{one['ml_per_scan']:10g} {one['threshold']:10.4f} {shown:>26}"
            f" {one['highest_ml']:13.2f} {one['findings_per_scan']:10.1f}"
        )
    chance = f"at most {100 / (scans + 1):.0f} % of healthy scans like these have more"
    return "\n".join([*lines, f"({chance} than the highest scan)"])


def _check_line(reference: Mapping[str, Any] | None, scans: int) -> str:
    if reference is None:
        return f"Scan check: not calibrated, it needs at least {MIN_SCANS} scans, got {scans}"
    low, high = min(reference["distances"]), max(reference["distances"])
    return (
        f"Scan check: healthy scans differ by {100 * low:.0f} to {100 * high:.0f} % from each"
        f" other; p-values are exact down to 1 / {scans + 1} = {1 / (scans + 1):.2g}, below that"
        " they take the differences as normal"
    )
