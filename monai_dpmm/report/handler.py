"""Report of an evaluation or inference run, as a handler of its engine."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine, Events

from monai_dpmm.engines.distributed import interleaved, is_main_process
from monai_dpmm.engines.skipping import ScanEvaluator
from monai_dpmm.errors import FileError, InputError
from monai_dpmm.files import json_number, json_object, json_value
from monai_dpmm.io.result_files import VOLUMES
from monai_dpmm.io.suffixes import format_of, stem
from monai_dpmm.report.report import METRICS, metrics_table, write_report

if TYPE_CHECKING:
    from monai_dpmm.metrics.anomaly_metrics import AnomalyMetrics

__all__ = ["ReportWriter", "curves_of", "publish_report", "scan_subject"]

OPERATING_POINT = ("false_positive_rate", "false_positive_volume_ml")


def publish_report(
    folder: str | Path,
    subjects: Sequence[Mapping[str, Any]],
    *,
    metrics: Mapping[str, Any] | None = None,
    intervals: Mapping[str, Sequence[float]] | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[str]:
    """Write a report, print its table and where it is; a line for each subject that it leaves out.

    One with metrics is not replaced by one without: it is moved beside it, and that is told.

    Args:
        folder: of the report.
        subjects: see `monai_dpmm.report.report.write_report`.
        metrics: pooled metrics by name.
        intervals: of some of them.
        settings: how the results came about; the table names the "protocol".
        **options: others of `write_report`.

    Raises:
        OSError: in one line, where the report cannot be written, as on a full disk.
    """
    left_out: list[str] = []
    shared = {"metrics": metrics, "intervals": intervals, "settings": settings}
    shared |= {"left_out": left_out}
    try:
        with nullcontext() if metrics else _aside(Path(folder)) as moved:
            path = write_report(folder, subjects=subjects, **shared, **options)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(f"{folder}: could not be written, {reason}") from error
    protocol = {k: v for k, v in (settings or {}).items() if k == "protocol"}
    print(metrics_table({**(metrics or {}), **protocol}, subjects, intervals))
    if moved is not None:
        print(f"The report with metrics that was there: {moved}")
    print(f"Report: {path}")
    return left_out


@contextmanager
def _aside(folder: Path) -> Iterator[Path | None]:
    """Place that a report with metrics is moved to, None where there is none.

    What fails moves it back.
    """
    place = _place_beside(folder) if _has_metrics(folder) else None
    if place is not None:
        folder.rename(place)
    try:
        yield place
    except BaseException:
        if place is not None:
            place.rename(folder)
        raise


def _has_metrics(folder: Path) -> bool:
    try:
        return bool(json_object(folder / METRICS).get("metrics"))
    except (OSError, ValueError):
        return False


def _place_beside(folder: Path) -> Path:
    places = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
    return next(place for place in places if not place.exists())


def curves_of(history: str | Path | None) -> dict[str, list[Any]] | None:
    """Lists of the metrics over epochs, from the records that `History` wrote, where it did.

    Raises:
        InputError: where the file holds anything else.
    """
    if history is None or not Path(history).is_file():
        return None
    try:
        records = [{k: json_number(v) for k, v in r.items()} for r in json_value(history)]
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{history}: must be a training's history, {error}") from error
    names = sorted({name for record in records for name in record})
    return {name: [record.get(name) for record in records] for name in names}


def scan_subject(
    image: str | Path,
    saved: Mapping[str, str | Path],
    *,
    score: Any,
    threshold: float,
    label: str | Path | None = None,
) -> dict[str, Any]:
    """A scan as `write_report` takes it.

    Args:
        image: the scan's file or folder.
        saved: files of its results, by their postfix "anomaly", "mask" and "component".
        score: of the whole image.
        threshold: of the mask.
        label: file of the label, where there is one.
    """
    subject = {
        "name": _stem(str(image)),
        "image": str(image),
        "anomaly": saved["anomaly"],
        "mask": saved["mask"],
        "components": saved["component"],
        "score": score,
        "threshold": threshold,
    }
    return subject if label is None else {**subject, "label": str(label)}


class ReportWriter:
    """Write the report of all volumes that an engine has saved, when it has finished.

    The engine's postprocessing must have put the image-level score at "score", the mask's threshold
    at "threshold" (see `ThresholdAnomalyd`) and saved
    "pred_anomaly", "pred_mask" and "pred_component" by SaveImaged with savepath_in_metadict=True;
    the report reads those files one at a time, so that memory does not grow with their number. The
    table of metrics is printed. Of several processes, each with its own images (`own_items`), the
    main one writes the report of all.

    Args:
        folder: of the report, see `monai_dpmm.report.report.write_report`.
        detector: deprecated and without effect, as is the rate: the threshold is among the data.
        false_positive_rate: see `detector`.
        metrics: of the evaluation, if there were labels.
        history: JSON file of the training's `History`, if there is one.
    """

    def __init__(
        self,
        folder: str | Path,
        detector: Any = None,
        false_positive_rate: float | None = None,
        metrics: AnomalyMetrics | None = None,
        history: str | Path | None = None,
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
        self.history = None if history is None else Path(history)
        self.subjects: list[dict[str, Any]] = []
        self.point: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda _: self.subjects.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self)

    def _collect(self, engine: Engine) -> None:
        for item in engine.state.output:
            subject = scan_subject(
                item["image"].meta["filename_or_obj"],
                {name: item[f"pred_{name}"].meta["saved_to"] for name in VOLUMES},
                score=item["score"],
                threshold=item["threshold"]["threshold"],
                label=(getattr(item.get("label"), "meta", None) or {}).get("filename_or_obj"),
            )
            self.subjects.append(subject)
            self.point = {key: item["threshold"][key] for key in OPERATING_POINT}

    def __call__(self, engine: Engine) -> None:
        """Write the report and print its table.

        Raises:
            OSError: in one line, where the report cannot be written, as on a full disk.
        """
        details = [] if self.metrics is None else self.metrics.subjects
        for subject, detail in zip(self.subjects, details, strict=False):
            subject["metrics"] = _shown(detail, self.point["false_positive_rate"])
        subjects = interleaved(self.subjects)
        if subjects and is_main_process():
            numbers = {k: v for k, v in engine.state.metrics.items() if isinstance(v, float)}
            settings = {key: value for key, value in self.point.items() if value is not None}
            protocol = {} if self.metrics is None else {"protocol": self.metrics.protocol}
            left_out = publish_report(
                self.folder,
                subjects,
                metrics=numbers or None,
                intervals={} if self.metrics is None else self.metrics.intervals,
                settings=settings | protocol,
                history=curves_of(self.history),
            )
            if left_out and isinstance(engine, ScanEvaluator):
                engine.refused += left_out
            elif left_out:
                raise InputError(f"left out of the report: {'; '.join(left_out)}")


def _shown(detail: dict[str, Any], rate: float | None) -> dict[str, Any]:
    """What a table shows of an image: lesions and false positives at the rate of its mask only."""
    counts = ("found_at_", "false_positives_at_")
    own = () if rate is None else f"_at_fpr_{rate:.3g}"
    return {
        name: value
        for name, value in detail.items()
        if name not in ("name", "score") and (not name.startswith(counts) or name.endswith(own))
    }


def _stem(path: str) -> str:
    """File name without its suffixes, or the whole name of a folder."""
    if Path(path).is_dir():
        return Path(path).name
    return stem(path) if format_of(path) else Path(path).stem
