import json

import pytest
import torch
from torch import nn

from monai_dpmm.network.backbones.registry import load_backbone
from monai_dpmm.network.weights import bundled_backbone, load_weights, model_setting


def test_the_network_gets_the_files_tensors(tmp_path):
    saved, other = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    assert load_weights(other, tmp_path / "model.pt") is other
    assert torch.equal(other.weight, saved.weight)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model.pt: must exist, there is no such file"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


@pytest.mark.parametrize("state", [nn.Linear(3, 3).state_dict(), {}, [torch.ones(1)]])
def test_a_state_dict_of_another_network_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model.pt: must fit the network, "):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


def test_a_bundles_backbone_is_its_models(tmp_path):
    backbone = load_backbone("efficientnet_lite0")
    torch.save(nn.ModuleDict({"backbone": backbone}).state_dict(), tmp_path / "model.pt")
    (tmp_path / "model.json").write_text('{"backbone_architecture": "efficientnet_lite0"}')
    images = torch.rand(1, 3, 64, 64)
    loaded = bundled_backbone("efficientnet_lite0", tmp_path / "model.pt")
    assert torch.equal(loaded(images), backbone(images))


def test_settings_are_those_beside_the_model_now(tmp_path):
    (tmp_path / "model.json").write_text('{"components": 40}')
    assert model_setting(tmp_path / "model.pt", "components") == 40
    assert model_setting(tmp_path / "model.pt", "scan_reference") is None
    (tmp_path / "model.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.json"):
        model_setting(tmp_path / "model.pt", "components")


def test_elsewhere_it_waits_for_the_models_weights(tmp_path):
    waiting = bundled_backbone("efficientnet_lite0", tmp_path / "model.pt")
    with pytest.raises(RuntimeError, match="backbone weights are not loaded"):
        waiting(torch.rand(1, 3, 64, 64))
    waiting.load_state_dict(load_backbone("efficientnet_lite0").state_dict())
    assert waiting(torch.rand(1, 3, 64, 64)).isfinite().all()


def test_settings_that_are_not_the_trainings_are_told(tmp_path, caplog):
    network = torch.nn.Linear(2, 2)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    load_weights(network, tmp_path / "model.pt", {"window": None})
    assert not caplog.records  # no model.json: nothing to compare with
    trained = {"window": [0, 80], "score": "cosine", "scan_reference": 3}
    (tmp_path / "model.json").write_text(json.dumps(trained))
    load_weights(network, tmp_path / "model.pt", {"window": (0, 80), "score": "cosine", "new": 1})
    assert not caplog.records
    load_weights(network, tmp_path / "model.pt", {"window": None, "score": "cosine"})
    (record,) = caplog.records
    told = f"trained with window [0, 80] and not None: lay {tmp_path / 'model.json'} over"
    assert told in record.getMessage()
