"""Anomaly scores of patches: how far each is from the surviving components (Sec. 2.2).

`SCORES` is the only list of them, from which arguments and settings are checked and metadata and
model cards written: a further score is one more row. Letters: n patches of a chunk, K components,
D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_dpmm.mixture.gaussian import Density
from monai_dpmm.mixture.precision import is_traced

__all__ = ["SCORES", "Components", "Score", "ScoreKind", "chunks"]

ScoreKind = Literal["cosine", "euclidean", "likelihood", "mahalanobis", "mixture"]
Distances = Callable[[Tensor], Tensor]  # a chunk of patches (n, D) -> (n, K)
_CHUNK = 1024  # patches: log-densities (1024, 500) stay in a core's cache
_DEVICE_CHUNK = 16384  # patches elsewhere, where launches cost more than memory does


class Components(NamedTuple):
    """Components at fixed parameters, ready to be compared with any number of patches.

    Attributes:
        means: μ_k, in input coordinates, (K, D).
        log_weights: log π_k, (K,).
        density: of all of them.
        expand: patches (n, D) -> what the density takes, (n, F).
        local: places (n, d) -> log π_k(u), (n, K), where the weights depend on place.
        scale: λ of places.
    """

    means: Tensor
    log_weights: Tensor
    density: Density
    expand: Callable[[Tensor], Tensor]
    local: Callable[[Tensor], Tensor] | None = None
    scale: Tensor | float = 0.0

    def log_density(self, x: Tensor) -> Tensor:
        """Log-densities of a chunk of patches, nats: (n, D) -> (n, K)."""
        return self.density.log_prob(self.expand(x))

    def log_prob(self, x: Tensor, places: Tensor) -> Tensor:
        """Log-likelihood of each patch under all of them, nats: (N, D), (N, d) -> (N,)."""
        if is_traced():
            return (self.log_density(x) + self._log_weights(places)).logsumexp(1)
        result = x.new_empty(len(x))
        for part, u, out in zip(*map(chunks, (x, places, result)), strict=True):
            torch.logsumexp(self.log_density(part).add_(self._log_weights(u)), 1, out=out)
        return result

    def log_probs(self, x: Tensor, places: Tensor, others: Sequence[Components]) -> Tensor:
        """Log-likelihood under them, and under their weights in others: (N, D), (N, d) -> (C, N).

        The densities, most of the work, are computed once.
        """
        each = [self, *others]
        result = x.new_empty(len(each), len(x))
        for part, u, outs in zip(*map(chunks, (x, places, result.T)), strict=True):
            density = self.log_density(part)
            for own, out in zip(each, outs.unbind(1), strict=True):
                out.copy_((density + own._log_weights(u)).logsumexp(1))
        return result

    def nearest(self, x: Tensor, places: Tensor, score: Score) -> tuple[Tensor, Tensor]:
        """Score of each patch, and the index of the component that gives it: (N,), (N,) int64."""
        distances = self._distances(score)
        if is_traced():
            return score.pooled(distances(x, places))
        scores, indices = x.new_empty(len(x)), x.new_empty(len(x), dtype=torch.int64)
        for part, u, *out in zip(*map(chunks, (x, places, scores, indices)), strict=True):
            for own, result in zip(out, score.pooled(distances(part, u)), strict=True):
                own.copy_(result)
        return scores, indices

    def _log_weights(self, u: Tensor) -> Tensor:
        return self.log_weights if self.local is None else self.local(u)

    def _distances(self, score: Score) -> Callable[[Tensor, Tensor], Tensor]:
        """Distances of a chunk of patches at their places: (n, D), (n, d) -> (n, K)."""
        local, rule = self.local, score.place
        if local is None or rule is None:
            everywhere = score.distances(self)
            return lambda x, u: everywhere(x)
        # log π_k(u) stands in the place of log π_k, which a distance may hold already
        unweighted = score.distances(self._replace(log_weights=torch.zeros_like(self.log_weights)))
        factor = rule(self.scale)
        return lambda x, u: unweighted(x) - factor * local(u)


def chunks(x: Tensor) -> tuple[Tensor, ...]:
    """Patches a chunk at a time, so that memory does not grow with their number."""
    return x.split(_CHUNK if x.device.type == "cpu" else _DEVICE_CHUNK)


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
    return lambda x: (
        (2 * (components.density.log_norm - components.log_density(x))).clamp_min(0).sqrt()
    )


def _mixture(components: Components) -> Distances:
    """-log π_k f_k(x)."""
    return lambda x: -(components.log_density(x) + components.log_weights)


def _smallest(distances: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest distance and its component: (n, K) -> (n,), (n,)."""
    scores, indices = distances.min(dim=1)
    return scores, indices


def _of_the_sum(distances: Tensor) -> tuple[Tensor, Tensor]:
    """-log Σ_k exp(-distance), and the component of the largest part: (n, K) -> (n,), (n,)."""
    return -(-distances).logsumexp(1), distances.min(dim=1).indices


def _zero(components: Components) -> Tensor:
    """0, which no distance is below: 0-d."""
    return components.means.new_zeros(())


def _of_the_sharpest_mode(components: Components) -> Tensor:
    """-log f_k of a patch at the mode of the sharpest component, nats: 0-d."""
    return -components.density.log_norm.max()


class Score(NamedTuple):
    """How anomalous a patch is, larger is more.

    Attributes:
        text: what it is, for a reader of results.
        distances: components -> what is computed of a chunk of patches, (n, D) -> (n, K).
        lowest: components -> the score that none is below, 0-d.
        value_range: lowest and highest value there can be, where both are known.
        place: λ -> what log π_k(u) is multiplied by before it is taken off the distance, where
            weights depend on place; None for a score that has no place.
        pooled: distances (n, K) -> scores (n,) and the components that give them (n,).
    """

    text: str
    distances: Callable[[Components], Distances]
    lowest: Callable[[Components], Tensor] = _zero
    value_range: tuple[float, ...] = ()
    pooled: Callable[[Tensor], tuple[Tensor, Tensor]] = _smallest
    place: Callable[[Tensor | float], Tensor | float] | None = None


SCORES: Mapping[ScoreKind, Score] = {
    "cosine": Score(
        "cosine distance to the nearest prototype, from 0 to 2",
        _cosine,
        value_range=(0, 2),
        place=lambda scale: scale,
    ),
    "euclidean": Score("distance to the nearest prototype, 0 or more", _euclidean),
    "likelihood": Score(
        "negative log-likelihood under the likeliest component, in nats",
        _likelihood,
        lowest=_of_the_sharpest_mode,
        place=lambda scale: 1.0,
    ),
    "mahalanobis": Score("Mahalanobis distance to the nearest component, 0 or more", _mahalanobis),
    "mixture": Score(
        "negative log-likelihood under the whole mixture, in nats",
        _mixture,
        lowest=_of_the_sharpest_mode,
        pooled=_of_the_sum,
        place=lambda scale: 1.0,
    ),
}
