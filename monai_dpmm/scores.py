"""Distances of patches to the surviving components, by the paper's words for them (Sec. 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["DISTANCES", "Components", "ScoreKind"]

ScoreKind = Literal["cosine", "euclidean", "likelihood", "mahalanobis", "mixture"]
Distances = Callable[[Tensor], Tensor]  # a chunk of patches (n, D) -> (n, K)


class Components(NamedTuple):
    """Components at fixed parameters, ready to be compared with many chunks of patches.

    Attributes:
        means: μ_k, in input coordinates, (K, D).
        log_weights: log π_k, (K,).
        log_norm: highest value of each log-density, nats, (K,).
        log_density: patches (n, D) -> log-densities (n, K), nats.
    """

    means: Tensor
    log_weights: Tensor
    log_norm: Tensor
    log_density: Distances


def _cosine(components: Components) -> Distances:
    """1 - cos(x, μ_k), the paper's (Eq. 11)."""
    prototypes = F.normalize(components.means, dim=1)
    return lambda x: 1 - F.normalize(x, dim=1) @ prototypes.T


def _euclidean(components: Components) -> Distances:
    """‖x - μ_k‖, about the mean of the prototypes, where the expanded squares lose the least."""
    origin = components.means.mean(0)
    prototypes = components.means - origin
    return lambda x: torch.cdist(x - origin, prototypes)


def _likelihood(components: Components) -> Distances:
    """-log f_k(x)."""
    return lambda x: -components.log_density(x)


def _mahalanobis(components: Components) -> Distances:
    """√(2 (log f_k(mode) - log f_k(x))), for Gaussians the Mahalanobis distance."""
    return lambda x: (2 * (components.log_norm - components.log_density(x))).clamp_min(0).sqrt()


def _mixture(components: Components) -> Distances:
    """-log π_k f_k(x)."""
    return lambda x: -(components.log_density(x) + components.log_weights)


DISTANCES: dict[str, Callable[[Components], Distances]] = {
    "cosine": _cosine,
    "euclidean": _euclidean,
    "likelihood": _likelihood,
    "mahalanobis": _mahalanobis,
    "mixture": _mixture,
}
