import math

from monai_dpmm.report.findings_text import findings_text
from monai_dpmm.report.report import metrics_table

METRICS = {
    "lesions_found": 12.0,
    "lesions": 16.0,
    "first_findings_true": 8.0,
    "scans_with_lesions": 8.0,
    "healthy_scans": 8.0,
    "finding_sensitivity": 0.75,
    "first_finding_precision": 1.0,
    "false_findings_per_healthy_scan": 2.125,
    "false_findings_per_ill_scan": 3.0,
    "image_auroc": 0.984375,
}
INTERVALS = {
    "finding_sensitivity": [0.55, 0.92],
    "first_finding_precision": [1.0, 1.0],
    "false_findings_per_healthy_scan": [1.0, 3.5],
    "image_auroc": [None, None],
}


def test_the_summary_comes_first_and_in_words():
    text = metrics_table({**METRICS, "pixel_aupr": 0.6}, [], INTERVALS)
    assert text.splitlines()[:5] == [
        "Lesions found: 12 of 16 (95 % interval 55 to 92 %)",
        "Scans whose first finding is a lesion: 8 of the 8 with lesions",
        "False findings in a healthy scan: 2.1 (95 % interval 1.0 to 3.5)",
        "False findings in a scan with lesions: 3.0",
        "Healthy scans and scans with lesions told apart by their score (AUROC; 1 is always, 0.5 is"
        " by chance): 0.98",
    ]
    assert "pixel_aupr" in text


def test_what_is_not_defined_is_not_told():
    healthy = METRICS | {"lesions": 0.0, "scans_with_lesions": 0.0, "image_auroc": math.nan}
    healthy |= {"false_findings_per_ill_scan": None}
    assert findings_text(healthy) == "False findings in a healthy scan: 2.1"
    assert findings_text({"pixel_aupr": 0.5}) == ""
