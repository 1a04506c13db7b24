"""One line an epoch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine, Events

from monai_dpmm.engines.distributed import is_main_process

if TYPE_CHECKING:
    from monai.engines import Evaluator

__all__ = ["EpochLines"]


class EpochLines:
    """Print one line an epoch: likelihood of training and validation, prototypes, seconds.

    Args:
        validator: whose metrics are told with the trainer's.
    """

    def __init__(self, validator: Evaluator) -> None:
        self.validator = validator
        self._start = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the validation handler."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self._begin())
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _begin(self) -> None:
        self._start = time.monotonic()

    def __call__(self, engine: Any) -> None:
        """Print the epoch's line; of several processes the main one does."""
        if not is_main_process():
            return
        state, of_validation = engine.state, self.validator.state
        parts = []
        if (training := state.metrics.get("train_log_likelihood")) is not None:
            parts.append(f"log-likelihood {training:.1f}")
        if (validation := of_validation.metrics.get("val_log_likelihood")) is not None:
            best = " (best so far)" if of_validation.best_metric_epoch == state.epoch else ""
            parts.append(f"validation {validation:.1f}{best}")
        if (components := state.metrics.get("components")) is not None:
            parts.append(f"{components:.0f} prototypes")
        parts.append(f"{time.monotonic() - self._start:.0f} s")
        print(f"Epoch {state.epoch} of {state.max_epochs}: {', '.join(parts)}", flush=True)
