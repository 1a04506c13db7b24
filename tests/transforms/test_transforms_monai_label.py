"""Requests of a labelling server: what they may choose, and what is answered."""

import json
from typing import ClassVar

import pytest
import torch
from monai.data import MetaTensor

from monai_dpmm import (
    AnomalyInferer,
    AnswerRequestd,
    OperatingPoint,
    ReadRequestd,
    ThresholdAnomalyd,
    rate_choices,
)


class Detector(torch.nn.Module):
    """Maps that are the slices; thresholds that are the rates."""

    def forward(self, slices):
        return slices

    thresholds_by_rate: ClassVar = {"0.05": 0.05, "0.1": 0.1}


def _served(**request):
    """Data as they are after inference, mask and score, for a request."""
    anomaly = MetaTensor(torch.tensor([[[[0.02, 0.2]]]]))
    mask = (anomaly > 0.05).to(torch.uint8)
    return {"pred_anomaly": anomaly, "pred_mask": mask, "score": 0.2, **request}


def test_choices_are_text_and_start_with_the_default():
    assert rate_choices(0.05) == ["0.05", "0.01", "0.1"]
    assert rate_choices(0.2) == ["0.2", "0.01", "0.05", "0.1"]
    assert rate_choices(None) == ["default", "0.01", "0.05", "0.1"]


def test_a_request_is_read_as_chosen_or_as_the_first_of_the_menu():
    menu = {"output": ["mask", "heatmap"], "false_positive_rate": ["0.05", "0.01"]}
    assert ReadRequestd()(menu) == {"output": "mask", "false_positive_rate": 0.05}
    menu["false_positive_rate"] = rate_choices(None)
    assert ReadRequestd()(menu) == {"output": "mask"}
    chosen = {"output": "heatmap", "false_positive_rate": "0.1"}
    assert ReadRequestd()(chosen) == {"output": "heatmap", "false_positive_rate": 0.1}


def test_data_without_a_request_stay_as_they_are():
    assert ReadRequestd()({"image": 1}) == {"image": 1}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"output": "picture"}, "output must be one of mask, levels, heatmap, got 'picture'"),
        ({"false_positive_rate": "few"}, "false_positive_rate must be a number, got 'few'"),
        ({"false_positive_rate": None}, "false_positive_rate must be a number, got None"),
    ],
)
def test_a_choice_that_there_is_not_is_refused(request_, message):
    with pytest.raises(ValueError, match=message):
        ReadRequestd()(request_)


def test_the_requests_rate_counts_instead_of_the_configured_one():
    """As a server runs it: one scan as a batch to the inferer, with a network of its own."""
    scan = MetaTensor(torch.tensor([[[[0.03, 0.07, 0.2]]]]))
    data = {"pred": AnomalyInferer()(scan[None], Detector())[0]}
    mask = ThresholdAnomalyd("pred", false_positive_rate=0.1, output_keys="mask")
    assert mask(data)["mask"].flatten().tolist() == [0, 0, 1]
    chosen = mask({**data, "false_positive_rate": 0.05})
    assert chosen["mask"].flatten().tolist() == [0, 1, 1]
    assert chosen["threshold"]["false_positive_rate"] == 0.05


def test_a_bundle_of_the_version_before_still_finds_its_threshold():
    """Its config has the inferer stand for the network, by way of an `OperatingPoint`."""
    with pytest.deprecated_call():
        point = OperatingPoint(detector=AnomalyInferer())
        mask = ThresholdAnomalyd("a", detector=point, false_positive_rate=0.1, output_keys="mask")
    scan = MetaTensor(torch.tensor([[[[0.03, 0.07, 0.2]]]]))
    inferred = AnomalyInferer()(scan[None], Detector())[0]
    data = mask({"pred": inferred, "a": scan})
    assert data["mask"].flatten().tolist() == [0, 0, 1]


def test_the_answer_is_the_mask_unless_the_heat_map_is_asked_for():
    answer = AnswerRequestd()(_served(result_dtype="uint8"))
    assert answer["pred"].dtype == torch.uint8
    assert answer["pred"].flatten().tolist() == [0, 1]
    assert answer["result_dtype"] == "uint8"
    heatmap = AnswerRequestd()(_served(output="heatmap", result_dtype="uint8"))
    assert torch.equal(heatmap["pred"], heatmap["pred_anomaly"])
    assert heatmap["result_dtype"] == "float32"


def test_the_numbers_are_sent_as_json_under_their_names():
    data = _served(findings={"lesions": []})
    result = AnswerRequestd(result_keys=["score", "findings"])(data)["result"]
    assert json.loads(json.dumps(result)) == {"score": 0.2, "findings": {"lesions": []}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.nii.gz", None), ("a.NRRD", None), ("a.mgz", ".nii.gz"), ("series.nii", ".nii.gz")],
)
def test_a_result_is_written_in_the_scans_format_or_as_nifti(tmp_path, name, expected):
    path = tmp_path / name
    path.mkdir() if name.startswith("series") else path.touch()
    answer = AnswerRequestd()(_served(image_path=str(path)))
    assert answer.get("result_extension") == expected
    asked = AnswerRequestd()(_served(image_path=str(path), result_extension=".nrrd"))
    assert asked["result_extension"] == ".nrrd"
    assert "result_extension" not in AnswerRequestd()(_served())


def test_operating_points_are_levels_of_one_label_map():
    scores = torch.tensor([[[[0.02, 0.2, 0.06, 0.05]]]])
    anomaly = MetaTensor(scores, affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    thresholds = {"0.01": 0.1, "0.05": 0.05, "0.1": 0.01}
    inferred = MetaTensor(scores, meta={"thresholds": thresholds})
    data = _served(output="levels") | {"pred_anomaly": anomaly, "pred": inferred}
    answer = AnswerRequestd()(data)
    assert answer["pred"].tolist() == [[[[1, 3, 2, 1]]]]
    assert answer["pred"].dtype == torch.uint8
    assert torch.equal(answer["pred"].affine, anomaly.affine)
    assert "result_dtype" not in answer
    for known in ({}, {"0.01": float("nan")}):
        inferred.meta["thresholds"] = known
        with pytest.raises(ValueError, match="must carry calibrated thresholds"):
            AnswerRequestd()(data)
