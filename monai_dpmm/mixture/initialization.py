"""Where a mixture starts: patches that become its means, and the weights of its components."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "INITIALIZATIONS",
    "INITIAL_STICKS",
    "InitialWeightsKind",
    "InitializationKind",
    "far_patches",
]

InitializationKind = Literal["random", "k-means++"]
InitialWeightsKind = Literal["beta", "uniform"]
Sticks = tuple[Tensor, Tensor]  # log v_k and log(1 - v_k), each (K,) float64


def _random(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of `count` different patches drawn uniformly (the paper's): (N, D) -> (count,)."""
    return torch.randperm(len(x), generator=generator)[:count].to(x.device)


def _kmeans_plus_plus(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of `count` patches far from each other: (N, D) -> (count,)."""
    return far_patches(x, count, generator)


def far_patches(
    x: Tensor, count: int, generator: torch.Generator, distance: Tensor | None = None
) -> Tensor:
    """Indices of `count` patches, each drawn by its squared distance to all those before it.

    Greedy k-means++ (Arthur and Vassilvitskii, SODA 2007, Sec. 5): of 2 + log(count) candidates
    drawn for each place, the one that leaves the smallest sum of squared distances is taken. All
    draws are made at once on the CPU, and no other step waits for the device.

    Args:
        x: patches (N, D).
        count: how many.
        generator: of the draws.
        distance: squared, of each patch to what is there already, (N,), if there is anything.
    """
    candidates = 2 + int(math.log(max(count, 1)))
    draws = torch.rand(count, candidates, generator=generator, dtype=torch.float64).to(x.device)
    squares = x.square().sum(1)
    chosen = torch.empty(count, dtype=torch.int64, device=x.device)
    for i in range(count):
        weights = torch.ones_like(squares) if distance is None else distance
        cumulated = weights.cumsum(0, dtype=torch.float64)
        places = torch.searchsorted(cumulated, draws[i] * cumulated[-1:]).clamp_max_(len(x) - 1)
        left = _squared_distances(x, squares, places)
        left = left if distance is None else torch.minimum(left, distance)
        best = left.sum(1).argmin(0, keepdim=True)
        chosen[i : i + 1] = places.index_select(0, best)
        distance = left.index_select(0, best)[0]
    return chosen


def _squared_distances(x: Tensor, squares: Tensor, places: Tensor) -> Tensor:
    """Of all patches to those at the places, exactly zero to themselves: (N, D), (L,) -> (L, N)."""
    products = x.index_select(0, places) @ x.T
    distances = squares - 2 * products + squares.index_select(0, places)[:, None]
    return distances.clamp_min_(0).scatter_(1, places[:, None], 0)


INITIALIZATIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "random": _random,
    "k-means++": _kmeans_plus_plus,
}


def _beta(components: int, concentration: float, generator: torch.Generator) -> Sticks:
    """Sticks v_k ~ Beta(1, α), the paper's."""
    u = torch.rand(components, generator=generator, dtype=torch.float64)
    log_rest = u.clamp_min(1e-300).log() / concentration
    return torch.log(-torch.expm1(log_rest)), log_rest


def _uniform(components: int, concentration: float, generator: torch.Generator) -> Sticks:
    """Sticks v_k = 1 / (K - k + 1), k from 1, which give every component the weight 1/K."""
    left = torch.arange(components, 0, -1, dtype=torch.float64)
    return -left.log(), torch.log1p(-1 / left)


INITIAL_STICKS: dict[str, Callable[[int, float, torch.Generator], Sticks]] = {
    "beta": _beta,
    "uniform": _uniform,
}
