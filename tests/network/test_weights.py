import json

import pytest
import torch
from torch import nn

from monai_dpmm.engines.model_files import save_model
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


def _saved(folder):
    network = nn.Linear(3, 2)
    save_model(network, folder / "model.pt", {"components": 5})
    return network, folder / "model.pt"


def test_a_model_and_its_settings_are_tied(tmp_path):
    network, path = _saved(tmp_path)
    assert torch.equal(load_weights(nn.Linear(3, 2), path).weight, network.weight)
    torch.save(nn.Linear(3, 2).state_dict(), path)  # of another run
    with pytest.raises(ValueError, match=r"model.pt: must be the model that model.json was"):
        load_weights(nn.Linear(3, 2), path)
    (tmp_path / "model.json").write_text('{"components": 5}')  # of an earlier version
    load_weights(nn.Linear(3, 2), path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"model.json: must be JSON"):
        load_weights(nn.Linear(3, 2), path)


def test_settings_stay_with_a_model_that_is_saved_again(tmp_path):
    _saved(tmp_path)
    again = nn.Linear(3, 2)
    save_model(again, tmp_path / "model.pt")
    assert model_setting(tmp_path / "model.pt", "components") == 5
    assert torch.equal(load_weights(nn.Linear(3, 2), tmp_path / "model.pt").weight, again.weight)


def test_every_flipped_bit_is_noticed_also_without_settings(tmp_path):
    network, path = _saved(tmp_path)
    (tmp_path / "model.json").unlink()
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        data = bytearray(content)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        loaded = nn.Linear(3, 2)
        try:
            load_weights(loaded, path)
        except ValueError as error:
            assert "model.pt" in str(error)  # noqa: PT017 - a flip in padding changes nothing
        else:
            assert torch.equal(loaded.weight, network.weight)
            assert torch.equal(loaded.bias, network.bias)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    torch.save({"weight": torch.full((2, 3), value), "bias": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model.pt: weight must be finite, got"):
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
