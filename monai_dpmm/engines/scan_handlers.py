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

from monai_dpmm.errors import printable
from monai_dpmm.files import atomic_write
from monai_dpmm.network.geometry import slice_axes
from monai_dpmm.transforms.operating_point import FalsePositiveVolumes, voxel_ml
from monai_dpmm.transforms.scan_check import MIN_SCANS, prototype_usage, scan_reference

if TYPE_CHECKING:
    from monai_dpmm.network.detector import AnomalyDetector

__all__ = ["ScanCalibration", "SuspiciousScans"]


class ScanCalibration:
    """Calibrate a trained model on healthy volumes: thresholds by volume, and the scan check.

    Attach it to an evaluator whose inferer returns the component map. What it finds is added to
    the model's settings: "volume_thresholds" (see `FalsePositiveVolumes.calibrated`) and
    "scan_reference" (see `scan_reference`; None for fewer than 3 scans).

    Args:
        path: JSON file of the settings, models/model.json; replaced atomically at the end.
        detector: that scores the volumes.
        false_positive_volumes: mean ml of false positives in a healthy scan to find thresholds for.
        axis: that the slices were taken along, or several.
        anomaly_key: key of the anomaly volume on the scan's own grid.
    """

    def __init__(
        self,
        path: str | Path,
        detector: AnomalyDetector,
        false_positive_volumes: Sequence[float],
        axis: int | Sequence[int] = 2,
        anomaly_key: str = "pred_anomaly",
    ) -> None:
        self.path = Path(path)
        self.detector = detector
        self.false_positive_volumes = list(false_positive_volumes)
        self.axis = slice_axes(axis)[0]
        self.anomaly_key = anomaly_key
        self._clear()

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self._clear())
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._see)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.COMPLETED, self)

    def _clear(self) -> None:
        self._volumes = FalsePositiveVolumes()
        self._usages: list[Tensor] = []

    def _see(self, engine: Any) -> None:
        count = self.detector.mixture.components
        for pred in engine.state.output[Keys.PRED].as_subclass(Tensor):
            self._usages.append(prototype_usage(pred[0], pred[1], count, self.axis))

    def _count(self, engine: Any) -> None:
        for item in engine.state.output:
            anomaly = item[self.anomaly_key]
            self._volumes.add(anomaly, voxel_ml(anomaly.affine))

    def __call__(self, engine: Engine) -> None:
        """Write what was found into the model's settings, and print it."""
        enough = len(self._usages) >= MIN_SCANS
        found: dict[str, Any] = {
            "volume_thresholds": self._volumes.calibrated(
                self.false_positive_volumes, self.detector
            ),
            "scan_reference": scan_reference(self._usages) if enough else None,
        }
        settings = json.loads(self.path.read_text()) | found
        with atomic_write(self.path) as partial:
            partial.write_text(json.dumps(settings, indent=4))
        print(_volume_table(found["volume_thresholds"]))
        print(_check_line(found["scan_reference"], len(self._usages)))
        print(f"Written to {self.path}")


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


def _volume_table(thresholds: Sequence[Mapping[str, Any]]) -> str:
    """False-positive volumes with their thresholds and how sure they are, for the screen."""
    scans = thresholds[0]["scans"]
    header = "{:>10} {:>10} {:>26} {:>13}"
    lines = [
        f"False-positive volume of {scans} healthy validation scans, ml a scan",
        header.format("asked for", "threshold", "95 % interval of the mean", "highest scan"),
    ]
    for one in thresholds:
        interval = one["interval"]
        shown = "unknown" if interval is None else f"{interval[0]:.2g} to {interval[1]:.2g}"
        lines.append(
            f"{one['ml_per_scan']:10g} {one['threshold']:10.4f} {shown:>26}"
            f" {one['highest_ml']:13.2f}"
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
