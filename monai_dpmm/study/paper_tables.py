"""The tables of the paper, and which differences are real, from the records of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_dpmm.errors import InputError
from monai_dpmm.files import atomic_write, plain
from monai_dpmm.study.latex import PREAMBLE, as_latex
from monai_dpmm.study.refinement_tables import refinement_tables
from monai_dpmm.study.runs import RATES
from monai_dpmm.study.significance import bootstrap_interval, holm, paired_p_value
from monai_dpmm.study.tables import Table, as_csv, as_markdown, spread

__all__ = ["paper_tables", "run_records", "significance", "write_comparison", "write_tables"]

Trial = Mapping[str, Any]
_MIXTURES = {
    "dpmm": "DPMM",
    "dpmm-paper": "the paper's",
    "dpmm-raw": "DPMM",
    "gaussian-mixture": "finite",
}
_METRICS = ("auroc", "aupr")


def paper_tables(trials: Sequence[Trial], reference: str = "dpmm") -> list[Table]:
    """Table 1 (quality and cost), 2 (Dice), 3 (score and normalisation), and the paired tests.

    Args:
        trials: records of `monai_dpmm.study.comparison.compare`.
        reference: the method that the others are tested against.

    Raises:
        ValueError: where no trial is of the reference.
    """
    methods = _by_method(trials)
    if reference not in methods:
        raise InputError(f"reference must be one of {', '.join(methods)}, got {reference!r}")
    where = _measured_with(trials)
    main = [name for name in methods if name != "dpmm-raw"]
    first = [methods[name] for name in main]
    return [
        Table(
            "table1",
            "Table 1: quality and cost",
            ("method", "prototypes", "AUROC", "AUPR", "ms", "MB", "fit s", "seeds"),
            [_table1(method) for method in first],
            "Pixel AUROC and AUPR in %, all pixels of all test slices pooled at the size of their"
            " masks, background included: mean (lowest-highest of the seeds). Time and peak memory"
            f" of scoring one slice, without the backbone. {where}",
        ),
        Table(
            "table2",
            "Table 2: Dice at a false-positive rate",
            ("method", *(f"{rate:.0%}" for rate in RATES), "best threshold"),
            [_table2(method) for method in first],
            "Dice in % over all pixels at thresholds that 10, 5 and 1 % of the healthy validation"
            " patches exceed, and at the threshold that is best for the test slices.",
        ),
        Table(
            "table3",
            "Table 3: score and normalisation",
            ("mixture", "score", "embeddings", "prototypes", "AUROC", "AUPR"),
            [row for name in _MIXTURES if name in methods for row in _table3(methods[name])],
            "Pixel AUROC and AUPR in %, as in Table 1.",
        ),
        Table(
            "images",
            "Image-wise AUROC and AUPR",
            ("method", "AUROC", "95 %", "AUPR", "95 %", "image-level AUROC"),
            [_imagewise(method) for method in first],
            "Mean over the slices with a lesion, in %, seeds averaged, with bootstrap intervals"
            " that draw whole scans. Image-level: slices with a lesion against those without,"
            " scored by the mean of their highest 1 % of pixels.",
        ),
        _significance_table(significance(trials, reference), methods[reference][0]["label"]),
    ]


def significance(trials: Sequence[Trial], reference: str = "dpmm") -> list[dict[str, Any]]:
    """Paired permutation tests of every method against the reference, one dictionary each.

    Pairs are slices with a lesion ("p_images", as in the paper; "p_images_holm" corrected for the
    number of methods), or scans ("p_scans", means over a scan's slices, uncorrected): slices of a
    scan are alike, so the first is too sure. "difference" is reference less method.
    """
    methods = _by_method(trials)
    rows = [
        {"method": name, "label": own[0]["label"]} | _tests(methods[reference], own)
        for name, own in methods.items()
        if name != reference
    ]
    for metric in _METRICS:
        corrected = holm([row[metric]["p_images"] for row in rows])
        for row, p in zip(rows, corrected, strict=True):
            row[metric]["p_images_holm"] = p
    return rows


def write_comparison(
    trials: Sequence[Trial], folder: str | Path, reference: str = "dpmm"
) -> list[Table]:
    """The tables, written to a folder with all numbers, see `write_tables`."""
    tables = [*refinement_tables(trials, reference), *paper_tables(trials, reference)]
    result = {"significance": significance(trials, reference), "trials": list(trials)}
    write_tables(folder, tables, run_records(trials), {"reference": reference, **result})
    return tables


def write_tables(
    folder: str | Path,
    tables: Sequence[Table],
    records: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
) -> None:
    """Write `tables.md`, `tables.tex`, a CSV of each table, `runs.csv` and `comparison.json`.

    Args:
        folder: made where it does not exist.
        tables: with different names.
        records: rows of `runs.csv`, dictionaries with the same keys.
        result: all numbers, for `comparison.json`; NaN becomes null.
    """
    folder = Path(folder)
    texts = {
        "tables.md": "\n\n".join(map(as_markdown, tables)) + "\n",
        "tables.tex": PREAMBLE + "\n\n".join(map(as_latex, tables)) + "\n",
        "comparison.json": json.dumps(plain(result), indent=1, allow_nan=False) + "\n",
        "runs.csv": as_csv(list(records[0]), (list(record.values()) for record in records)),
        **{f"{table.name}.csv": as_csv(table.columns, table.rows) for table in tables},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with atomic_write(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def run_records(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A flat dictionary for each trial and score, with configuration, versions and hardware."""
    columns = ("auroc", "aupr", "binning_error", "best_dice", "image_auroc")
    return [
        {
            **{key: trial[key] for key in ("method", "label", "seed")},
            **{"score": kind, "prototypes": trial["prototypes"]},
            **{column: found[column] for column in columns},
            **{f"dice_at_{r:g}": d for r, d in zip(RATES, found["dice"], strict=True)},
            **{key: found[key] for key in ("milliseconds", "megabytes")},
            "fit_seconds": trial["fit_seconds"],
            "settings": json.dumps(trial["settings"], sort_keys=True),
            "data": trial["data"],
            **trial["environment"],
        }
        for trial in trials
        for kind, found in trial["scores"].items()
    ]


def _by_method(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    methods: dict[str, list[Trial]] = {}
    for trial in trials:
        methods.setdefault(trial["method"], []).append(trial)
    return methods


def _first(trial: Trial) -> Mapping[str, Any]:
    """What was found by the score of Table 1."""
    return next(iter(trial["scores"].values()))


def _values(method: Sequence[Trial], key: str) -> list[float]:
    return [_first(trial)[key] for trial in method]


def _prototypes(method: Sequence[Trial]) -> str:
    counts = sorted({trial["prototypes"] for trial in method})
    return "-".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))


