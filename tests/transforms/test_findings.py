"""Findings of a scan: lesions where they are in the world, whatever the grid; strict JSON."""

import itertools
import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_dpmm import AnomalyFindingsd, SaveFindingsd, anomaly_findings

# 30 degrees about z, voxels of 2 x 1 x 5 mm, anywhere
COS, SIN = np.sqrt(3) / 2, 0.5
OBLIQUE = np.array([[2 * COS, -SIN, 0, 10], [2 * SIN, COS, 0, -20], [0, 0, 5, 30], [0, 0, 0, 1.0]])


POINT = {"threshold": 0.3, "false_positive_rate": 0.25, "false_positive_volume_ml": None}


def _two_lesions():
    """A line of three voxels with the peak at its end, and a single higher voxel."""
    anomaly = torch.zeros(6, 7, 8)
    anomaly[1, 2, 3:6] = torch.tensor([0.5, 0.5, 0.8])
    anomaly[4, 5, 1] = 0.9
    return anomaly, (anomaly > 0).to(torch.uint8)


def _served(**others):
    anomaly, mask = _two_lesions()
    affine = torch.from_numpy(OBLIQUE)
    data = {"pred_anomaly": anomaly[None], "pred_mask": mask[None]}
    data = {key: MetaTensor(value, affine=affine) for key, value in data.items()}
    return data | {"score": 0.7, "threshold": POINT, **others}


def test_lesions_of_an_oblique_grid_by_hand():
    findings = anomaly_findings(*_two_lesions(), OBLIQUE)
    assert findings["mask_volume_ml"] == pytest.approx(0.04)  # four voxels of 10 mm3
    single, line = findings["lesions"]
    assert single["peak_score"] == pytest.approx(0.9)
    assert single["volume_ml"] == pytest.approx(0.01)
    # voxel (4, 5, 1): 8 mm along the first axis, 5 mm along the second, 5 mm up
    expected = [10 + 8 * COS - 5 * SIN, -20 + 8 * SIN + 5 * COS, 35]
    assert single["centroid_mm"] == pytest.approx(expected)
    assert single["peak_mm"] == pytest.approx(expected)
    assert line["volume_ml"] == pytest.approx(0.03)
    assert line["mean_score"] == pytest.approx(0.6)
    right, anterior, superior = expected
    assert single["centroid_lps_mm"] == pytest.approx([-right, -anterior, superior])
    assert single["peak_lps_mm"] == pytest.approx([-right, -anterior, superior])
    at = [10 + 2 * COS - 2 * SIN, -20 + 2 * SIN + 2 * COS]  # voxels (1, 2, 3) to (1, 2, 5)
    assert line["centroid_mm"] == pytest.approx([*at, 50])
    assert line["peak_mm"] == pytest.approx([*at, 55])
    assert (line["first_voxel"], line["last_voxel"]) == ([1, 2, 3], [1, 2, 5])


def test_lesions_are_ranked_by_their_excess_over_the_threshold():
    findings = anomaly_findings(*_two_lesions(), OBLIQUE, threshold=0.3)
    line, single = findings["lesions"]
    assert (line["rank"], single["rank"]) == (1, 2)
    assert line["excess"] == pytest.approx((0.2 + 0.2 + 0.5) * 0.01)
    assert single["excess"] == pytest.approx(0.6 * 0.01)
    single, line = anomaly_findings(*_two_lesions(), OBLIQUE)["lesions"]
    assert single["excess"] == pytest.approx(0.4 * 0.01)  # above the mask's lowest score, 0.5
    assert (single["peak_voxel"], line["peak_voxel"]) == ([4, 5, 1], [1, 2, 5])


@pytest.mark.parametrize("signs", list(itertools.product([1, -1], repeat=3)))
def test_a_flipped_grid_gives_the_same_world(signs):
    anomaly, mask = _two_lesions()
    flipped = [axis for axis in range(3) if signs[axis] < 0]
    flip = np.diag([*signs, 1.0])
    flip[:3, 3] = [size - 1 if sign < 0 else 0 for sign, size in zip(signs, (6, 7, 8), strict=True)]
    found = anomaly_findings(anomaly.flip(flipped), mask.flip(flipped), OBLIQUE @ flip)
    expected = anomaly_findings(anomaly, mask, OBLIQUE)
    assert found["mask_volume_ml"] == pytest.approx(expected["mask_volume_ml"])
    assert len(found["lesions"]) == 2
    for one, other in zip(found["lesions"], expected["lesions"], strict=True):
        for key in ("centroid_mm", "peak_mm", "volume_ml", "peak_score", "mean_score"):
            assert one[key] == pytest.approx(other[key])


def test_corners_connect_voxels():
    mask = torch.zeros(3, 3, 3)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = 1
    (lesion,) = anomaly_findings(mask, mask, np.eye(4))["lesions"]
    assert lesion["centroid_mm"] == [1, 1, 1]
    assert (lesion["first_voxel"], lesion["last_voxel"]) == ([0, 0, 0], [2, 2, 2])


def test_a_lesion_in_anothers_bounding_box_is_not_part_of_it():
    anomaly = torch.zeros(5, 5, 1)
    anomaly[0, :, 0] = anomaly[:, 0, 0] = 0.5
    anomaly[3, 3, 0] = 1.0
    dot, corner = anomaly_findings(anomaly, anomaly, np.eye(4))["lesions"]
    assert dot["volume_ml"] == pytest.approx(0.001)
    assert (corner["volume_ml"], corner["peak_score"]) == (pytest.approx(0.009), 0.5)


