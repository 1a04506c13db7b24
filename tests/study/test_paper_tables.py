"""Tables of records that are known."""

import json
import math

import numpy as np
import pytest

from monai_dpmm.study.paper_tables import paper_tables, run_records, significance, write_comparison
from monai_dpmm.study.refinement import STEPS
from monai_dpmm.study.refinement_tables import refinement_tables

GENERATOR = np.random.default_rng(0)
DIFFICULTY = GENERATOR.normal(0, 0.05, 40)


def found(auroc, seed, noise=0.0):
    values = auroc + DIFFICULTY + noise * GENERATOR.normal(0, 1, 40)
    images = [
        {"scan": f"scan{i // 5}", "slice": i, "auroc": float(v), "aupr": float(v) / 2}
        for i, v in enumerate(values)
    ]
    numbers = {"auroc": auroc + seed / 100, "aupr": auroc / 2, "best_dice": 0.5, "megabytes": 12.0}
    numbers |= {"binning_error": 0.0, "image_auroc": 0.75, "milliseconds": 3.0}
    steps = {step: refined_step(auroc / 2 + i / 100, seed) for i, step in enumerate(STEPS)}
    return numbers | {"dice": [0.1, 0.2, 0.3], "images": images, "steps": steps}


def refined_step(aupr, seed):
    """Numbers of maps after a step, resamples two points below and above, one without a lesion."""
    draws = [aupr + seed / 100 + offset for offset in np.linspace(-0.02, 0.02, 41)]
    numbers = {"auroc": 0.9, "aupr": aupr + seed / 100, "best_dice": 0.5, "image_auroc": 0.75}
    return numbers | {"matched_auroc": None, "resampled": [*draws, None]}


def trial(method, label, seed, scores, prototypes=10, unit_norm=True):
    environment = {"processor": "abacus", "gpu": "none", "torch": "2", "platform": "desk"}
    return {
        **{"method": method, "label": label, "seed": seed, "prototypes": prototypes + seed},
        **{
            "settings": {"unit_norm": unit_norm, "smoothing_mm": 4.0},
            "data": "d",
            "fit_seconds": 7.0,
        },
        **{"scores": scores, "environment": environment},
    }


@pytest.fixture
def trials():
    return [
        *(
            trial("dpmm", "DPMM", s, {"cosine": found(0.9, s), "euclidean": found(0.8, s)})
            for s in (0, 1, 2)
        ),
        trial("dpmm-raw", "DPMM, raw", 0, {"cosine": found(0.7, 0)}, unit_norm=False),
        trial("full", "full bank", 0, {"cosine": found(0.9, 0, noise=0.05)}, prototypes=5000),
        *(trial("few", "few", s, {"cosine": found(0.6, s)}) for s in (0, 1)),
    ]


def rows(table):
    return {row[0]: list(row[1:]) for row in table.rows}


def test_table_1(trials):
    table = rows(paper_tables(trials)[0])
    expected = ["10-12", "91.00 (90.00-92.00)", "45.00 (45.00-45.00)", "3.0", "12", "7", "3"]
    assert table["DPMM"] == expected
    assert table["full bank"][:2] == ["5,000", "90.00"]
    assert list(table) == ["DPMM", "full bank", "few"]  # raw embeddings are of Table 3
    assert "abacus, GPU none, torch 2" in paper_tables(trials)[0].note


def test_table_2(trials):
    table = paper_tables(trials)[1]
    assert list(table.columns) == ["method", "10%", "5%", "1%", "best threshold"]
    assert rows(table)["full bank"] == ["10.00", "20.00", "30.00", "50.00"]


def test_table_3_has_every_score_and_normalisation(trials):
    table = paper_tables(trials)[2]
    assert [row[:3] for row in table.rows] == [
        ["DPMM", "cosine", "unit norm"],
        ["DPMM", "euclidean", "unit norm"],
        ["DPMM", "cosine", "raw"],
    ]
    assert table.rows[1][4] == "81.00 (80.00-82.00)"


def test_image_wise_means(trials):
    mean, interval, *_ = rows(paper_tables(trials)[3])["DPMM"]
    values = 0.9 + DIFFICULTY
    assert float(mean) == pytest.approx(100 * values.mean(), abs=0.006)
    low, high = map(float, interval.split("-"))
    assert low < 100 * values.mean() < high
    assert high - low < 8


