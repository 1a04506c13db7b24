"""Report of an evaluation or inference run, as a handler of its engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine, Events

from monai_dpmm.distributed import interleaved, is_main_process
from monai_dpmm.report import metrics_table, write_report

if TYPE_CHECKING:
    from monai_dpmm.detector import AnomalyDetector
    from monai_dpmm.metrics import AnomalyMetrics

__all__ = ["ReportWriter"]

_READ_BY_NIBABEL = (".nii", ".nii.gz", ".mgz", ".mgh")


class ReportWriter:
    """Write the report of all volumes that an engine has saved, when it has finished.

    The engine's postprocessing must have put the image-level score at "score" and saved
    "pred_anomaly", "pred_mask" and "pred_component" by SaveImaged with savepath_in_metadict=True;
    the report reads those files one at a time, so that memory does not grow with their number. The
    table of metrics is printed. Of several processes, each with its own images (`own_items`), the
    main one writes the report of all.

    Args:
        folder: of the report, see `monai_dpmm.report.write_report`.
        detector: whose threshold is shown.
        false_positive_rate: rate of the threshold that made the masks.
        metrics: of the evaluation, if there were labels.
        history: JSON file of the training's `History`, if there is one.
    """

    def __init__(
        self,
        folder: str | Path,
        detector: AnomalyDetector,
        false_positive_rate: float,
        metrics: AnomalyMetrics | None = None,
        history: str | Path | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.detector = detector
        self.false_positive_rate = false_positive_rate
        self.metrics = metrics
        self.history = None if history is None else Path(history)
        self.subjects: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self.subjects.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self)

    def _collect(self, engine: Engine) -> None:
        for item in engine.state.output:
            source = str(item["image"].meta["filename_or_obj"])
            subject = {
                "name": _stem(source),
                "image": source,
                "anomaly": item["pred_anomaly"].meta["saved_to"],
                "mask": item["pred_mask"].meta["saved_to"],
                "components": item["pred_component"].meta["saved_to"],
                "score": item["score"],
                "threshold": float(self.detector.threshold(self.false_positive_rate)),
            }
            if getattr(item.get("label"), "meta", None):
                subject["label"] = item["label"].meta["filename_or_obj"]
            self.subjects.append(subject)

    def __call__(self, engine: Engine) -> None:
        """Write the report and print its table.

        Raises:
            OSError: in one line, where the report cannot be written, as on a full disk.
        """
        details = [] if self.metrics is None else self.metrics.subjects
        for subject, detail in zip(self.subjects, details, strict=False):
            subject["metrics"] = _shown(detail, self.false_positive_rate)
        subjects = interleaved(self.subjects)
        if subjects and is_main_process():
            try:
                self._write(engine, subjects)
            except OSError as error:
                reason = error.strerror or str(error)
                raise OSError(f"{self.folder}: could not be written, {reason}") from error

    def _write(self, engine: Engine, subjects: list[dict[str, Any]]) -> None:
        numbers = {k: v for k, v in engine.state.metrics.items() if isinstance(v, float)}
        intervals = {} if self.metrics is None else self.metrics.intervals
        protocol = {} if self.metrics is None else {"protocol": self.metrics.protocol}
        path = write_report(
            self.folder,
            subjects=subjects,
            history=self._history(),
            metrics=numbers or None,
            intervals=intervals,
            settings={"false_positive_rate": self.false_positive_rate} | protocol,
        )
        print(metrics_table({**numbers, **protocol}, subjects, intervals))
        print(f"Report: {path}")

    def _history(self) -> dict[str, list[Any]] | None:
        """Lists of the metrics over epochs, from the records of `History`."""
        if self.history is None or not self.history.is_file():
            return None
        records = json.loads(self.history.read_text())
        names = sorted({name for record in records for name in record})
        return {name: [record.get(name) for record in records] for name in names}


def _shown(detail: dict[str, Any], rate: float) -> dict[str, Any]:
    """What a table shows of an image: lesions and false positives at the rate of its mask only."""
    counts, own = ("found_at_", "false_positives_at_"), f"_at_fpr_{rate:.3g}"
    return {
        name: value
        for name, value in detail.items()
        if name not in ("name", "score") and (not name.startswith(counts) or name.endswith(own))
    }


def _stem(path: str) -> str:
    """File name without its suffixes, or the whole name of a folder."""
    name = Path(path).name
    if Path(path).is_dir():
        return name
    suffix = next((s for s in _READ_BY_NIBABEL if name.lower().endswith(s)), Path(name).suffix)
    return name[: len(name) - len(suffix)]
