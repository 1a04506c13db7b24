"""Saved anomaly maps measured as an evaluation measures its own: table, JSON and CSV."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from monai_dpmm.errors import InputError
from monai_dpmm.files import plain, replacement
from monai_dpmm.io.datalist import data_root, datalist
from monai_dpmm.io.label_loading import LabelRule, lesions
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.metrics.anomaly_metrics import AnomalyMetrics
from monai_dpmm.metrics.evaluation_size import Protocol
from monai_dpmm.metrics.image_metrics import Thresholds
from monai_dpmm.network.thresholds import DEFAULT_RATES, thresholds_at
from monai_dpmm.report.environment import environment
from monai_dpmm.study.external_maps import find_maps, laid_over, load_map, matched_maps
from monai_dpmm.study.tables import as_csv

__all__ = ["healthy_thresholds", "measured_maps", "write_scores"]

METRICS, IMAGES = "metrics.json", "images.csv"


def healthy_thresholds(
    folder: str | Path, postfix: str = "", rates: Sequence[float] = DEFAULT_RATES
) -> Thresholds:
    """Thresholds at false-positive rates of the pixels of all maps in a folder, healthy images'.

    Where a detector calibrates on its patches, saved maps have pixels only. Needs about 20 bytes a
    pixel.

    Raises:
        InputError: see `find_maps` and `load_map`, and where a score is not finite.
        ValueError: for fewer pixels than a rate needs.
    """
    scores = []
    for path in find_maps(folder, postfix):
        scores.append(torch.from_numpy(load_map(path)[0].ravel()))
        if not bool(scores[-1].isfinite().all()):
            raise InputError(f"{path}: scores must be finite, got NaN or infinite ones")
    false_positive_rates = torch.tensor(sorted(rates), dtype=torch.float64)
    thresholds = thresholds_at(torch.cat(scores), false_positive_rates)
    return Thresholds(false_positive_rates, thresholds)


def measured_maps(
    maps_dir: str | Path,
    dataset_dir: str | Path,
    *,
    healthy: str | Path | None = None,
    protocol: Protocol | int = "native",
    rule: LabelRule | int = "positive",
    bootstrap: int = 1000,
    postfix: str = "",
    pattern: str | None = None,
) -> AnomalyMetrics:
    """Metrics of the maps of a data set's test images, one image in memory at a time.

    Args:
        maps_dir: folder of maps, named like the images; see `monai_dpmm.study.external_maps`.
        dataset_dir: with test images and labels, see `monai_dpmm.scans.datalist`.
        healthy: folder of maps of healthy validation images, for thresholds; without it there are
            no metrics at false-positive rates, and no FROC curve.
        protocol: see `AnomalyMetrics`.
        rule: what a mask counts as lesion, see `LoadLabeld`.
        bootstrap: see `AnomalyMetrics`.
        postfix: what the names of maps end with beyond the image's name.
        pattern: of the names of the images, see `datalist`; maps of others may be there.

    Raises:
        InputError: for maps that are missing, extra, unreadable or of another shape.
        ValueError: see `AnomalyMetrics` and `healthy_thresholds`.
    """
    items = datalist(dataset_dir, "test", labels=True, pattern=pattern)
    images = [item["image"] for item in items]
    others = [] if pattern is None else datalist(dataset_dir, "test")
    left = [item["image"] for item in others if item["image"] not in images]
    paths = matched_maps(images, maps_dir, postfix, left)
    none = Thresholds(torch.zeros(0, dtype=torch.float64), torch.zeros(0))
    thresholds = none if healthy is None else healthy_thresholds(healthy, postfix)
    metrics = AnomalyMetrics(thresholds, protocol=protocol, bootstrap=bootstrap)
    load, picture = LoadVolume(allow_constant=True), LoadVolume()
    for path, item in zip(paths, items, strict=True):
        healthy = "label" not in item  # known to be, see `datalist`
        label = torch.zeros_like(picture(item["image"])[:1]) if healthy else load(item["label"])
        label = lesions(label, rule)
        name = os.path.relpath(item["image"], data_root(dataset_dir))
        pred = MetaTensor(laid_over(path, item["image"], label), meta={"filename_or_obj": name})
        known = {key: item[key] for key in ("patient", "anomalous") if key in item}
        metrics.update([{"pred": pred, "label": label, **known}])
    metrics.compute()
    return metrics


def write_scores(folder: str | Path, metrics: AnomalyMetrics) -> Path:
    """Folder with `metrics.json`, all of an evaluation, and `images.csv`, a line an image.

    Files of an earlier run are replaced when the new ones are complete; others are left alone.
    """
    out = Path(folder).expanduser()
    pairs = zip(*map(torch.Tensor.tolist, metrics.detector), strict=True)
    report = {
        "metrics": {**metrics.compute(), "protocol": metrics.protocol},
        "intervals": metrics.intervals,
        "thresholds": {f"{rate:.3g}": threshold for rate, threshold in pairs},
        "froc": metrics.froc and metrics.froc._asdict(),
        "subjects": metrics.subjects,
        "environment": environment(),
    }
    columns = list(dict.fromkeys(name for subject in metrics.subjects for name in subject))
    rows = [[_cell(subject.get(name, "")) for name in columns] for subject in metrics.subjects]
    with replacement(out, {}, (IMAGES, METRICS)) as partial:
        with (partial / IMAGES).open("w", newline="\r\n", encoding="utf-8") as file:
            file.write(as_csv(columns, rows))
        text = json.dumps(plain(report), indent=1, allow_nan=False, ensure_ascii=False)
        (partial / METRICS).write_text(f"{text}\n", encoding="utf-8")
    return out


def _cell(value: Any) -> Any:
    """A value in a CSV: empty for NaN."""
    return "" if isinstance(value, float) and math.isnan(value) else value
