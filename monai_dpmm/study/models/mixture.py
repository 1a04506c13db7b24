"""The mixture as a comparison has it: fitted in memory to embeddings that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_dpmm.mixture.checks import check_at_least_one
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.study.models.normality import NormalityModel, patches_of

__all__ = ["FINITE", "MixtureModel"]

FINITE = {"concentration": 1.0, "learn_concentration": False, "initial_weights": "uniform"}
_CHUNK = 64  # slices


class MixtureModel(NormalityModel):
    """A `DPMM` fitted as in training: batches of slices in random order, the best epoch kept.

    With the options `FINITE` it is a Gaussian mixture of K components instead: with α = 1 kept, the
    prior v_k ~ Beta(1, 1) is uniform, and the weights of the M-step are s_k, those of maximum
    likelihood; they start equal.

    Args:
        features: D.
        options: further arguments of `DPMM`.
        epochs: at least 1; that of the highest likelihood of the slices held out is kept.
        batch_size: slices.
        seed: of the start and the order of the slices.
    """

    module: DPMM

    def __init__(
        self,
        features: int,
        options: Mapping[str, Any],
        *,
        epochs: int = 40,
        batch_size: int = 12,
        seed: int = 0,
    ) -> None:
        check_at_least_one("epochs", epochs)
        check_at_least_one("batch_size", batch_size)
        self.module = DPMM(features, **{**options, "seed": seed})
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed

    @property
    def prototypes(self) -> int:
        """Components that survive."""
        return int(self.module.num_surviving)

    def fit(self, slices: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Run all epochs, and go back to the best."""
        best, state = -torch.inf, {}
        for epoch in range(self.epochs):
            for x in self._batches(slices, epoch):
                if not self.module.fitted:
                    self.module.initialize(x)
                self.module.step(x)
            self.module.prune()
            log_likelihood = self._log_likelihood(held_out)
            if log_likelihood > best:
                best = log_likelihood
                state = {name: x.clone() for name, x in self.module.state_dict().items()}
        self.module.load_state_dict(state)

    def _batches(self, slices: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
        """Patches (N, D) in the order that training has them in."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        for batch in torch.randperm(len(slices), generator=generator).split(self.batch_size):
            yield patches_of([slices[i] for i in batch]).to(self.device)

    def _log_likelihood(self, slices: Sequence[Tensor]) -> float:
        """Mean over all patches, nats."""
        parts = range(0, len(slices), _CHUNK)
        patches = (patches_of(slices[i : i + _CHUNK]).to(self.device) for i in parts)
        return float(torch.cat([self.module.log_prob(x).double() for x in patches]).mean())
