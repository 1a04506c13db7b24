"""What a comparison asks of a model of normality, and what models by patches share.

A model is fitted to healthy slices, patch grids (h, w, D) whose background is zero, and scores the
patches of others. Letters as everywhere: N patches, K components, D features, S slices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NormalityModel", "patches_of"]


class NormalityModel(ABC):
    """A way to model normality.

    Attributes:
        module: holds all that scoring needs, in its buffers, on the device where it runs. Models
            that score each patch alone have one with `score` and `lowest_score`, as `DPMM` and
            `MemoryBank`.
    """

    module: Any

    @property
    @abstractmethod
    def prototypes(self) -> int:
        """What a patch is compared with: how many, 0 until `fit`."""

    @abstractmethod
    def fit(self, slices: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Fit to healthy slices (h, w, D), choosing by others that are held out, if at all."""

    def score(self, slices: Tensor, kind: Any, places: Tensor | None = None) -> Tensor:
        """Score of each patch: (S, h, w, D) -> (S, h, w), on the CPU; background the lowest.

        Args:
            slices: patch grids.
            kind: of score, one of the model's own.
            places: of the patches, (S, h, w, d) in [0, 1], which some models know what to do with.
        """
        there = slices.any(dim=-1)
        result = torch.full(there.shape, float(self._lowest_score(kind)))
        if bool(there.any()):
            own = None if places is None else places[there].to(self.device)
            result[there] = self._scores(slices[there].to(self.device), kind, own).float().cpu()
        return result

    def _scores(self, x: Tensor, kind: Any, places: Tensor | None) -> Tensor:
        """Score of each patch: (N, D), (N, d) -> (N,)."""
        return self.module.score(x, kind)

    def _lowest_score(self, kind: Any) -> Tensor:
        return self.module.lowest_score(kind)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        module: nn.Module = self.module
        return next(module.buffers()).device


def patches_of(slices: Sequence[Tensor]) -> Tensor:
    """Patches that are not background: grids (h, w, D) -> (N, D)."""
    return torch.cat([grid[grid.any(dim=-1)] for grid in slices])
