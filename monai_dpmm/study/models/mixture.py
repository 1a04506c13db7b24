"""The mixture as a comparison has it: fitted in memory to embeddings that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.checks import check_at_least_one
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.place_choice import calibrate_places
from monai_dpmm.study.models.normality import NormalityModel, patches_of

__all__ = ["FINITE", "PLACED", "MixtureModel"]

FINITE = {"concentration": 1.0, "learn_concentration": False, "initial_weights": "uniform"}
PLACED = "placed-"  # what the kind of a score begins with that knows the patches' places
_CHUNK = 64  # slices
Placed = tuple[Sequence[Tensor], Sequence[Tensor]]


class MixtureModel(NormalityModel):
    """A `DPMM` fitted as in training: batches of slices in random order, the best epoch kept.

    With the options `FINITE` it is a Gaussian mixture of K components instead: with α = 1 kept, the
    prior v_k ~ Beta(1, 1) is uniform, and the weights of the M-step are s_k, those of maximum
    likelihood; they start equal.

    With a `place_grid` among the options, and after `place`, a score such as "placed-cosine" is
    that with the weights of each patch's place.

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

    def place(self, slices: Placed, held_out: Placed) -> float:
        """Count the components at the places of healthy patches; nats a patch that is gained.

        How much places count for is decided by the slices held out, see `calibrate_places`.

        Args:
            slices: patch grids and the places of their patches, (h, w, D) and (h, w, d) each.
            held_out: likewise, of others.

        Raises:
            ValueError: for a mixture without a `place_grid`.
        """
        places = self.module.places
        if places is None:
            raise InputError("options must have a place_grid, got none")
        total = torch.zeros(places.counts.shape, dtype=torch.float64)
        for x, u in self._placed(slices):
            total += self.module.place_counts(x, u).cpu()
        places.counts.copy_(total)
        return calibrate_places(self.module, list(self._placed(held_out)))

    def _placed(self, slices: Placed) -> Iterator[tuple[Tensor, Tensor]]:
        """Patches (N, D) and their places (N, d), some slices at a time."""
        grids, places = slices
        for start in range(0, len(grids), _CHUNK):
            part = range(start, min(start + _CHUNK, len(grids)))
            u = torch.cat([places[i][grids[i].any(-1)] for i in part])
            yield patches_of([grids[i] for i in part]).to(self.device), u.to(self.device)

    def _scores(self, x: Tensor, kind: Any, places: Tensor | None) -> Tensor:
        own = places if kind.startswith(PLACED) else None
        return self.module.score(x, kind.removeprefix(PLACED), own)

    def _lowest_score(self, kind: Any) -> Tensor:
        return self.module.lowest_score(kind.removeprefix(PLACED))

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
