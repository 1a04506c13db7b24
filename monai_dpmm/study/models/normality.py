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

    def score(self, slices: Tensor, kind: Any) -> Tensor:
        """Score of each patch: (S, h, w, D) -> (S, h, w), on the CPU; background the lowest."""
        there = slices.any(dim=-1)
        result = torch.full(there.shape, float(self.module.lowest_score(kind)))
        if bool(there.any()):
            patches = slices[there].to(self.device)
            result[there] = self.module.score(patches, kind).float().cpu()
        return result

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        module: nn.Module = self.module
        return next(module.buffers()).device


def patches_of(slices: Sequence[Tensor]) -> Tensor:
    """Patches that are not background: grids (h, w, D) -> (N, D)."""
    return torch.cat([grid[grid.any(dim=-1)] for grid in slices])