def _table1(method: Sequence[Trial]) -> list[str]:
    quality = (spread(_values(method, metric), scale=100) for metric in _METRICS)
    time, memory = (np.median(_values(method, key)) for key in ("milliseconds", "megabytes"))
    seconds = np.median([trial["fit_seconds"] for trial in method])
    cost = (f"{time:.1f}", spread([float(memory)], 0), f"{seconds:.0f}", str(len(method)))
    return [method[0]["label"], _prototypes(method), *quality, *cost]


def _table2(method: Sequence[Trial]) -> list[str]:
    dice = zip(*(_first(trial)["dice"] for trial in method), strict=True)
    cells = [spread(values, scale=100) for values in dice]
    return [method[0]["label"], *cells, spread(_values(method, "best_dice"), scale=100)]


def _table3(method: Sequence[Trial]) -> list[list[str]]:
    scale = "unit norm" if method[0]["settings"]["unit_norm"] else "raw"
    rows, mixture = [], _MIXTURES[method[0]["method"]]
    for kind in method[0]["scores"]:
        columns = ([t["scores"][kind][metric] for t in method] for metric in _METRICS)
        cells = [spread(values, scale=100) for values in columns]
        rows.append([mixture, kind, scale, _prototypes(method), *cells])
    return rows


def _imagewise(method: Sequence[Trial]) -> list[str]:
    cells: list[str] = []
    for metric in _METRICS:
        scans = _image_values(method, metric)
        low, high = bootstrap_interval(scans.values())
        mean = np.mean([value for values in scans.values() for value in values])
        cells += [f"{100 * mean:.2f}", f"{100 * low:.2f}-{100 * high:.2f}"]
    return [method[0]["label"], *cells, spread(_values(method, "image_auroc"), scale=100)]


def _image_values(method: Sequence[Trial], metric: str) -> dict[str, list[float]]:
    """Means over the seeds of the metric of each slice with a lesion, by scan, sorted."""
    images = [_first(trial)["images"] for trial in method]
    means = np.mean([[image[metric] for image in trial] for trial in images], axis=0).tolist()
    scans: dict[str, list[float]] = {name: [] for name in sorted({i["scan"] for i in images[0]})}
    for image, value in zip(images[0], means, strict=True):
        scans[image["scan"]].append(value)
    return scans


def _tests(reference: Sequence[Trial], method: Sequence[Trial]) -> dict[str, dict[str, float]]:
    result = {}
    for metric in _METRICS:
        pair = (reference, method)
        scans = [list(_image_values(one, metric).values()) for one in pair]
        first, second = ([value for values in own for value in values] for own in scans)
        pooled = [float(np.mean(_values(one, metric))) for one in pair]
        result[metric] = {
            "pooled_difference": pooled[0] - pooled[1],
            "difference": float(np.mean(first) - np.mean(second)),
            "p_images": paired_p_value(first, second),
            "p_scans": paired_p_value(*([float(np.mean(v)) for v in own] for own in scans)),
        }
    return result


def _significance_table(rows: Sequence[Mapping[str, Any]], label: str) -> Table:
    columns = ["method"]
    for metric in ("AUROC", "AUPR"):
        columns += [f"{metric}, pixels", "images", "p images", "Holm", "p scans"]
    keys = ("p_images", "p_images_holm", "p_scans")
    cells = []
    for row in rows:
        cells.append([row["label"]])
        for metric in _METRICS:
            found = row[metric]
            differences = (found["pooled_difference"], found["difference"])
            cells[-1] += [f"{100 * difference:+.2f}" for difference in differences]
            cells[-1] += [f"{found[key]:.4f}" for key in keys]
    return Table(
        "significance",
        f"{label} less each method",
        columns,
        cells,
        "Differences in points, seeds averaged: of the pooled pixels, and of the mean over slices"
        " with a lesion. p: paired permutation test of the latter, two-sided, over slices (as in"
        " the paper; Holm's correction for the number of methods beside it) and, uncorrected, over"
        " the means of whole scans, since slices of a scan are no independent samples.",
    )


def _measured_with(trials: Sequence[Trial]) -> str:
    found = {
        f"{e['processor']}, GPU {e['gpu']}, torch {e['torch']}"
        for e in (trial["environment"] for trial in trials)
    }
    return f"Measured with {'; '.join(sorted(found))}."
