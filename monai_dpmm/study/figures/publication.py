"""All figures of a paper from what an evaluation saved, scan by scan; no network runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from monai_dpmm.errors import InputError, InputTypeError, cause
from monai_dpmm.files import json_object
from monai_dpmm.metrics.anomaly_metrics import AnomalyMetrics
from monai_dpmm.metrics.image_metrics import Thresholds, dice_score
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.report.scan_figure import require_matplotlib
from monai_dpmm.study.figures.atlas import Atlas, atlas_figure
from monai_dpmm.study.figures.galleries import Case, case_figure, component_figure
from monai_dpmm.study.figures.prototype_colors import prototype_colors
from monai_dpmm.study.figures.results import SavedScans, single_slice
from monai_dpmm.study.figures.scores import curve_figure, score_figure, tradeoff_figure
from monai_dpmm.study.figures.sheet import save_figure, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PROTOTYPES, _EXAMPLES, _ATLAS_SCANS = 12, 8, 8
_ROWS, _CASES = 4, 6
_TRADED = ("milliseconds", "megabytes", "auroc", "aupr")  # of a trial, for Fig. 3

__all__ = ["write_figures"]


def write_figures(
    parser: ConfigParser, folder: str | Path, comparison: str | Path | None = None
) -> list[Path]:
    """Paths of the figures, each a PDF and a PNG, of an evaluation of a labelled data set.

    "curves" (ROC, precision and recall) and "scores" (histograms with the thresholds) of all
    pixels, "cases" (from the best to the worst found scan), "components" (the paper's Fig. 2),
    "prototypes" (where these fit best), and "tradeoff" (Fig. 3) where there is a comparison.
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
    weights, means = (
        x.detach().double().numpy() for x in (network.mixture.weights, network.mixture.means)
    )
    order = np.argsort(-weights, kind="stable")[:_PROTOTYPES]
    step = math.ceil(len(scans) / _ATLAS_SCANS)
    patch = network.patch_size / network.image_size
    atlas = Atlas(order.tolist(), _EXAMPLES, len(range(0, len(scans), step)), patch)
    metrics = AnomalyMetrics(Thresholds(torch.zeros(0, dtype=torch.float64), torch.zeros(0)))
    dices = []
    for number in tqdm(range(len(scans)), "Test scans"):
        _, scan = scans[number]
        mask, label, anomaly = (
            torch.from_numpy(np.ascontiguousarray(x)) for x in (scan.mask, scan.label, scan.anomaly)
        )
        metrics.update([{"pred": anomaly[None], "label": label[None]}])
        dices.append(dice_score(mask > 0, label))
        if number % step == 0:
            atlas.add(scan)
    lesions = [number for number, image in enumerate(metrics.subjects) if image["anomalous"]]
    if not lesions:
        raise InputError(f"{root}: must have a test scan with a lesion, got {len(scans)} without")
    auprs = [image["aupr"] for image in metrics.subjects]
    ranked = sorted(lesions, key=lambda number: -auprs[number])
    healthy = [number for number in range(len(scans)) if number not in lesions][: _ROWS // 2]
    rows = healthy + lesions[: _ROWS - len(healthy)]
    colors = prototype_colors(means, weights)
    rates = zip(network.false_positive_rates.tolist(), network.thresholds.tolist(), strict=True)
    thresholds = dict(rates)

    def case(rank: int) -> Case:
        name, scan = scans[ranked[rank]]
        quality = f"AUPR {auprs[ranked[rank]]:.2f}, Dice {dices[ranked[rank]]:.2f}"
        title = f"{rank + 1} of {len(ranked)}: {short(name, 14)}"
        return Case(title, quality, single_slice(scan))

    chosen = np.linspace(0, len(ranked) - 1, min(_CASES, len(ranked))).round().astype(int)
    figures: dict[str, Callable[[], Figure]] = {
        "curves": lambda: curve_figure(metrics.pool, thresholds),
        "scores": lambda: score_figure(metrics.pool, thresholds),
        "cases": lambda: case_figure([case(rank) for rank in chosen], scans.threshold),
        "components": lambda: component_figure([scans[number] for number in rows], colors),
        "prototypes": lambda: atlas_figure(atlas, weights, colors),
    }
    if comparison is not None and Path(comparison).is_file():
        trials = _trials(Path(comparison))
        figures["tradeoff"] = lambda: tradeoff_figure(trials)
    return [p for name, draw in figures.items() for p in save_figure(draw(), folder, name)]


def _saved_scans(parser: ConfigParser, root: str) -> SavedScans:
    """The test scans with what the evaluation saved, in slices as the model has them."""
    keys = ("output_dir", "lesion_label", "orientation", "slice_axis")
    output, rule, codes, axes = map(parser.get_parsed_content, keys)
    axis = axes if isinstance(axes, int) else axes[0]
    return SavedScans(root, output, rule=rule, axis="RLAPIS".index(codes[axis]) // 2)


def _trials(comparison: Path) -> list[dict[str, Any]]:
    """Records of the trials in a comparison's file, which may come from a stranger.

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
