"""Ignite engines without gradients: batched EM in training, likelihood in validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events
from ignite.metrics import Average, Metric, MetricsLambda
from monai.engines import Evaluator, Trainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys as Keys

from monai_dpmm.engines.distributed import all_reduced, broadcast_buffers, gathered
from monai_dpmm.errors import InputError
from monai_dpmm.mixture.planes import PlaneMixtures, mixture_of, mixtures, num_surviving
from monai_dpmm.transforms.metatensors import DIRECTION

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader

    from monai_dpmm.mixture.dpmm import DPMM
    from monai_dpmm.network.detector import AnomalyDetector

__all__ = ["EMTrainer", "LikelihoodEvaluator", "patches_of"]


class EMTrainer(Trainer):
    """Fit a mixture by batched EM (paper, Eq. 5-10): one step for each batch of patches.

    `state.output` of an iteration is a list of one dictionary, as MONAI's trainers leave decollated
    batches, so `from_engine(["loss"], first=True)` serves here, too. It holds the patches
    ("image"), None ("label") and the batch's mean negative log-likelihood before the update, in
    nats ("loss"). At the end of an epoch, before any
    other handler, vanished components are pruned, and `state.metrics` gets "train_log_likelihood"
    (mean over the epoch's patches, in nats), "concentration" (α, the mean of all directions) and
    "components" (how many survive, of all directions).

    The mixture is started from the first batch unless a checkpoint or an earlier run has fitted it.
    Several processes, each with its part of every batch, start and fit the mixture of the whole
    batches: patches are gathered for the start, moments are summed in every step.

    Patches that are not finite end the training with a ValueError at the end of their epoch, before
    any handler saves what they have made of the mixture.

    Args:
        device: where the mixture is fitted.
        max_epochs: passes over the data.
        train_data_loader: yields {"image": embeddings (..., D)}, and the "direction" that they are
            of where there are several, see `SliceDataset`.
        mixture: what is fitted, moved to the device; `PlaneMixtures` for several directions.
        train_handlers: MONAI or Ignite handlers.
        **kwargs: further arguments of `monai.engines.Trainer`.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        mixture: DPMM | PlaneMixtures,
        train_handlers: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            decollate=False,  # an output is a batch of patches: decollating makes N dictionaries
            **kwargs,
        )
        self.mixture = mixture.to(self.state.device)
        self.add_event_handler(Events.EPOCH_STARTED, _start_epoch)
        self.add_event_handler(Events.EPOCH_COMPLETED, _finish_epoch)
        if train_handlers is not None:
            self._register_handlers(train_handlers)

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        patches = patches_of(batchdata, engine)
        mixture = mixture_of(self.mixture, batchdata.get(DIRECTION, 0))
        if not mixture.fitted:
            mixture.initialize(gathered(patches))
        output = {Keys.IMAGE: patches, Keys.LABEL: None}
        engine.state.output = [output]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        moments = all_reduced(mixture.e_step(patches))
        mixture.m_step(moments)
        engine.state.totals += torch.stack([moments.log_likelihood, moments.count])
        loss = -moments.log_likelihood / moments.count
        output[Keys.LOSS] = loss.to(mixture.offsets.dtype)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class LikelihoodEvaluator(Evaluator):
    """Mean log-likelihood of healthy validation patches, in nats: metric "val_log_likelihood".

    `state.output` of an iteration holds the patches ("image"), None ("label"), their anomaly
    scores (N,) ("pred") and the log-likelihood (N,) of the surviving mixture ("log_likelihood"),
    both without place.

    Args:
        device: where the mixture is evaluated.
        val_data_loader: yields {"image": embeddings (..., D)}.
        detector: whose mixture is evaluated, and whose score is computed.
        val_handlers: MONAI or Ignite handlers.
        **kwargs: further arguments of `monai.engines.Evaluator`.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: DataLoader,
        detector: AnomalyDetector,
        val_handlers: Sequence[Any] | None = None,
        additional_metrics: dict[str, Metric] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            device=device,
            val_data_loader=val_data_loader,
            key_val_metric={"val_log_likelihood": _patch_mean("log_likelihood", device)},
            additional_metrics=additional_metrics,
            val_handlers=val_handlers,
            decollate=False,
            **kwargs,
        )
        self.detector = detector.to(self.state.device)

    def _iteration(self, engine: LikelihoodEvaluator, batchdata: dict[str, Any]) -> dict[str, Any]:
        patches, direction = patches_of(batchdata, engine), batchdata.get(DIRECTION, 0)
        mixture = mixture_of(self.detector.mixture, direction)
        if len(self.detector.mixtures) > 1 and not mixture.fitted:  # no training scan has it
            patches = patches[:0]
        none = patches.new_zeros(0)
        engine.state.output = {
            Keys.IMAGE: patches,
            Keys.LABEL: None,
            Keys.PRED: self.detector.patch_scores(patches, direction) if len(patches) else none,
            "log_likelihood": mixture.log_prob(patches) if len(patches) else none,
        }
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


def _patch_mean(name: str, device: torch.device | str) -> Metric:
    """Mean over all patches of an epoch of the output `name` (N,), however long its batches."""
    average = Average(lambda output: output[name].unsqueeze(-1), device=device)
    return MetricsLambda(lambda mean: float(mean[0]), average)


def patches_of(batchdata: dict[str, Any], engine: Any) -> Tensor:
    """Patches (N, D) of a batch, on the engine's device."""
    patches = batchdata[Keys.IMAGE].to(engine.state.device, non_blocking=engine.non_blocking)
    return patches.flatten(0, -2)


def _start_epoch(engine: Any) -> None:
    device = mixtures(engine.mixture)[0].concentration.device
    engine.state.totals = torch.zeros(2, dtype=torch.float64, device=device)


def _finish_epoch(engine: Any) -> None:
    broadcast_buffers(engine.mixture)
    fitted = [one for one in mixtures(engine.mixture) if one.fitted]
    for mixture in fitted:
        mixture.prune()
    log_likelihood, count = engine.state.totals.tolist()
    if not math.isfinite(log_likelihood):
        raise InputError(
            f"patches must be finite, the log-likelihood of epoch {engine.state.epoch} is"
            f" {log_likelihood}"
        )
    engine.state.metrics["train_log_likelihood"] = log_likelihood / count
    concentrations = [mixture.concentration.item() for mixture in fitted]
    engine.state.metrics["concentration"] = sum(concentrations) / len(fitted)
    engine.state.metrics["components"] = num_surviving(engine.mixture)
