"""PaDiM: a Gaussian of healthy patches for each place of the patch grid.

Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and
Localization", ICPR 2021 Workshops: a full covariance over randomly selected features, and the
Mahalanobis distance as the score. Letters: S slices, (h, w) patch grid of P = h·w places, D
features, d of them selected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.checks import check_at_least_one
from monai_dpmm.mixture.precision import exact
from monai_dpmm.study.models.normality import NormalityModel

__all__ = ["PaDiM", "PaDiMModel"]

_CHUNK = 32  # slices


class PaDiM(nn.Module, NormalityModel):
    """Healthy Gaussians of all places, for slices that are aligned with each other.

    A place's covariance is that of its healthy patches plus `regularization` times the mean square
    of a feature, PaDiM's 0.01 where features are about 1; so scores do not depend on the scale of
    the embeddings. A place that no healthy slice has covered takes the Gaussian of all patches.

    Beside its state, P·d·(d + 1) numbers, memory does not grow with the slices.

    Args:
        features: D.
        grid: (h, w).
        selected: d, or all features where these are fewer.
        regularization: of the covariances, relative.
        seed: of the selection.

    Attributes:
        chosen: buffer (d,), the features selected.
        means: buffer (P, d).
        factors: buffer (P, d, d), lower Cholesky factors of the covariances; 0 until `fit`.

    Raises:
        ValueError: for arguments out of range.
    """

    chosen: Tensor
    means: Tensor
    factors: Tensor

    def __init__(
        self,
        features: int,
        grid: tuple[int, int],
        *,
        selected: int = 100,
        regularization: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("features", features), ("grid", min(grid)), ("selected", selected)):
            check_at_least_one(name, value)
        if not regularization > 0:
            raise InputError(f"regularization must be positive, got {regularization}")
        self.features = features
        self.grid = (int(grid[0]), int(grid[1]))
        self.regularization = regularization
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(features, generator=generator)[:selected].sort().values
        places, d = grid[0] * grid[1], len(chosen)
        self.register_buffer("chosen", chosen)
        self.register_buffer("means", torch.zeros(places, d))
        self.register_buffer("factors", torch.zeros(places, d, d))

    @property
    def module(self) -> PaDiM:
        """Itself."""
        return self

    @property
    def prototypes(self) -> int:
        """Places, 0 until `fit`."""
        return len(self.means) if bool(self.factors[0, 0, 0]) else 0

    @exact
    def fit(self, slices: Sequence[Tensor], held_out: Sequence[Tensor] = ()) -> None:
        """Fit to healthy slices (h, w, D), background patches zero, whatever was fitted before.

        Raises:
            ValueError: for slices of another shape, patches that are not finite, or fewer than two
                that are not background.
        """
        count = self.means.new_zeros(len(self.means))
        total, square = torch.zeros_like(self.means), self.means.new_zeros(())
        for x, there in self._chunks(slices):
            count += there.sum(0)
            total += x.sum(0)
            square += x.square().sum()
        if count.sum() < 2 or not torch.isfinite(square):
            raise InputError(
                f"slices must hold at least 2 patches, all finite, got {int(count.sum())} with a"
                f" sum of squares of {float(square):g}"
            )
        self.means.copy_(total / count.clamp_min(1)[:, None])
        scatter = torch.zeros_like(self.factors)
        for x, there in self._chunks(slices):
            centred = ((x - self.means) * there[..., None]).movedim(0, 1)
            scatter.baddbmm_(centred.mT, centred)
        ridge = self.regularization * square / (count.sum() * len(self.chosen))
        self._maximise(count, total, scatter, ridge)

    def _maximise(self, count: Tensor, total: Tensor, scatter: Tensor, ridge: Tensor) -> None:
        covered, mean = count > 0, total.sum(0) / count.sum()
        apart = (self.means - mean) * count.sqrt()[:, None]
        pooled = (scatter.sum(0) + apart.mT @ apart) / (count.sum() - 1)
        covariance = scatter.div_((count - 1).clamp_min(1)[:, None, None])
        covariance[~covered] = pooled
        covariance.diagonal(dim1=1, dim2=2).add_(ridge)
        self.means[~covered] = mean
        torch.linalg.cholesky(covariance, out=self.factors)

    @exact
    def score(
        self, slices: Tensor, kind: Any = "mahalanobis", places: Tensor | None = None
    ) -> Tensor:
        """Mahalanobis distance of each patch to its place: (S, h, w, D) -> (S, h, w), 0 background.

        Raises:
            ValueError: for slices of another shape, or another kind of score.
            RuntimeError: before `fit`.
        """
        if kind != "mahalanobis":
            raise InputError(f"kind must be mahalanobis for PaDiM, got {kind!r}")
        if not self.prototypes:
            raise RuntimeError("PaDiM is not fitted: call fit, or load a checkpoint")
        parts = []
        for x, there in self._chunks(slices):
            offsets = (x - self.means).permute(1, 2, 0)
            whitened = torch.linalg.solve_triangular(self.factors, offsets, upper=False)
            parts.append(whitened.norm(dim=1).T * there)
        return torch.cat(parts).view(-1, *self.grid).cpu()

    def _chunks(self, slices: Sequence[Tensor] | Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Selected features (s, P, d) of some slices, and which patches are there (s, P)."""
        for start in range(0, len(slices), _CHUNK):
            part = [self._checked(x) for x in slices[start : start + _CHUNK]]
            x = torch.stack(part).flatten(1, 2).to(self.means.device)
            yield x.index_select(2, self.chosen).to(self.means.dtype), x.any(dim=2)

    def _checked(self, x: Tensor) -> Tensor:
        if tuple(x.shape) != (*self.grid, self.features):
            raise InputError(
                f"slices must be of shape {(*self.grid, self.features)}, got {tuple(x.shape)}"
            )
        return x


PaDiMModel = PaDiM  # its name of one earlier version
