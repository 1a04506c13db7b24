"""What was found in a scan, in words; what the first screen of a report says of a run."""

import math

import pytest

from monai_dpmm.report.saved_findings import unique_names
from monai_dpmm.report.scan_lines import scan_line
from monai_dpmm.report.scan_text import scan_sentence, verdict
from monai_dpmm.report.summary import cards, made_with, plain_number, verdict_of_run

LESION = {"rank": 1, "volume_ml": 9.13, "peak_score": 2.2, "peak_mm": [31.4, 52, -40.2]}
LESION |= {"p_value": 0.02, "position": "right anterior upper"}
FOUND = {"mask_volume_ml": 12.2, "healthy_scans": 49, "smaller_lesions": 0}
FOUND |= {"lesions": [LESION, {**LESION, "rank": 2, "volume_ml": 0.123}]}


def test_findings_are_one_sentence():
    assert scan_sentence(FOUND) == (
        "2 findings, 12 ml; the most conspicuous: 9.1 ml right anterior upper (31, 52, -40 mm),"
        " p = 0.02 against 49 healthy scans"
    )
    assert scan_sentence({"mask_volume_ml": 0, "lesions": []}) == "no finding"
    small = {"mask_volume_ml": 0.05, "lesions": [], "smaller_lesions": 3}
    assert scan_sentence(small) == "no finding (0.05 ml in parts too small to list)"
    picture = {"rank": 1, "area_px": 310, "peak_score": 0.4, "peak_px": [20, 31]}
    assert scan_sentence({"mask_area_px": 310, "lesions": [picture]}) == (
        "1 finding, 310 px; the most conspicuous: 310 px at (20, 31 px)"
    )


def test_a_line_names_the_scan_by_folder_and_name_and_warns_below():
    odd = FOUND | {"scan_check": {"suspicious": True, "reason": "a cat"}, "warnings": ["too big"]}
    first, *warned = scan_line("/data/anna/001.nii.gz", odd).splitlines()
    assert first.startswith("anna/001: 2 findings, 12 ml;")
    assert warned == ["anna/001: not like the training data: a cat", "anna/001: too big"]
    assert verdict(FOUND) == []


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/001.nii.gz", "b/002.nii"], ["001", "002"]),
        (["a/001.nii.gz", "b/001.nii.gz", "c/2.mha"], ["a/001", "b/001", "2"]),
        (["x/a/1.mha", "y/a/1.mha", "y/b/1.mha"], ["x/a/1", "y/a/1", "b/1"]),
        (["d/seg.mha", "d/seg.nrrd", "d/t.nii"], ["seg.mha", "seg.nrrd", "t"]),
        (["d/seg.mha", "d/seg.nrrd", "e/seg.mha"], ["seg.mha", "seg.nrrd", "seg"]),
        (["1.mha", "1.mha"], ["1.mha", "1.mha"]),
    ],
)
def test_names_tell_scans_apart(paths, names):
    assert unique_names(paths) == names


def _subject(found=1, **other):
    subject = {"found": found, "verdict": [], "marked": 3.25, "unit": "ml", "lowest_p": 0.04}
    return subject | {"healthy_scans": 24} | other


def test_the_verdict_of_a_run_says_what_was_not_read_and_what_not_to_trust():
    subjects = [_subject(), _subject(0), _subject(4, verdict=["a cat"])]
    assert verdict_of_run(subjects, ["cut.nii: it is cut"]) == [
        "3 of 4 scans read, 1 left out.",
        "1 scan unlike the training data: do not rely on its map.",
        "Findings in 1 of 2 scans that fit the model.",
    ]
    assert verdict_of_run([_subject(None)], []) == ["1 scan read."]


def test_cards_leave_out_scans_that_do_not_fit():
    subjects = [_subject(), _subject(7, verdict=["a cat"], marked=900, lowest_p=0.001)]
    report = {"metrics": {}, "subjects": subjects, "settings": {}}
    shown = {card["title"]: (card["value"], card["note"]) for card in cards(report)}
    assert shown["Most marked"] == ("3.25 ml", "in one scan")
    assert shown["Lowest p-value"] == ("0.040", "no p is below 1 / 25")
    assert cards({"metrics": {}, "subjects": subjects[1:], "settings": {}}) == []


def test_cards_of_an_evaluation_are_at_most_six_with_plain_names():
    metrics = {"lesions_found": 10.0, "lesions": 15.0, "finding_sensitivity": 2 / 3}
    metrics |= {"first_findings_true": 8.0, "scans_with_lesions": 8.0, "image_auroc": 0.9375}
    metrics |= {"first_finding_precision": 1.0, "pixel_aupr": 0.63229, "pixel_best_dice": 0.61}
    metrics |= {"pixel_auroc": 0.9924, "false_findings_per_healthy_scan": 3.25}
    intervals = {"finding_sensitivity": [0.46, 1.0], "pixel_aupr": [0.455, 0.804]}
    shown = cards({"metrics": metrics, "intervals": intervals, "subjects": [], "settings": {}})
    assert len(shown) == 6
    assert shown[0] == {"title": "Lesions found", "value": "10 of 15", "note": "46 to 100 %"}
    assert {card["value"] for card in shown} >= {"3.25", "0.938", "0.632"}


def test_what_a_run_was_made_with_is_named():
    settings = {"model": "m/model.pt", "backbone": "dinov2_vits14", "prototypes": 1500}
    settings |= {"origin": {"date": "2026-11-26", "scans": {"training": 16}}}
    settings |= {"false_positive_volume_ml": 2.0}
    environment = {"monai_dpmm": "0.1.0", "torch": "2.13.0", "date": "2026-11-26T01:52:55+00:00"}
    shown = dict(made_with({"settings": settings, "environment": environment}))
    assert shown["trained on"] == "16 healthy scans, 2026-11-26"
    assert shown["Mask threshold"] == "2 ml of false positives in a healthy scan"
    assert shown["Versions"] == "monai_dpmm 0.1.0, torch 2.13.0"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.61021, "0.610"),
        (37.856, "37.9"),
        (4, "4"),
        (4.0, "4"),
        (0.0, "0"),
        (1234.5, "1234"),
        (1.3e-6, "1e-06"),
        (math.nan, "-"),
        (None, "-"),
    ],
)
def test_numbers_have_three_digits_that_say_something(value, text):
    assert plain_number(value) == text
