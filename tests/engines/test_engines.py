import json
import logging
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from monai.apps.utils import get_logger
from monai.data import Dataset
from monai.handlers import (
    CheckpointLoader,
    CheckpointSaver,
    EarlyStopHandler,
    MetricsSaver,
    StatsHandler,
    ValidationHandler,
    from_engine,
)
from torch import nn

from monai_dpmm.engines.engines import EMTrainer, LikelihoodEvaluator
from monai_dpmm.engines.handlers import BestModelSaver, ThresholdCalibration, Validation
from monai_dpmm.engines.resuming import History, TrainingCheckpoint
from monai_dpmm.engines.slices import SliceDataLoader
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.network.detector import AnomalyDetector

D, K = 8, 12


def _embeddings(scans, seed):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(6, D, generator=torch.Generator().manual_seed(7))
    data = []
    for _ in range(scans):
        labels = torch.randint(6, (5, 6, 6), generator=generator)
        noise = torch.randn(5, 6, 6, D, generator=generator)
        patches = nn.functional.normalize(centres[labels] + 0.2 * noise, dim=-1)
        data.append({"image": patches})
    return Dataset(data)


def _workflow(folder, max_epochs, *, resume=False, stop_after=None):
    train, val = _embeddings(4, 0), _embeddings(2, 1)
    detector = AnomalyDetector(nn.Identity(), DPMM(D, K, seed=3))
    evaluator = LikelihoodEvaluator(
        device="cpu",
        val_data_loader=SliceDataLoader(val, batch_size=4),
        detector=detector,
        val_handlers=[
            ThresholdCalibration(detector),
            BestModelSaver(folder / "model.pt", detector, {"components": K}),
        ],
    )
    trainer = EMTrainer(
        device="cpu",
        max_epochs=max_epochs,
        train_data_loader=SliceDataLoader(train, batch_size=3, shuffle=True, seed=5),
        mixture=detector.mixture,
        train_handlers=[
            ValidationHandler(1, evaluator),
            History(folder / "history.json", evaluator),
            TrainingCheckpoint(
                folder / "checkpoint.pt", detector.mixture, evaluator, resume=resume
            ),
        ],
    )
    return trainer, evaluator, detector


def _equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_raises_the_likelihood_and_finds_the_clusters(tmp_path):
    trainer, _, detector = _workflow(tmp_path, 8)
    trainer.run()
    records = json.loads((tmp_path / "history.json").read_text())
    assert [record["epoch"] for record in records] == list(range(1, 9))
    assert records[-1]["val_log_likelihood"] > records[0]["val_log_likelihood"]
    assert records[-1]["train_log_likelihood"] > records[0]["train_log_likelihood"]
    assert records[-1]["concentration"] == pytest.approx(detector.mixture.concentration.item())
    assert 4 <= records[-1]["components"] <= K


def test_one_iteration_is_one_em_step(tmp_path):
    trainer, _, detector = _workflow(tmp_path, 1)
    reference = DPMM(D, K, seed=3)
    trainer.data_loader.sampler.set_epoch(1)
    losses, counts = [], []
    for batch in trainer.data_loader:
        if not reference.fitted:
            reference.initialize(batch["image"])
        losses.append(-reference.step(batch["image"]))
        counts.append(len(batch["image"]))
    trainer.run()
    assert _equal(reference.state_dict(), detector.mixture.state_dict())
    assert from_engine(["loss"], first=True)(trainer.state.output) == losses[-1]
    assert len(set(counts)) == 2  # a ragged last batch, so patches and batches weigh differently
    mean = torch.stack(losses) @ torch.tensor(counts).float() / sum(counts)
    assert trainer.state.metrics["train_log_likelihood"] == pytest.approx(-mean.item(), rel=1e-6)


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path):
    whole, _, expected = _workflow(tmp_path / "whole", 6)
    whole.run()
    first, _, _ = _workflow(tmp_path / "parts", 3)
    first.run()
    second, evaluator, resumed = _workflow(tmp_path / "parts", 6, resume=True)
    second.run()
    assert second.state.epoch == 6
    assert _equal(resumed.mixture.state_dict(), expected.mixture.state_dict())
    for name in ("model.pt", "checkpoint.pt"):
        a = torch.load(tmp_path / "whole" / name, weights_only=True)
        b = torch.load(tmp_path / "parts" / name, weights_only=True)
        assert _equal(a.get("mixture", a), b.get("mixture", b))
    assert (tmp_path / "whole/history.json").read_text() == (
        tmp_path / "parts/history.json"
    ).read_text()
    assert evaluator.state.best_metric == _best(tmp_path / "whole")