def test_significance_tells_a_difference_from_noise(trials):
    tests = {row["method"]: row for row in significance(trials)}
    assert set(tests) == {"dpmm-raw", "full", "few"}
    few, full = tests["few"]["auroc"], tests["full"]["auroc"]
    assert few["difference"] == pytest.approx(0.3)
    assert few["pooled_difference"] == pytest.approx(0.91 - 0.605)
    assert few["p_images"] == pytest.approx(2 / 10000)
    assert few["p_images_holm"] == pytest.approx(3 * 2 / 10000)
    assert few["p_scans"] == pytest.approx(2 / 2**8)
    assert full["p_images"] > 0.05
    assert tests["few"]["aupr"]["difference"] == pytest.approx(0.15)


def test_another_reference(trials):
    tests = {row["method"]: row for row in significance(trials, "few")}
    assert tests["dpmm"]["auroc"]["difference"] == pytest.approx(-0.3)
    assert paper_tables(trials, "few")[4].title == "few less each method"
    with pytest.raises(ValueError, match=r"reference must be one of dpmm, .*, got 'gone'"):
        paper_tables(trials, "gone")


def test_every_run_has_its_row(trials):
    records = run_records(trials)
    assert len(records) == 10
    assert len({tuple(record) for record in records}) == 1
    record = records[1]
    assert (record["method"], record["seed"], record["score"]) == ("dpmm", 0, "euclidean")
    assert (record["dice_at_0.1"], record["dice_at_0.01"]) == (0.1, 0.3)
    assert json.loads(record["settings"])["unit_norm"] is True
    assert record["processor"] == "abacus"


def test_every_method_and_score_has_its_maps_as_they_are_and_refined(trials):
    table = refinement_tables(trials)[0]
    assert list(table.columns[3:7]) == ["raw", "smoothed", "less baseline", "both"]
    assert [row[:2] for row in table.rows] == [
        *(["DPMM", "cosine"], ["DPMM", "euclidean"], ["DPMM, raw", "cosine"]),
        *(["full bank", "cosine"], ["few", "cosine"]),
    ]
    raw, *_, both = table.rows[0][3:7]
    assert (raw, both) == ("46.0 (45.0-47.0)", "49.0 (48.0-50.0)")
    low, high = (float(end) for end in table.rows[0][7].split(" to "))
    assert (low, high) == pytest.approx((49 - 1.9, 49 + 1.9), abs=0.051)
    assert table.rows[0][8:] == ["3.0", "3"]
    assert "by a Gaussian of 4 mm" in table.note


def test_refined_maps_are_compared_in_the_same_draws(trials):
    table = refinement_tables(trials)[1]
    cells = {(row[0], row[1]): list(row[2:]) for row in table.rows}
    assert cells["DPMM", "cosine"][1:3] == ["", ""]
    # five points less, in every draw of the patients
    assert cells["DPMM", "euclidean"][1:3] == ["-5.0", "-5.0 to -5.0"]
    assert cells["DPMM", "cosine"][3:] == [
        *("90.0 (90.0-90.0)", "50.0 (50.0-50.0)"),
        *("75.0 (75.0-75.0)", "-"),
    ]
    assert "Reference: DPMM cosine" in table.note


def test_scores_that_know_places_are_named(trials):
    for one in trials[:3]:
        one["scores"]["placed-cosine"] = found(0.95, one["seed"])
    names = [list(row[:2]) for row in refinement_tables(trials)[0].rows]
    assert ["DPMM", "cosine, place"] in names
    with pytest.raises(ValueError, match=r"reference must be one of dpmm, .*, got 'gone'"):
        refinement_tables(trials, "gone")


def test_a_model_without_prototypes(trials):
    assert refinement_tables([{**trials[4], "prototypes": 0}], "full")[0].rows[0][2] == "-"


def test_memory_that_is_not_known(trials):
    trials[3]["scores"]["cosine"]["megabytes"] = math.nan
    for one in trials:
        one["scores"]["cosine"]["megabytes"] = math.nan
    assert rows(paper_tables(trials)[0])["DPMM"][4] == "-"


def test_all_is_written(trials, tmp_path):
    tables = write_comparison(trials, tmp_path)
    names = {
        "refinement.csv",
        "refined.csv",
        "table1.csv",
        "table2.csv",
        "table3.csv",
        "images.csv",
        "significance.csv",
    }
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert {f"{table.name}.csv" for table in tables} == names
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert len(result["trials"]) == 7
    assert len(result["significance"]) == 3
