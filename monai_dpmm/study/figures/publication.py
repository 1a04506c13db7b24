"""All figures of a paper from a trained model and a labelled data set, scan by scan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from monai_dpmm.errors import InputError, InputTypeError, cause
from monai_dpmm.files import json_object
from monai_dpmm.io.datalist import datalist
from monai_dpmm.metrics.image_metrics import dice_score
from monai_dpmm.metrics.score_histogram import ScoreHistogram
from monai_dpmm.report.display import Scan
from monai_dpmm.report.scan_figure import require_matplotlib
from monai_dpmm.study.figures.atlas import Atlas, atlas_figure
from monai_dpmm.study.figures.cases import Case, Cases, single_slice
from monai_dpmm.study.figures.galleries import case_figure, component_figure
from monai_dpmm.study.figures.prototype_colors import prototype_colors
from monai_dpmm.study.figures.scenes import Scene, Scenes
from monai_dpmm.study.figures.scores import curve_figure, score_figure, tradeoff_figure
from monai_dpmm.study.figures.style import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PROTOTYPES, _EXAMPLES, _ATLAS_SCANS, _ATLAS_SLICES = 12, 8, 8, 24
_ROWS, _CASES = 4, 6
_TRADED = ("milliseconds", "megabytes", "auroc", "aupr")  # of a trial, for Fig. 3

__all__ = ["write_figures"]


def write_figures(
    parser: ConfigParser, folder: str | Path, comparison: str | Path | None = None
) -> list[Path]:
    """Paths of the figures, each a PDF and a PNG, of a trained model on a labelled data set.

    "curves" (ROC, precision and recall) and "scores" (histograms with the thresholds) of all
    pixels, "cases" (from the best to the worst found scan), "components" (the paper's Fig. 2),
    "prototypes" (the patches nearest to them, of healthy training scans where there are any), and
    "tradeoff" (Fig. 3) where there is a comparison. Scans are in memory one at a time.

    Args:
        parser: of the configs train and evaluate, with the model's own settings between them.
        folder: made where it does not exist.
        comparison: `comparison.json` of a comparison of methods.

    Raises:
        InputError: where there is no trained model, a test scan has no label, or none a lesion.
        ImportError: without matplotlib.
    """
    require_matplotlib()
    root = parser.get_parsed_content("dataset_dir")
    tests = datalist(root, "test", labels=True)
    scenes = Scenes(parser)
    gathered = _Gathered(scenes)
    for scene in tqdm(scenes(tests), "Test scans", len(tests)):
        gathered.add(scene)
    if not gathered.cases.values:
        raise InputError(f"{root}: must have a test scan with a lesion, got {len(tests)} without")
    mixture = scenes.network.mixture
    weights, means = (x.detach().cpu().double().numpy() for x in (mixture.weights, mixture.means))
    colors = prototype_colors(means, weights)
    atlas = _atlas(scenes, weights, _healthy(parser, tests) or tests)
    figures: dict[str, Callable[[], Figure]] = {
        "curves": lambda: curve_figure(gathered.pool, gathered.thresholds),
        "scores": lambda: score_figure(gathered.pool, gathered.thresholds),
        "cases": lambda: case_figure(gathered.cases, gathered.threshold),
        "components": lambda: component_figure(gathered.rows(), colors),
        "prototypes": lambda: atlas_figure(atlas, weights, colors),
    }
    if comparison is not None and Path(comparison).is_file():
        trials = _trials(Path(comparison))
        figures["tradeoff"] = lambda: tradeoff_figure(trials)
    return [p for name, draw in figures.items() for p in save_figure(draw(), folder, name)]


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


class _Gathered:
    """What the figures need of the test scans, in memory that does not grow with them."""

    def __init__(self, scenes: Scenes) -> None:
        network = scenes.network
        rates, thresholds = network.false_positive_rates, network.thresholds
        self.thresholds = dict(zip(rates.tolist(), thresholds.tolist(), strict=True))
        rate = scenes.parser.get_parsed_content("false_positive_rate")
        self.threshold = float(network.threshold(rate))
        self.pool = ScoreHistogram()
        self.cases = Cases(_CASES)
        self._rows: dict[bool, list[tuple[str, Scan]]] = {False: [], True: []}

    def add(self, scene: Scene) -> None:
        """Count the pixels of a scan, and keep the scan if it is among those to show."""
        name, scan = scene
        assert scan.label is not None
        anomaly = torch.from_numpy(np.ascontiguousarray(scan.anomaly))
        label = torch.from_numpy(np.ascontiguousarray(scan.label))
        histogram = ScoreHistogram()
        histogram.update(anomaly, label)
        self.pool.merge(histogram)
        lesion = bool(label.any())
        if len(self._rows[lesion]) < _ROWS:
            self._rows[lesion].append((name, scan))
        if lesion:
            dice = dice_score(anomaly > self.threshold, label)
            self.cases.add(Case(name, histogram.aupr().value, dice, single_slice(scan)))

    def rows(self) -> list[tuple[str, Scan]]:
        """Scans for the maps of prototypes, half of them without a lesion if there are any."""
        healthy = self._rows[False][: _ROWS // 2]
        return healthy + self._rows[True][: _ROWS - len(healthy)]


def _healthy(parser: ConfigParser, tests: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Training scans, none where the data set is for testing only."""
    root, fraction, seed = map(parser.get_parsed_content, ("dataset_dir", "val_fraction", "seed"))
    try:
        items = datalist(root, "train", val_fraction=fraction, seed=seed)
    except InputError:
        return []
    paths = [Path(item[key]) for item in tests for key in ("image", "label") if key in item]
    tested = {path.parent for path in paths}
    return [item for item in items if Path(item["image"]).parent not in tested]


def _atlas(scenes: Scenes, weights: np.ndarray, items: Sequence[Mapping[str, str]]) -> Atlas:
    """The patches nearest to the prototypes of the largest weights."""
    chosen = items[:: math.ceil(len(items) / _ATLAS_SCANS)]
    order = np.argsort(-weights, kind="stable")[:_PROTOTYPES]
    atlas = Atlas(order.tolist(), _EXAMPLES, len(chosen))
    for frame, slices in tqdm(scenes.patches(chosen, _ATLAS_SLICES), "Prototypes", len(chosen)):
        atlas.add(frame, slices)
    return atlas
