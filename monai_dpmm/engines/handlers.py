"""Ignite handlers of the training workflow: thresholds, the best model, and resuming."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events
from monai.handlers import ValidationHandler
from monai.utils import CommonKeys as Keys

from monai_dpmm.engines.distributed import gathered, is_main_process
from monai_dpmm.errors import InputError, MissingFileError, cause
from monai_dpmm.files import atomic_write, load_tensors

if TYPE_CHECKING:
    from monai.engines import Evaluator
    from torch import Tensor

    from monai_dpmm.mixture.dpmm import DPMM
    from monai_dpmm.mixture.planes import PlaneMixtures
    from monai_dpmm.network.detector import AnomalyDetector

__all__ = [
    *("BestModelSaver", "History", "ThresholdCalibration", "TrainingCheckpoint", "Validation"),
    "save_network",
]


class ThresholdCalibration:
    """Calibrate a detector on the healthy patches that a validation epoch scores.

    Attach it to a `LikelihoodEvaluator`, before the handler that saves the model, so that what is
    saved always holds the thresholds of its own parameters. A detector whose finished maps are not
    those of patches (see `AnomalyDetector.keeps_patch_scores`) gets none here.

    Args:
        detector: whose thresholds are set.
    """

    def __init__(self, detector: AnomalyDetector) -> None:
        self.detector = detector
        self._scores: list[Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a validation engine."""
        if not self.detector.keeps_patch_scores:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._scores.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _collect(self, engine: Any) -> None:
        self._scores.append(engine.state.output[Keys.PRED])

    def __call__(self, engine: Engine) -> None:
        """Set the thresholds from all scores of the epoch, and log them."""
        self.detector.calibrate(gathered(torch.cat(self._scores)))
        self._scores.clear()
        rates = self.detector.false_positive_rates.tolist()
        for rate, threshold in zip(rates, self.detector.thresholds.tolist(), strict=True):
            engine.state.metrics[f"threshold_{rate:g}"] = threshold


class BestModelSaver:
    """Save the model whenever a validation epoch is the best so far: a flat state dict.

    The engine's own `best_metric_epoch` decides, which `TrainingCheckpoint` restores: a resumed
    run never replaces its best model by a worse one, as a fresh key-metric CheckpointSaver would.

    Args:
        path: the file, for example models/model.pt; replaced atomically.
        network: whose state dict is saved.
        settings: what inference must know of the model, saved as JSON beside it
            (models/model.json), an overlay for configs/inference.json.
    """

    def __init__(
        self,
        path: str | Path,
        network: torch.nn.Module,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.network = network
        self.settings = settings

    def attach(self, engine: Engine) -> None:
        """Attach to a validation engine."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Save where this epoch is the best; of several processes the main one does."""
        if engine.state.best_metric_epoch == engine.state.epoch and is_main_process():
            if self.settings is not None:
                text = json.dumps(self.settings, indent=4)
                _replace(self.path.with_suffix(".json"), lambda file: file.write_text(text))
            save_network(self.network, self.path)
            engine.logger.info(f"Saved the model of epoch {engine.state.epoch}: {self.path}")


class Validation(ValidationHandler):
    """MONAI's ValidationHandler, which also validates after the last epoch.

    So there is always a model: `BestModelSaver` saves what was validated.

    Args:
        interval: epochs from one validation to the next.
        validator: what is run.
    """

    def __init__(self, interval: int, validator: Evaluator) -> None:
        super().__init__(interval, validator)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""

        def due(trainer: Engine, epoch: int) -> bool:
            return epoch % self.interval == 0 or epoch == trainer.state.max_epochs

        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=due), self)


class TrainingCheckpoint:
    """Save all that an interrupted training needs after each epoch, and resume from it.

    A run that resumes gives what the uninterrupted run would have given, bit for bit on the CPU:
    the mixture's state, the trainer's epoch and the validator's best epoch are all that there is,
    since the order of the batches follows from the epoch (DistributedSampler) and EM draws nothing.

    Args:
        path: the file, replaced atomically at the end of each epoch.
        mixture: what is trained.
        validator: whose best metric is kept.
        resume: start from the file, which must exist; otherwise from scratch.
        settings: plain values of the training, which must be the same when it is resumed.
    """

    def __init__(
        self,
        path: str | Path,
        mixture: DPMM | PlaneMixtures,
        validator: Evaluator,
        *,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(dict(settings or {})))  # lists, as a file has them
        self.mixture = mixture
        self.validator = validator
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, as its last handler: validation comes before saving."""
        if self.resume:
            engine.add_event_handler(Events.STARTED, self._load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the state at the end of an epoch; of several processes the main one does."""
        if not is_main_process():
            return
        state = {
            "mixture": self.mixture.state_dict(),
            "trainer": dict(engine.state_dict()),
            "validator": {key: getattr(self.validator.state, key) for key in _BEST},
            "settings": self.settings,
        }
        _save(state, self.path)

    def _load(self, engine: Engine) -> None:
        if not self.path.is_file():
            raise MissingFileError(f"{self.path}: must exist to resume from, there is no such file")
        state = load_tensors(self.path)
        epochs = engine.state.max_epochs
        try:
            changed = _changed(state["settings"], self.settings)
            if changed:
                raise InputError(f"{self.path}: must be resumed with its own settings, {changed}")
            self.mixture.load_state_dict(state["mixture"])
            engine.load_state_dict({**state["trainer"], "max_epochs": epochs})
            for key in _BEST:
                setattr(self.validator.state, key, state["validator"][key])
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.path}: must be a training's checkpoint, {cause(error)}"
            ) from error
        engine.logger.info(f"Resumed after epoch {engine.state.epoch}: {self.path}")


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, in words; empty where none does."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{n} was {before.get(n)!r} and is {now.get(n)!r}" for n in names)


_BEST = ("best_metric", "best_metric_epoch")


class History:
    """Metrics of every epoch, trainer's and validator's together, for the training curves.

    Args:
        path: JSON file: a list of {"epoch": ..., metric: value, ...}, rewritten after each epoch; a
            resumed run continues the list.
        validator: whose metrics are added to the trainer's.
    """

    def __init__(self, path: str | Path, validator: Evaluator) -> None:
        self.path = Path(path)
        self.validator = validator
        self.records: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the validation handler."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Add the epoch's record and write the file; of several processes the main one does."""
        if not is_main_process():
            return
        epoch = engine.state.epoch
        if epoch > 1 and not self.records and self.path.is_file():
            earlier = json.loads(self.path.read_text())
            self.records = [record for record in earlier if record["epoch"] < epoch]
        metrics = {**engine.state.metrics, **self.validator.state.metrics}
        self.records.append({"epoch": epoch, **metrics})
        _replace(self.path, lambda file: file.write_text(json.dumps(self.records, indent=1)))


def save_network(network: torch.nn.Module, path: Path) -> None:
    """Write a network's state dict to a file, which is replaced atomically."""
    _save(network.state_dict(), path)


def _save(state: dict[str, Any], path: Path) -> None:
    _replace(path, lambda file: torch.save(state, file))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its place and move it there: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        write(partial)