def _best(folder):
    return max(r["val_log_likelihood"] for r in json.loads((folder / "history.json").read_text()))


def test_the_saved_model_is_the_best_epoch_with_its_own_thresholds(tmp_path):
    trainer, evaluator, _ = _workflow(tmp_path, 5)
    trainer.run()
    records = json.loads((tmp_path / "history.json").read_text())
    best = max(records, key=lambda record: record["val_log_likelihood"])
    assert evaluator.state.best_metric_epoch == best["epoch"]
    loaded = AnomalyDetector(nn.Identity(), DPMM(D, K))
    loaded.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    patches = torch.cat([item["image"].flatten(0, 2) for item in _embeddings(2, 1)])
    assert loaded.mixture.log_prob(patches).mean().item() == pytest.approx(
        best["val_log_likelihood"], abs=1e-4
    )
    scores = loaded.patch_scores(patches)
    for rate in (0.01, 0.05, 0.1):
        above = int((scores > loaded.threshold(rate)).sum())
        assert above == int(rate * len(patches) + 1e-9)
    assert json.loads((tmp_path / "model.json").read_text())["components"] == K


def test_a_worse_resumed_epoch_does_not_replace_the_best_model(tmp_path):
    first, _, _ = _workflow(tmp_path, 3)
    first.run()
    before = (tmp_path / "model.pt").read_bytes()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["validator"]["best_metric"] = 1e9
    torch.save(state, tmp_path / "checkpoint.pt")
    second, evaluator, _ = _workflow(tmp_path, 4, resume=True)
    second.run()
    assert (tmp_path / "model.pt").read_bytes() == before
    assert evaluator.state.best_metric == 1e9


def test_resuming_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint.pt: must exist to resume from"):
        _workflow(tmp_path, 1, resume=True)  # before any work is done


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_patches_that_are_not_finite_end_training_before_anything_is_saved(value):
    good = torch.nn.functional.normalize(torch.randn(50, D), dim=1)
    bad = good.clone()
    bad[3, 1] = value
    mixture, ended = DPMM(D, K), []
    trainer = EMTrainer("cpu", 2, [{"image": good}, {"image": bad}], mixture)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: ended.append(1))
    with pytest.raises(ValueError, match="patches must be finite, the log-likelihood of epoch 1"):
        trainer.run()
    assert not ended


def test_monais_own_handlers_serve_both_engines(tmp_path, caplog):
    train, val = _embeddings(4, 0), _embeddings(2, 1)
    detector = AnomalyDetector(nn.Identity(), DPMM(D, K, seed=3))
    keep = {"mixture": detector.mixture}
    logger = get_logger("handlers")
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    evaluator = LikelihoodEvaluator(
        device="cpu",
        val_data_loader=SliceDataLoader(val, batch_size=4),
        detector=detector,
        val_handlers=[
            StatsHandler(iteration_log=False, name="handlers"),
            CheckpointSaver(str(tmp_path), keep, save_key_metric=True, key_metric_n_saved=1),
            MetricsSaver(str(tmp_path), metrics="*"),
        ],
    )
    stop = EarlyStopHandler(
        patience=2,
        score_function=lambda engine: -engine.state.epoch,  # falls, so the third epoch is the last
        epoch_level=True,
    )
    trainer = EMTrainer(
        device="cpu",
        max_epochs=6,
        train_data_loader=SliceDataLoader(train, batch_size=3, shuffle=True, seed=5),
        mixture=detector.mixture,
        train_handlers=[
            ValidationHandler(1, evaluator),
            StatsHandler(name="handlers", output_transform=from_engine(["loss"], first=True)),
            CheckpointSaver(str(tmp_path), keep, save_final=True, final_filename="final.pt"),
            stop,
        ],
    )
    stop.set_trainer(trainer)
    trainer.run()
    assert trainer.state.epoch == 3
    assert "Loss: " in caplog.text
    assert "val_log_likelihood: " in caplog.text
    metrics = (tmp_path / "metrics.csv").read_text()
    assert "val_log_likelihood" in metrics
    assert len(list(tmp_path.glob("*key_metric*.pt"))) == 1
    restored = DPMM(D, K)
    loader = CheckpointLoader(str(tmp_path / "final.pt"), {"mixture": restored})
    loader(trainer)
    assert _equal(restored.state_dict(), detector.mixture.state_dict())


