import json
import stat

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_dpmm.engines.handlers import BestModelSaver, ThresholdCalibration
from monai_dpmm.engines.resuming import History
from monai_dpmm.files import file_digest


class _Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.false_positive_rates = torch.tensor([0.05])
        self.thresholds = torch.tensor([float("nan")])
        self.seen = None
        self.keeps_patch_scores = True

    def calibrate(self, scores):
        self.seen = scores
        self.thresholds = scores.max()[None]


def _engine(outputs):
    engine = Engine(lambda engine, batch: {"pred": batch})
    engine.state.best_metric_epoch = -1
    return engine, outputs


def test_calibration_sees_each_epochs_scores_once():
    detector = _Detector()
    engine, batches = _engine([torch.rand(5), torch.rand(3)])
    ThresholdCalibration(detector).attach(engine)
    engine.run(batches, max_epochs=2)
    assert torch.equal(detector.seen, torch.cat(batches))
    assert engine.state.metrics["threshold_0.05"] == detector.thresholds.item()


def test_a_detector_whose_maps_are_none_of_patches_is_not_calibrated_on_them():
    detector = _Detector()
    detector.keeps_patch_scores = False
    engine, batches = _engine([torch.rand(5)])
    ThresholdCalibration(detector).attach(engine)
    engine.run(batches, max_epochs=1)
    assert detector.seen is None
    assert detector.thresholds.isnan().all()


@pytest.mark.parametrize("best", [1, 2, 3])
def test_only_the_best_epoch_is_saved(tmp_path, best):
    network = nn.Linear(1, 1)
    engine, batches = _engine([torch.rand(1)])

    @engine.on(Events.EPOCH_COMPLETED)
    def _(engine):
        nn.init.constant_(network.bias, engine.state.epoch)
        engine.state.best_metric_epoch = min(engine.state.epoch, best)

    path = tmp_path / "models" / "model.pt"
    BestModelSaver(path, network, {"size": 3}).attach(engine)
    engine.run(batches, max_epochs=3)
    saved = torch.load(path, weights_only=True)
    assert saved["bias"].item() == best
    settings = json.loads((tmp_path / "models" / "model.json").read_text())
    assert settings == {"size": 3, "model_digest": file_digest(path)}
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.json", "model.pt"]
    assert path.stat().st_mode & stat.S_IRUSR


def test_history_joins_training_and_validation(tmp_path):
    trainer, validator = Engine(lambda e, b: b), Engine(lambda e, b: b)
    validator.state.metrics = {"val_log_likelihood": 2.0}
    History(tmp_path / "history.json", validator).attach(trainer)

    @trainer.on(Events.EPOCH_STARTED)
    def _(engine):
        engine.state.metrics["components"] = 7

    trainer.run([0], max_epochs=2)
    records = json.loads((tmp_path / "history.json").read_text())
    assert records == [
        {"epoch": epoch, "components": 7, "val_log_likelihood": 2.0} for epoch in (1, 2)
    ]
