"""Tables of all methods and scores with every step of refinement, from records of a comparison."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.metrics.bootstrap import interval
from monai_dpmm.study.models.mixture import PLACED
from monai_dpmm.study.refinement import RESAMPLES, STEPS
from monai_dpmm.study.tables import Table, spread

__all__ = ["refinement_tables"]

Trial = Mapping[str, Any]
_BOTH = STEPS[-1]
_REFINED_COLUMNS = (
    *("method", "score", "AUPR", "less reference", "95 %", "AUROC", "best Dice"),
    *("slices", "matched slices"),
)


def refinement_tables(trials: Sequence[Trial], reference: str = "dpmm") -> list[Table]:
    """AUPR of every method and score after each step, and all metrics after both.

    Args:
        trials: records of `monai_dpmm.study.comparison.compare`.
        reference: the method that the others are compared with, by its first score.

    Raises:
        ValueError: where no trial is of the reference.
    """
    rows = _rows(trials)
    against = next((key for key in rows if key[0] == reference), None)
    if against is None:
        names = dict.fromkeys(trial["method"] for trial in trials)
        raise InputError(f"reference must be one of {', '.join(names)}, got {reference!r}")
    of_body = "In the body's pixels of all test slices, in %: mean (lowest-highest of the seeds)."
    sigma = trials[0]["settings"]["smoothing_mm"]
    return [
        Table(
            "refinement",
            "Maps as they are and refined: AUPR",
            ("method", "score", "prototypes", *STEPS, "95 %", "ms", "seeds"),
            [_refinement(row) for row in rows.values()],
            f"{of_body} Smoothed: by a Gaussian of {sigma:g} mm (pixels of pictures) within the"
            " body; less baseline: less the median of the body; both: first smoothed. 95 %: of"
            f" both, {RESAMPLES:,} bootstrap draws of the patients, seeds averaged. ms: of scoring"
            " a slice, without backbone and refinement.",
        ),
        Table(
            "refined",
            "Refined maps: smoothed and less baseline",
            _REFINED_COLUMNS,
            [_refined(row, rows[against]) for row in rows.values()],
            f"{of_body} Reference: {' '.join(_name(rows[against]))}; the difference of the AUPR in"
            " points, with the interval of the same draws of the patients for both. Best Dice: at"
            " the threshold that is best for the test pixels. Slices: AUROC of those with a lesion"
            " against those without, by the mean of their highest 1 % of pixels; matched: of those"
            " that the data set lists in test_level_matched.csv.",
        ),
    ]


def _rows(trials: Sequence[Trial]) -> dict[tuple[str, str], list[Trial]]:
    """Trials by method and score, each with what was found by that score as "found"."""
    rows: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        for kind, found in trial["scores"].items():
            row = {**trial, "kind": kind, "found": found}
            rows.setdefault((trial["method"], kind), []).append(row)
    return rows


def _name(row: Sequence[Trial]) -> list[str]:
    kind = str(row[0]["kind"])
    shown = f"{kind.removeprefix(PLACED)}, place" if kind.startswith(PLACED) else kind
    return [row[0]["label"], shown]


def _values(row: Sequence[Trial], step: str, metric: str) -> list[float]:
    return [_number(trial["found"]["steps"][step][metric]) for trial in row]


def _draws(row: Sequence[Trial]) -> Tensor:
    """AUPR of each resample after both steps, seeds averaged: (B,)."""
    draws = [[*map(_number, trial["found"]["steps"][_BOTH]["resampled"])] for trial in row]
    return torch.tensor(draws, dtype=torch.float64).mean(0)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _range(draws: Tensor, sign: str = "") -> str:
    low, high = interval(draws)
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


def _refinement(row: Sequence[Trial]) -> list[str]:
    counts = sorted({trial["prototypes"] for trial in row})
    number = "-".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    aupr = [spread(_values(row, step, "aupr"), 1, 100) for step in STEPS]
    time = statistics.median(trial["found"]["milliseconds"] for trial in row)
    cells = [*aupr, _range(_draws(row)), f"{time:.1f}", str(len(row))]
    return [*_name(row), number if counts[-1] else "-", *cells]


def _refined(row: Sequence[Trial], reference: Sequence[Trial]) -> list[str]:
    means = [torch.tensor(_values(of, _BOTH, "aupr")).double().mean() for of in (row, reference)]
    same = row[0] is reference[0]
    difference = "" if same else f"{100 * float(means[0] - means[1]):+.1f}"
    apart = "" if same else _range(_draws(row) - _draws(reference), "+")
    aupr, *others = (
        spread(_values(row, _BOTH, metric), 1, 100)
        for metric in ("aupr", "auroc", "best_dice", "image_auroc", "matched_auroc")
    )
    return [*_name(row), aupr, difference, apart, *others]
