"""Requests of a labelling server: what they may choose, and what is answered."""

import json

import pytest
import torch
from monai.data import MetaTensor

from monai_dpmm import (
    AnomalyInferer,
    AnswerRequestd,
    ReadRequestd,
    ThresholdAnomalyd,
    rate_choices,
)


class Detector(torch.nn.Module):
    """Maps that are the slices; thresholds that are the rates."""

    def forward(self, slices):
        return slices

    def threshold(self, rate):
        return torch.tensor(rate)


def _served(**request):
    """Data as they are after inference, mask and score, for a request."""
    anomaly = MetaTensor(torch.tensor([[[[0.02, 0.2]]]]))
    mask = (anomaly > 0.05).to(torch.uint8)
    return {"pred_anomaly": anomaly, "pred_mask": mask, "score": 0.2, **request}


def test_choices_are_text_and_start_with_the_default():
    assert rate_choices(0.05) == ["0.05", "0.01", "0.1"]
    assert rate_choices(0.2) == ["0.2", "0.01", "0.05", "0.1"]


def test_a_request_is_read_as_chosen_or_as_the_first_of_the_menu():
    menu = {"output": ["mask", "heatmap"], "false_positive_rate": ["0.05", "0.01"]}
    assert ReadRequestd()(menu) == {"output": "mask", "false_positive_rate": 0.05}
    chosen = {"output": "heatmap", "false_positive_rate": "0.1"}
    assert ReadRequestd()(chosen) == {"output": "heatmap", "false_positive_rate": 0.1}


def test_data_without_a_request_stay_as_they_are():
    assert ReadRequestd()({"image": 1}) == {"image": 1}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"output": "picture"}, "output must be one of mask, heatmap, got 'picture'"),
        ({"false_positive_rate": "few"}, "false_positive_rate must be a number, got 'few'"),
        ({"false_positive_rate": None}, "false_positive_rate must be a number, got None"),
    ],
)
def test_a_choice_that_there_is_not_is_refused(request_, message):
    with pytest.raises(ValueError, match=message):
        ReadRequestd()(request_)


def test_the_requests_rate_counts_instead_of_the_configured_one():
    inferer = AnomalyInferer()
    inferer(torch.rand(1, 1, 4, 4, 2), Detector())
    threshold = ThresholdAnomalyd("a", inferer, false_positive_rate=0.1, output_keys="mask")
    anomaly = torch.tensor([0.03, 0.07, 0.2])
    assert threshold({"a": anomaly})["mask"].tolist() == [0, 0, 1]
    assert threshold({"a": anomaly, "false_positive_rate": 0.05})["mask"].tolist() == [0, 1, 1]


def test_an_inferer_that_was_not_called_knows_no_threshold():
    with pytest.raises(RuntimeError, match="must be called before its detector's threshold"):
        AnomalyInferer().threshold(0.01)


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
