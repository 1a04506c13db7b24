import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_dpmm.network.postprocessing import less_baseline, smoothed
from monai_dpmm.transforms.refinement import RefineAnomalyd


def _data(shape=(12, 10, 8), spacing=(1.0, 2.0, 3.0)):
    affine = torch.eye(4)
    affine[range(len(spacing)), range(len(spacing))] = torch.tensor(spacing)
    components = torch.randint(0, 4, shape).float()
    return {
        "pred_anomaly": MetaTensor(torch.rand(1, *shape), affine=affine),
        "pred_component": MetaTensor(components[None], affine=affine),
    }


@pytest.mark.parametrize(
    ("shape", "spacing"), [((12, 10, 8), (1.0, 2.0, 3.0)), ((12, 10), (0.5, 2.0))]
)
def test_it_smooths_in_mm_and_then_takes_the_median_off(shape, spacing):
    data = _data(shape, spacing)
    anomaly, there = data["pred_anomaly"].as_tensor()[0], data["pred_component"][0] > 0
    refined = RefineAnomalyd(smoothing_mm=2.0, subtract_baseline=True)(data)
    expected, median = less_baseline(smoothed(anomaly, there.as_tensor(), 2.0, spacing), there)
    assert torch.allclose(refined["pred_anomaly"].as_tensor()[0], expected)
    assert refined["baseline"] == pytest.approx(float(median))
    assert torch.equal(refined["pred_anomaly"].affine, data["pred_anomaly"].affine)


def test_by_default_nothing_changes_and_the_data_given_never_do():
    data = _data()
    before = data["pred_anomaly"].clone()
    assert torch.equal(RefineAnomalyd()(data)["pred_anomaly"], before)
    assert "baseline" not in RefineAnomalyd(smoothing_mm=1.0)(data)
    assert torch.equal(data["pred_anomaly"], before)


def test_a_turned_scan_has_the_turned_map():
    data = _data()
    turned = {
        key: MetaTensor(
            x.as_tensor().permute(0, 3, 1, 2),
            affine=torch.from_numpy(x.affine.numpy()[:, [2, 0, 1, 3]]),
        )
        for key, x in data.items()
    }
    refine = RefineAnomalyd(smoothing_mm=2.0, subtract_baseline=True)
    one, other = refine(data)["pred_anomaly"], refine(turned)["pred_anomaly"]
    assert np.allclose(one.permute(0, 3, 1, 2).numpy(), other.numpy(), atol=1e-6)


def test_errors_name_argument_rule_and_value():
    with pytest.raises(ValueError, match="smoothing_mm must be at least 0, got -1"):
        RefineAnomalyd(smoothing_mm=-1)
    data = {key: x.as_tensor() for key, x in _data().items()}
    with pytest.raises(TypeError, match=r"pred_anomaly must be a MetaTensor.* got Tensor"):
        RefineAnomalyd(smoothing_mm=1)(data)