def test_an_empty_mask_has_no_lesions():
    findings = anomaly_findings(torch.rand(4, 4, 4), torch.zeros(4, 4, 4), np.eye(4))
    assert findings == {"mask_volume_ml": 0, "lesions": [], "smaller_lesions": 0}


def test_smaller_lesions_are_counted_and_left_out():
    anomaly, mask = _two_lesions()
    for smallest, volumes in [(0.01, [0.01, 0.03]), (0.0101, [0.03]), (0.03, [0.03]), (1, [])]:
        findings = anomaly_findings(anomaly, mask, OBLIQUE, smallest=smallest)
        assert [lesion["volume_ml"] for lesion in findings["lesions"]] == pytest.approx(volumes)
        assert findings["smaller_lesions"] == 2 - len(volumes)
        assert findings["mask_volume_ml"] == pytest.approx(0.04)


def test_an_image_is_measured_in_pixels():
    anomaly = torch.zeros(5, 6)
    anomaly[1, 2] = 0.5
    anomaly[2, 3] = 1.0
    findings = anomaly_findings(anomaly, anomaly > 0)
    assert findings["mask_area_px"] == 2
    (lesion,) = findings["lesions"]
    assert lesion == {
        "rank": 1,
        "excess": 0.5,
        "peak_score": 1.0,
        "mean_score": 0.75,
        "area_px": 2,
        "centroid_px": [1.5, 2.5],
        "peak_px": [2, 3],
        "peak_voxel": [2, 3],
        "first_voxel": [1, 2],
        "last_voxel": [2, 3],
    }
    assert anomaly_findings(anomaly, anomaly > 0, smallest=3)["smaller_lesions"] == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"affine": None}, "affine must be an invertible 4 x 4 matrix for a volume, got none"),
        ({"affine": np.zeros((4, 4))}, "affine must be an invertible"),
        ({"mask": torch.zeros(2, 2)}, r"must both be \(X, Y, Z\) or \(H, W\), got \(6, 7, 8\)"),
        ({"anomaly": torch.full((6, 7, 8), torch.nan)}, "anomaly must be finite, got 336 NaN"),
        ({"smallest": -1}, "smallest must not be negative, got -1"),
    ],
)
def test_what_cannot_be_measured_is_refused(changed, message):
    anomaly, mask = _two_lesions()
    with pytest.raises(ValueError, match=message):
        anomaly_findings(**{"anomaly": anomaly, "mask": mask, "affine": OBLIQUE, **changed})


def test_the_transform_names_threshold_and_rate():
    findings = AnomalyFindingsd()(_served())["findings"]
    assert POINT.items() <= findings.items()
    assert findings["score"] == 0.7
    assert "scan_check" not in findings
    assert len(findings["lesions"]) == 2
    with pytest.raises(ValueError, match="smallest must not be negative, got -2"):
        AnomalyFindingsd(smallest=-2)


def test_p_values_compare_with_the_largest_findings_of_healthy_scans():
    point = {"threshold": 0.3, "false_positive_rate": None, "false_positive_volume_ml": 2.0}
    volumes = [
        {"ml_per_scan": 1.0, "largest_findings": [9.0] * 4},
        {"ml_per_scan": 2.0, "largest_findings": [0.0, 0.008, 0.02, 0.001]},
    ]
    known = {"volume_thresholds": volumes, "healthy_scans": {"scores": [0.1, 0.8, 0.7, 0.6]}}
    findings = AnomalyFindingsd(**known)(_served(threshold=point))["findings"]
    line, single = findings["lesions"]  # excess 0.009 and 0.006
    assert (line["p_value"], single["p_value"]) == (2 / 5, 3 / 5)
    assert (findings["score_p_value"], findings["healthy_scans"]) == (3 / 5, 4)
    by_rate = AnomalyFindingsd(**known)(_served())["findings"]
    assert [lesion["p_value"] for lesion in by_rate["lesions"]] == [None, None]
    plain = AnomalyFindingsd()(_served(threshold=point))["findings"]
    assert (plain["score_p_value"], plain["healthy_scans"]) == (None, 0)
    assert [lesion["p_value"] for lesion in plain["lesions"]] == [None, None]
    old = AnomalyFindingsd(volume_thresholds=[{"ml_per_scan": 2.0}])(_served(threshold=point))
    assert old["findings"]["lesions"][0]["p_value"] is None


def test_arguments_that_the_data_answer_are_deprecated():
    with pytest.deprecated_call(match="the threshold is among the data"):
        findings = AnomalyFindingsd(object(), 0.5, false_positive_volume=5)
    assert POINT.items() <= findings(_served())["findings"].items()


def test_a_scan_that_was_not_checked_says_nothing_of_it():
    findings = AnomalyFindingsd()(_served(scan_check=None))["findings"]
    assert "scan_check" not in findings


def test_the_scan_check_is_taken_along():
    findings = AnomalyFindingsd()(_served(scan_check={"accepted": True}))["findings"]
    assert findings["scan_check"] == {"accepted": True}


def test_findings_alone_are_written_beside_a_volume_for_one_more_version(tmp_path):
    data = AnomalyFindingsd()(_served())
    with pytest.deprecated_call(match="SaveResultsd writes them"):
        save = SaveFindingsd()
    assert "findings_path" not in save(data)  # nothing was saved that it could lie beside
    data["pred_mask"].meta["saved_to"] = str(tmp_path / "sub-01_T1.5w_mask.nii.gz")
    path = save(data)["findings_path"]
    assert path == str(tmp_path / "sub-01_T1.5w_findings.json")
    text = (tmp_path / "sub-01_T1.5w_findings.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == data["findings"]
