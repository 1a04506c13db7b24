"""Files from strangers, at every door: nothing in them is run, and each is refused in one line."""

import io
import json
import pickle

import pytest
import torch
from ignite.engine import Engine
from monai.engines import Evaluator
from safetensors.torch import save_file

from monai_dpmm.backbones import load_backbone
from monai_dpmm.detector import AnomalyDetector
from monai_dpmm.handlers import TrainingCheckpoint
from monai_dpmm.merging import load_moments
from monai_dpmm.mixture import DPMM
from monai_dpmm.tensor_files import load_tensors
from monai_dpmm.warm_start import WarmStart
from monai_dpmm.weights import bundled_backbone, load_weights

D = 4


class Evil:
    """Unpickled, it leaves a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def _saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.fixture(params=["pickle", "zip", "garbage", "empty", "cut"])
def evil(request, tmp_path):
    """A bad file, as models/model.pt beside settings that look right."""
    code = {"weight": Evil(tmp_path / "trace")}
    content = {
        "pickle": pickle.dumps(code, protocol=2),
        "zip": _saved(code),
        "garbage": b"<html>not found</html>",
        "empty": b"",
        "cut": _saved({"weight": torch.ones(1000)})[:-500],
    }[request.param]
    (tmp_path / "model.pt").write_bytes(content)
    (tmp_path / "model.json").write_text('{"backbone_architecture": "efficientnet_lite0"}')
    return tmp_path / "model.pt"


def _detector():
    return AnomalyDetector(torch.nn.Conv2d(3, D, 1), DPMM(D, 5))


def _warm_start(path):
    WarmStart(path, _detector())._load(Engine(lambda *_: None))


def _resume(path):
    mixture = DPMM(D, 5)
    TrainingCheckpoint(path, mixture, Evaluator, resume=True)._load(Engine(lambda *_: None))


DOORS = {
    "tensors": load_tensors,
    "model": lambda path: load_weights(_detector(), path),
    "backbone of a model": load_backbone,
    "backbone of a bundle": lambda path: bundled_backbone("efficientnet_lite0", path),
    "official backbone": lambda path: load_backbone(path.rename(path.with_name("dinov2.pth"))),
    "moments": lambda path: load_moments(path, DPMM(D, 5)),
    "warm start": _warm_start,
    "checkpoint": _resume,
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_no_door_runs_what_a_file_holds(door, evil, tmp_path):
    with pytest.raises(ValueError, match=r"(model.pt|dinov2.pth) (is broken|must be a trained)"):
        door(evil)
    assert not (tmp_path / "trace").exists()


def test_the_evil_file_would_have_run(tmp_path):
    file = io.BytesIO(pickle.dumps(Evil(tmp_path / "trace"), protocol=2))
    pickle.load(file).close()
    assert (tmp_path / "trace").exists()


def test_a_hub_folder_of_pickles_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    torch.save({"weight": Evil(tmp_path / "trace")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pickled weights are not read"):
        load_backbone(tmp_path)
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "dinov2", "auto_map": {"AutoModel": "evil.Model"}})
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    with pytest.raises(ValueError, match="must hold every weight"):
        load_backbone(tmp_path)
    assert not (tmp_path / "trace").exists()


def test_tensors_numbers_and_text_come_back(tmp_path):
    content = {"a": torch.arange(3), "b": [1.5, "text"], "c": {"d": None}}
    torch.save(content, tmp_path / "file.pt")
    loaded = load_tensors(tmp_path / "file.pt")
    assert torch.equal(loaded.pop("a"), content.pop("a"))
    assert loaded == content


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.pt"):
        load_tensors(tmp_path / "nothing.pt")
