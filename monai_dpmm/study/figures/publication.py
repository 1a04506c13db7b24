"""All figures of a paper from what an evaluation saved, scan by scan; no network runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from monai_dpmm.errors import InputError, InputTypeError, cause
from monai_dpmm.files import json_object
from monai_dpmm.metrics.anomaly_metrics import AnomalyMetrics
from monai_dpmm.metrics.froc import LesionCounts, lesion_counts
from monai_dpmm.metrics.image_metrics import Thresholds, dice_score
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.report.prototype_colors import colors_of
from monai_dpmm.report.scan_figure import require_matplotlib
from monai_dpmm.study.figures.atlas import Atlas, atlas_figure
from monai_dpmm.study.figures.galleries import Case, case_figure, component_figure
from monai_dpmm.study.figures.results import SavedScans, single_slice
from monai_dpmm.study.figures.scores import (
    OperatingPoint,
    curve_figure,
    score_figure,
    tradeoff_figure,
)
from monai_dpmm.study.figures.sheet import save_figure, short
from monai_dpmm.transforms.regions import connected_regions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PROTOTYPES, _ROWS, _CASES = 12, 4, 6
_TRADED = ("milliseconds", "megabytes", "auroc", "aupr")  # of a trial, for Fig. 3

__all__ = ["write_figures"]


def write_figures(
    parser: ConfigParser, folder: str | Path, comparison: str | Path | None = None
) -> list[Path]:
    """Paths of the figures, each a PDF and a PNG, of an evaluation of a labelled data set.

    "curves" (ROC, precision and recall of all pixels, FROC of lesions where the scans are volumes),
    "scores" (histograms of all pixels with the thresholds), "cases" (from the best to the worst
    found scan), "components" (the paper's Fig. 2), "prototypes" (where these fit best), and
    "tradeoff" (Fig. 3) where there is a comparison.
    Scans are read one at a time from what the evaluation saved in its output_dir.

    Args:
        parser: of the config inference with the model's own settings.
        folder: made where it does not exist.
        comparison: `comparison.json` of a comparison of methods.

    Raises:
        InputError: where there is no trained model or no evaluation of it, a test scan has no
            label, or none a lesion.
        ImportError: without matplotlib.
    """
    require_matplotlib()
    root = parser.get_parsed_content("dataset_dir")
    scans = _saved_scans(parser, root)
    network: AnomalyDetector = parser.get_parsed_content("network_def")
    mixture = next(one for one in network.mixtures if one.fitted)
    weights = mixture.weights.detach().double().numpy()
    colors = next(one for one in colors_of(network.mixtures) if len(one))
    atlas = Atlas(np.argsort(-weights, kind="stable")[:_PROTOTYPES], network, len(scans))
    rates, thresholds = network.false_positive_rates.cpu(), network.thresholds.cpu()
    metrics, masks = _measured(scans, atlas, Thresholds(rates, thresholds))
    lesions = [i for i, image in enumerate(metrics.subjects) if image["anomalous"]]
    if not lesions:
        raise InputError(f"{root}: must have a test scan with a lesion, got {len(scans)} without")
    healthy = [i for i in range(len(scans)) if i not in lesions][: _ROWS // 2]
    rows = healthy + lesions[: _ROWS - len(healthy)]
    points = _operating_points(metrics, masks, scans.threshold)
    dices = [mask.dice for mask in masks]
    figures: dict[str, Callable[[], Figure]] = {
        "curves": lambda: curve_figure(metrics.pool, points, metrics.froc),
        "scores": lambda: score_figure(metrics.pool, points),
        "cases": lambda: case_figure(_cases(scans, lesions, metrics, dices), scans.threshold),
        "components": lambda: component_figure([scans[i] for i in rows], colors),
        "prototypes": lambda: atlas_figure(atlas, weights, colors),
    }
    if comparison is not None and Path(comparison).is_file():
        trials = _trials(Path(comparison))
        figures["tradeoff"] = lambda: tradeoff_figure(trials)
    return [p for name, draw in figures.items() for p in save_figure(draw(), folder, name)]


class _Mask(NamedTuple):
    """What a scan's saved mask is worth: its Dice, its lesions and false findings."""

    dice: float
    counts: LesionCounts


def _measured(
    scans: SavedScans, atlas: Atlas, thresholds: Thresholds
) -> tuple[AnomalyMetrics, list[_Mask]]:
    """Metrics of the maps and what each scan's mask is worth; the pass fills the atlas, too."""
    metrics = AnomalyMetrics(thresholds)
    masks = []
    for number in tqdm(range(len(scans)), "Test scans"):
        _, scan = scans[number]
        volumes = (scan.anomaly, scan.mask, scan.label)
        anomaly, mask, label = (torch.from_numpy(np.ascontiguousarray(x)) for x in volumes)
        metrics.update([{"pred": anomaly[None], "label": label[None]}])
        counts = lesion_counts(mask > 0, connected_regions(label > 0))
        masks.append(_Mask(dice_score(mask > 0, label), counts))
        atlas.add(scan)
    return metrics, masks


def _operating_points(
    metrics: AnomalyMetrics, masks: Sequence[_Mask], threshold: float
) -> list[OperatingPoint]:
    """The calibrated thresholds and that of the masks, and what each finds of volumes."""
    found = metrics.compute()
    calibrated = metrics.detector
    points = []
    rates = calibrated.false_positive_rates.tolist()
    for rate, value in zip(rates, calibrated.thresholds.tolist(), strict=True):
        name = f"fpr_{rate:.3g}"
        false = found.get(f"false_positives_per_scan_at_{name}", math.nan)
        sensitivity = found.get(f"lesion_sensitivity_at_{name}", math.nan)
        title = f"{100 * rate:.3g} % of healthy patches"
        points.append(OperatingPoint(title, value, false, sensitivity))
    lesions = sum(mask.counts.lesions for mask in masks)
    if metrics.froc is None or not lesions:
        return [*points, OperatingPoint("mask", threshold)]
    false = sum(mask.counts.false_positives for mask in masks) / len(masks)
    sensitivity = sum(mask.counts.found for mask in masks) / lesions
    return [*points, OperatingPoint("mask", threshold, false, sensitivity)]


def _cases(
    scans: SavedScans, lesions: Sequence[int], metrics: AnomalyMetrics, dices: Sequence[float]
) -> list[Case]:
    """Scans with a lesion from the best to the worst found one by AUPR, evenly taken."""
    auprs = {i: metrics.subjects[i]["aupr"] for i in lesions}
    ranked = sorted(lesions, key=lambda i: -auprs[i])
    cases = []
    for rank in np.linspace(0, len(ranked) - 1, min(_CASES, len(ranked))).round().astype(int):
        number = ranked[rank]
        name, scan = scans[number]
        title = f"{rank + 1} of {len(ranked)}: {short(name, 14)}"
        quality = f"AUPR {auprs[number]:.2f}, Dice {dices[number]:.2f}"
        cases.append(Case(title, quality, single_slice(scan)))
    return cases


def _saved_scans(parser: ConfigParser, root: str) -> SavedScans:
    """The test scans with what the evaluation saved, in slices as the model has them."""
    keys = ("output_dir", "lesion_label", "orientation", "slice_axis")
    output, rule, codes, axes = map(parser.get_parsed_content, keys)
    axis = axes if isinstance(axes, int) else axes[0]
    shown, pattern = "RLAPIS".index(codes[axis]) // 2, parser.get_parsed_content("pattern")
    return SavedScans(root, output, rule=rule, axis=shown, pattern=pattern)


def _trials(comparison: Path) -> list[dict[str, Any]]:
    """Records of the trials in a comparison's file, which is untrusted.

    Raises:
        InputError: where they are not what `compare` writes.
    """
    try:
        trials = list(json_object(comparison)["trials"])
        for trial in trials:
            first = next(iter(trial["scores"].values()))
            numbers = [trial["prototypes"], *(first[key] for key in _TRADED)]
            if not all(isinstance(number, int | float) for number in numbers):
                raise InputTypeError(f"numbers are needed, got {numbers}")
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        raise InputError(
            f"{comparison}: must be the file of a comparison, {cause(error)}"
        ) from error
    return trials
