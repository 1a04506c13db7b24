"""Report of an evaluation or inference run, as a handler of its engine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine, Events
from torch import Tensor

from monai_dpmm.engines.distributed import interleaved, is_main_process
from monai_dpmm.engines.skipping import ScanEvaluator
from monai_dpmm.errors import InputError
from monai_dpmm.io.result_files import VOLUMES
from monai_dpmm.report.environment import environment
from monai_dpmm.report.prototype_colors import colors_of, written_colors
from monai_dpmm.report.saved_findings import OPERATING_POINT, SavedScan, unique_names
from monai_dpmm.report.saved_results import curves_of, report_measured
from monai_dpmm.transforms.metatensors import directions

if TYPE_CHECKING:
    from monai_dpmm.metrics.anomaly_metrics import AnomalyMetrics
    from monai_dpmm.mixture.dpmm import DPMM

_KEPT = ("score", "threshold", "metrics", "direction")

__all__ = ["ReportWriter"]


class ReportWriter:
    """Write the report of all volumes that an engine has saved, when it has finished.

    What was measured and is in no file yet is written first, then the page is made of the files, as
    the command `report` makes it again. The engine's postprocessing must have saved the results
    (see `SaveResultsd`), and put the mask's threshold at "threshold" (see `ThresholdAnomalyd`). The
    table of metrics is printed. Of several processes, each with its own images (`own_items`), the
    main one writes the report of all.

    Args:
        folder: of the report, see `monai_dpmm.report.report.write_report`.
        detector: deprecated and without effect, as is the rate: the threshold is among the data.
        false_positive_rate: see `detector`.
        metrics: of the evaluation, if there were labels.
        history: JSON file of the training's `History`, if there is one.
        about: what the run was made with: "model", "data", "backbone", "prototypes" and what else
            the report shall tell.
    """

    def __init__(
        self,
        folder: str | Path,
        detector: Any = None,
        false_positive_rate: float | None = None,
        metrics: AnomalyMetrics | None = None,
        history: str | Path | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if detector is not None or false_positive_rate is not None:
            warnings.warn(
                "detector and false_positive_rate go: the threshold is among the data, where"
                " ThresholdAnomalyd puts it",
                DeprecationWarning,
                stacklevel=2,
            )
        self.folder = Path(folder)
        self.metrics = metrics
        self.history = history
        self.about = {k: v for k, v in (about or {}).items() if v is not None}
        self.scans: list[SavedScan] = []
        self.measured: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self._clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self)

    def _clear(self) -> None:
        self.scans, self.measured = [], []

    def _collect(self, engine: Engine) -> None:
        for item in engine.state.output:
            image = item["image"].meta["filename_or_obj"]
            label = (getattr(item.get("label"), "meta", None) or {}).get("filename_or_obj")
            files = {name: Path(item[f"pred_{name}"].meta["saved_to"]) for name in VOLUMES}
            files["findings"] = Path(item["findings_path"])
            self.scans.append(SavedScan(str(image), label, files))
            measured = {"score": item["score"], "metrics": {}, **item["threshold"]}
            measured["direction"] = _direction(engine, item["image"])
            self.measured.append(measured)

    def __call__(self, engine: Engine) -> None:
        """Write what was measured and the report, and print its table.

        Raises:
            OSError: in one line, where they cannot be written, as on a full disk.
        """
        details = [] if self.metrics is None else self.metrics.subjects
        for subject, detail in zip(self.measured, details, strict=False):
            subject["metrics"] = _shown(detail, subject["false_positive_rate"])
        scans, subjects = interleaved(self.scans), interleaved(self.measured)
        skipped = interleaved(engine.skipped if isinstance(engine, ScanEvaluator) else [])
        if not (scans or skipped) or not is_main_process():
            return
        names = unique_names([scan.image for scan in scans])
        points = [{key: subject.pop(key) for key in OPERATING_POINT} for subject in subjects]
        agreed = points[0] if points else {}
        settings = dict(self.about)
        settings |= {key: value for key, value in agreed.items() if value is not None}
        if self.metrics is not None:
            settings["protocol"] = self.metrics.protocol
        metrics = {k: v for k, v in engine.state.metrics.items() if isinstance(v, float)}
        record = {
            "metrics": metrics,
            "intervals": {} if self.metrics is None else self.metrics.intervals,
            "left_out": skipped,
            "subjects": [
                {"name": name, **{k: s[k] for k in _KEPT}}
                for name, s in zip(names, subjects, strict=True)
            ],
            "history": curves_of(self.history),
            "settings": settings,
            "environment": environment(),
            "prototype_colors": [written_colors(of) for of in colors_of(_mixtures(engine))],
        }
        left_out = report_measured(scans, self.folder, record)
        if left_out and isinstance(engine, ScanEvaluator):
            engine.skipped += left_out
        elif left_out:
            raise InputError(f"left out of the report: {'; '.join(left_out)}")


def _mixtures(engine: Engine) -> Sequence[DPMM]:
    """Mixtures of the engine's network, none where it has none."""
    return getattr(getattr(engine, "network", None), "mixtures", ())


def _direction(engine: Engine, image: Tensor) -> int:
    """The direction whose prototypes the component map of an image shows, see `AnomalyInferer`."""
    fitted = [mixture.fitted for mixture in _mixtures(engine)]
    axes = getattr(getattr(engine, "inferer", None), "axes", None)  # another inferer has none
    if len(fitted) < 2 or axes is None:
        return 0
    return next((number for number, _ in directions(image, axes) if fitted[number]), 0)


def _shown(detail: dict[str, Any], rate: float | None) -> dict[str, Any]:
    """What a table shows of an image: lesions and false positives at the rate of its mask only."""
    counts = ("found_at_", "false_positives_at_")
    own = () if rate is None else f"_at_fpr_{rate:.3g}"
    return {
        name: value
        for name, value in detail.items()
        if name not in ("name", "score") and (not name.startswith(counts) or name.endswith(own))
    }