@pytest.mark.parametrize(("interval", "epochs"), [(1, [1, 2, 3]), (2, [2, 3]), (100, [3])])
def test_the_last_epoch_is_always_validated(interval, epochs, tmp_path):
    trainer, evaluator, detector = _workflow(tmp_path, 3)
    seen = []
    evaluator.add_event_handler(Events.COMPLETED, lambda _: seen.append(trainer.state.epoch))
    trainer = EMTrainer(
        "cpu", 3, trainer.data_loader, detector.mixture, [Validation(interval, evaluator)]
    )
    trainer.run()
    assert seen == epochs
    assert (tmp_path / "model.pt").is_file()


def test_a_training_is_resumed_with_its_own_settings_only(tmp_path):
    trainer, evaluator, detector = _workflow(tmp_path, 1)
    parts = (tmp_path / "checkpoint.pt", detector.mixture, evaluator)
    TrainingCheckpoint(*parts, settings={"window": (0, 80), "image_size": 96}).attach(trainer)
    trainer.run()
    same = TrainingCheckpoint(*parts, settings={"window": [0, 80], "image_size": 96})
    same._load(trainer)
    other = TrainingCheckpoint(*parts, settings={"window": None, "image_size": 96})
    told = r"resumed with its own settings, window was \[0, 80\] and is None"
    with pytest.raises(ValueError, match=told):
        other._load(trainer)
    torch.save({}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="must be a training's checkpoint, KeyError"):
        same._load(trainer)


def test_a_training_is_resumed_with_its_own_data_only(tmp_path):
    class Embeddings(list):
        def path(self, index):
            return Path(f"{self[index]}.safetensors")

    trainer, evaluator, detector = _workflow(tmp_path, 1)
    parts = (tmp_path / "checkpoint.pt", detector.mixture, evaluator)
    TrainingCheckpoint(*parts, datasets=[Embeddings("ab"), Embeddings("c")]).attach(trainer)
    trainer.run()
    TrainingCheckpoint(*parts, datasets=[Embeddings("ab"), Embeddings("c")])._load(trainer)
    for others in ([Embeddings("ac"), Embeddings("b")], [Embeddings("ba"), Embeddings("c")]):
        with pytest.raises(ValueError, match=r"checkpoint.pt: must be resumed with its own data"):
            TrainingCheckpoint(*parts, datasets=others)._load(trainer)


def test_a_setting_that_an_earlier_version_did_not_keep_is_no_reason_to_refuse(tmp_path):
    trainer, evaluator, detector = _workflow(tmp_path, 1)
    parts = (tmp_path / "checkpoint.pt", detector.mixture, evaluator)
    TrainingCheckpoint(*parts, settings={"image_size": 96}).attach(trainer)
    trainer.run()
    resumed = TrainingCheckpoint(*parts, settings={"image_size": 96}, training={"seed": 0})
    resumed._load(trainer)


def test_what_cannot_be_resumed_is_refused_before_any_work(tmp_path):
    trainer, _, _ = _workflow(tmp_path, 3)
    trainer.run()
    with pytest.raises(ValueError, match=r"max_epochs must be at least 3, .* got 2"):
        _workflow(tmp_path, 2, resume=True)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    state["mixture"]["offsets"][0, 0] = torch.nan
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt: offsets must be finite"):
        _workflow(tmp_path, 3, resume=True)
    state["mixture"]["offsets"] = torch.ones(D)
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt: offsets must have shape"):
        _workflow(tmp_path, 3, resume=True)


@pytest.mark.parametrize("content", ["{", '{"epoch": 1}', '[{"loss": 1}]', '[{"epoch": "x"}]'])
def test_a_broken_history_is_refused_before_any_work(tmp_path, content):
    (tmp_path / "history.json").write_text(content)
    trainer, evaluator, _ = _workflow(tmp_path, 1)
    with pytest.raises(ValueError, match=r"history.json: must be a training's history"):
        History(tmp_path / "history.json", evaluator, resume=True).attach(trainer)
