"""All figures of a paper from what an evaluation saved, scan by scan; no network runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

_PROTOTYPES, _ROWS, _CASES = 12, 4, 6
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
    mixture = next(one for one in network.mixtures if one.fitted)
    means, weights = (x.detach().double().numpy() for x in (mixture.means, mixture.weights))
    colors = prototype_colors(means, weights)
    atlas = Atlas(np.argsort(-weights, kind="stable")[:_PROTOTYPES], network, len(scans))
    metrics, dices = _measured(scans, atlas)
    lesions = [i for i, image in enumerate(metrics.subjects) if image["anomalous"]]
    if not lesions:
        raise InputError(f"{root}: must have a test scan with a lesion, got {len(scans)} without")
    healthy = [i for i in range(len(scans)) if i not in lesions][: _ROWS // 2]
    rows = healthy + lesions[: _ROWS - len(healthy)]
    rates = network.false_positive_rates.tolist()
    thresholds = dict(zip(rates, network.thresholds.tolist(), strict=True))
    figures: dict[str, Callable[[], Figure]] = {
        "curves": lambda: curve_figure(metrics.pool, thresholds),
        "scores": lambda: score_figure(metrics.pool, thresholds),
        "cases": lambda: case_figure(_cases(scans, lesions, metrics, dices), scans.threshold),
        "components": lambda: component_figure([scans[i] for i in rows], colors),
        "prototypes": lambda: atlas_figure(atlas, weights, colors),
    }
    if comparison is not None and Path(comparison).is_file():
        trials = _trials(Path(comparison))
        figures["tradeoff"] = lambda: tradeoff_figure(trials)
    return [p for name, draw in figures.items() for p in save_figure(draw(), folder, name)]


def _measured(scans: SavedScans, atlas: Atlas) -> tuple[AnomalyMetrics, list[float]]:
    """Metrics of the maps and Dice of each scan's mask, from one pass that fills the atlas, too."""
    metrics = AnomalyMetrics(Thresholds(torch.zeros(0, dtype=torch.float64), torch.zeros(0)))
    dices = []
    for number in tqdm(range(len(scans)), "Test scans"):
        _, scan = scans[number]
        volumes = (scan.anomaly, scan.mask, scan.label)
        anomaly, mask, label = (torch.from_numpy(np.ascontiguousarray(x)) for x in volumes)
        metrics.update([{"pred": anomaly[None], "label": label[None]}])
        dices.append(dice_score(mask > 0, label))
        atlas.add(scan)
    return metrics, dices


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
    return SavedScans(root, output, rule=rule, axis="RLAPIS".index(codes[axis]) // 2)


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
