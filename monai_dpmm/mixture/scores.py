"""_Distances of patches to the surviving components, by the paper's words for them (Sec. 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_dpmm.mixture.gaussian import Density
from monai_dpmm.mixture.precision import is_traced

__all__ = ["Components", "ScoreKind", "chunks"]

ScoreKind = Literal["cosine", "euclidean", "likelihood", "mahalanobis", "mixture"]
_Distances = Callable[[Tensor], Tensor]  # a chunk of patches (n, D) -> (n, K)
_CHUNK = 1024  # patches: log-densities (1024, 500) stay in a core's cache
_DEVICE_CHUNK = 16384  # patches elsewhere, where launches cost more than memory does


class Components(NamedTuple):
    """Components at fixed parameters, ready to be compared with any number of patches.

    Attributes:
        means: μ_k, in input coordinates, (K, D).
        log_weights: log π_k, (K,).
        density: of all of them.
        expand: patches (n, D) -> what the density takes, (n, F).
    """

    means: Tensor
    log_weights: Tensor
    density: Density
    expand: Callable[[Tensor], Tensor]

    def log_density(self, x: Tensor) -> Tensor:
        """Log-densities of a chunk of patches, nats: (n, D) -> (n, K)."""
        return self.density.log_prob(self.expand(x))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-likelihood of each patch under all of them, nats: (N, D) -> (N,)."""
        if is_traced():
            return (self.log_density(x) + self.log_weights).logsumexp(1)
        result = x.new_empty(len(x))
        for part, out in zip(chunks(x), chunks(result), strict=True):
            torch.logsumexp(self.log_density(part).add_(self.log_weights), 1, out=out)
        return result

    def nearest(self, x: Tensor, kind: ScoreKind) -> tuple[Tensor, Tensor]:
        """Smallest distance of each patch, and the index of that component: (N,), (N,)."""
        distances = _DISTANCES[kind](self)
        if is_traced():
            return distances(x).min(dim=1)
        nearest, index = x.new_empty(len(x)), x.new_empty(len(x), dtype=torch.int64)
        for part, *out in zip(*map(chunks, (x, nearest, index)), strict=True):
            torch.min(distances(part), dim=1, out=out)
        return nearest, index


def chunks(x: Tensor) -> tuple[Tensor, ...]:
    """Patches a chunk at a time, so that memory does not grow with their number."""
    return x.split(_CHUNK if x.device.type == "cpu" else _DEVICE_CHUNK)


def _cosine(components: Components) -> _Distances:
    """1 - cos(x, μ_k), the paper's (Eq. 11)."""
    prototypes = F.normalize(components.means, dim=1)
    return lambda x: 1 - F.normalize(x, dim=1) @ prototypes.T


def _euclidean(components: Components) -> _Distances:
    """‖x - μ_k‖, about the mean of the prototypes, where the expanded squares lose the least."""
    origin = components.means.mean(0)
    prototypes = components.means - origin
    return lambda x: torch.cdist(x - origin, prototypes)


def _likelihood(components: Components) -> _Distances:
    """-log f_k(x)."""
    return lambda x: -components.log_density(x)


def _mahalanobis(components: Components) -> _Distances:
    """√(2 (log f_k(mode) - log f_k(x))), for Gaussians the Mahalanobis distance."""
    return lambda x: (
        (2 * (components.density.log_norm - components.log_density(x))).clamp_min(0).sqrt()
    )


def _mixture(components: Components) -> _Distances:
    """-log π_k f_k(x)."""
    return lambda x: -(components.log_density(x) + components.log_weights)


_DISTANCES: dict[str, Callable[[Components], _Distances]] = {
    "cosine": _cosine,
    "euclidean": _euclidean,
    "likelihood": _likelihood,
    "mahalanobis": _mahalanobis,
    "mixture": _mixture,
}
