"""Ignite handlers of the training workflow: thresholds, validation, the best model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events
from monai.handlers import ValidationHandler
from monai.utils import CommonKeys as Keys

from monai_dpmm.engines.distributed import gathered, is_main_process
from monai_dpmm.engines.model_files import save_model

if TYPE_CHECKING:
    from monai.engines import Evaluator
    from torch import Tensor

    from monai_dpmm.network.detector import AnomalyDetector

__all__ = [
    *("BestModelSaver", "ThresholdCalibration", "Validation"),
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
            save_model(self.network, self.path, self.settings)
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
