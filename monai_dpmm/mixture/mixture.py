"""A mixture at fixed parameters: densities, responsibilities, anomaly scores of patches.

Nothing here changes the mixture; how it is fitted is in `dpmm`. Letters: N patches, K components,
D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from monai_dpmm.errors import InputError, InputTypeError
from monai_dpmm.mixture.checks import check_choice, plain_tensor
from monai_dpmm.mixture.em import normalized
from monai_dpmm.mixture.gaussian import Covariance
from monai_dpmm.mixture.places import Places
from monai_dpmm.mixture.precision import exact, is_traced
from monai_dpmm.mixture.scores import SCORES, Components, ScoreKind, chunks

__all__ = ["Mixture"]

_Self = TypeVar("_Self", bound="Mixture")


class Mixture(nn.Module):
    """Density p(x) = Σ_k π_k f_k(x) of patches, f_k Gaussians or another kind of component.

    Args:
        kind: makes the components' own parameters from K, D and the variance floor ε.
        features: D.
        components: K.
        variance_floor: ε.
        weight_threshold: π_k above which a component survives.
        place_grid: bins of places, see `Places`.

    Attributes:
        fitted: whether there are parameters to evaluate.
    """

    initialized: Tensor
    origin: Tensor
    offsets: Tensor
    log_weights: Tensor
    _float64: ClassVar[tuple[str, ...]] = ("log_weights",)  # whatever the module is cast to

    def __init__(
        self,
        kind: Callable[[int, int, float], nn.Module],
        features: int,
        components: int,
        variance_floor: float,
        weight_threshold: float,
        place_grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.components = components
        self.weight_threshold = weight_threshold
        self.covariance = cast(Covariance, kind(components, features, variance_floor))
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("origin", torch.zeros(features))
        self.register_buffer("offsets", torch.zeros(components, features))
        no_weight = torch.full((components,), -math.inf, dtype=torch.float64)
        self.register_buffer("log_weights", no_weight)
        self.places = None if place_grid is None else Places(components, place_grid)
        self.fitted = False

    @property
    def means(self) -> Tensor:
        """Component means μ_k, the prototypes, in input coordinates: (K, D)."""
        return self.offsets + self.origin

    @property
    def weights(self) -> Tensor:
        """Component weights π_k, which sum to 1: (K,) float64."""
        return self.log_weights.exp()

    @property
    def surviving(self) -> Tensor:
        """Components whose weight is above the threshold: (K,) bool."""
        return self.log_weights > math.log(max(self.weight_threshold, 1e-300))

    @property
    def num_surviving(self) -> Tensor:
        """How many components survive, 0-d int64."""
        return self.surviving.sum()

    @exact
    def component_log_prob(self, x: Tensor) -> Tensor:
        """Log-density of each patch under every component, nats: (N, D) -> (N, K)."""
        x = self._checked(x)
        self._check_fitted()
        log_density = self._components(None).log_density
        return log_density(x) if is_traced() else torch.cat([*map(log_density, chunks(x))])

    @exact
    def responsibilities(self, x: Tensor) -> Tensor:
        """Probability that each component made each patch (Eq. 7): (N, D) -> (N, K).

        As the E-step has it: below 1e-30 of the highest it is exactly zero.
        """
        log_joint = self.component_log_prob(x) + self.log_weights.to(self.offsets.dtype)
        return normalized(log_joint)[0]

    @exact
    def log_prob(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """Log-likelihood per patch under the surviving components, nats: (N, D) -> (N,).

        With places (N, d), each patch under the weights of its place.
        """
        x = self._checked(x)
        u = self._checked_places(places, x)
        return self._components(self._survivors(), places is not None).log_prob(x, u)

    @exact
    def nearest(
        self, x: Tensor, kind: ScoreKind = "cosine", places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score of each patch and the component that gives it: (N, D) -> (N,), (N,) int64.

        A score is larger where a patch is more anomalous; components count from 0 to K - 1. Only
        surviving ones take part (Sec. 2.2).

        Args:
            x: patches.
            kind: "cosine" 1 - max_k cos(x, μ_k), the paper's (Eq. 11); "euclidean" min_k ‖x - μ_k‖;
                "likelihood" -max_k log N(x; μ_k, Σ_k); "mahalanobis" to the nearest component in
                that metric; "mixture" -log p(x), whose component is that of the highest
                responsibility.
            places: of the patches, (N, d) in [0, 1], for a mixture with a `place_grid`. Then
                "cosine" is min_k [1 - cos(x, μ_k) - λ log π_k(u)], "likelihood"
                -max_k [log N(x; μ_k, Σ_k) + log π_k(u)] and "mixture" -log p(x | u); the others
                have no place. A grid of one bin has none either.
        """
        check_choice("kind", kind, SCORES)
        if places is not None:
            placed = [name for name, score in SCORES.items() if score.place is not None]
            check_choice("kind with places", kind, placed)
        x = self._checked(x)
        u = self._checked_places(places, x)
        components = self._components(self._survivors(), places is not None)
        scores, index = components.nearest(x, u, SCORES[kind])
        return scores, self.surviving.nonzero()[:, 0][index]

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """The paper's anomaly score of each patch, "cosine" of `nearest`: (N, D) -> (N,)."""
        return self.nearest(x, places=places)[0]

    def score(self, x: Tensor, kind: ScoreKind = "cosine", places: Tensor | None = None) -> Tensor:
        """Anomaly score of each patch, see `nearest`: (N, D) -> (N,)."""
        return self.nearest(x, kind, places)[0]

    def assign(self, x: Tensor, kind: ScoreKind = "cosine", places: Tensor | None = None) -> Tensor:
        """Component that gives each patch its score, see `nearest`: (N, D) -> (N,)."""
        return self.nearest(x, kind, places)[1]

    @exact
    def place_log_probs(self, x: Tensor, places: Tensor, strengths: Sequence[float]) -> Tensor:
        """Log-likelihood without places, and with each strength β of theirs, nats: (1 + C, N)."""
        x, own, kept = self._checked(x), self._own_places(), self._survivors()
        u, before, placed = self._checked_places(places, x), own.strength.clone(), []
        try:
            for strength in strengths:
                own.strength.fill_(strength)
                placed.append(self._components(kept, True))
        finally:
            own.strength.copy_(before)
        return self._components(kept).log_probs(x, u, placed)

    @exact
    def place_log_weight(self, index: Tensor, places: Tensor) -> Tensor:
        """Log-weight log π_k(u) of one component for each place: (N,) int64, (N, d) -> (N,)."""
        u, own = self._checked_places(places, index), self._own_places()
        bins, shares = own.corners(u)
        rows = own.table(self.log_weights)[bins, index[:, None]]
        return (shares * rows).sum(1).log().to(self.offsets.dtype)

    def lowest_score(self, kind: ScoreKind = "cosine") -> Tensor:
        """Score that none is below, 0 for distances: a 0-d tensor.

        For log-likelihoods, the score of a patch at the mode of the sharpest component.
        """
        check_choice("kind", kind, SCORES)
        return SCORES[kind].lowest(self._components(self._survivors()))

    def _components(self, keep: Tensor | None, placed: bool = False) -> Components:
        """All components, or those kept (K,) bool, prepared once for all chunks of patches.

        With `placed`, their weights depend on place, if there is more than one bin.
        """
        density = self.covariance.density(self.offsets, keep)
        kept = slice(None) if keep is None else keep
        log_weights = self.log_weights[kept].to(self.offsets.dtype)
        expand = self.covariance.expand
        components = Components(
            self.means[kept], log_weights, density, lambda x: expand(x - self.origin)
        )
        if not placed or self._own_places().bins == 1:
            return components
        places = self._own_places()
        table = places.table(self.log_weights)[:, kept].to(self.offsets.dtype)
        return components._replace(local=lambda u: places.log_weights(table, u), scale=places.scale)

    def _apply(self: _Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Self:
        """Move or cast, but nothing below float32, and what is to be float64 stays float64."""

        def wide_enough(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            narrow = result.is_floating_point() and result.dtype.itemsize < 4
            return tensor.to(result.device) if narrow else result

        wide = {name: self._buffers[name] for name in self._float64}
        super()._apply(wide_enough, recurse)
        for name, before in wide.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != torch.float64:
                self._buffers[name] = before.to(after.device)
        return self

    def _checked(self, x: Tensor) -> Tensor:
        x = plain_tensor("x", x)
        if not is_traced() and (x.ndim != 2 or x.shape[1] != self.features):
            raise InputError(f"x must be (N, {self.features}), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise InputTypeError(f"x must be of floating point, got {x.dtype}")
        return x.to(self.offsets.dtype)

    def _own_places(self) -> Places:
        if self.places is None:
            raise InputError("places must be None for a mixture without a place_grid")
        return self.places

    def _checked_places(self, places: Tensor | None, x: Tensor) -> Tensor:
        """Places of patches: (N, d); (N, 0) where there are none."""
        if places is None:
            return x[:, :0]
        places = plain_tensor("places", places)
        expected = (x.shape[0], len(self._own_places().grid))
        if not is_traced() and places.shape != expected:
            raise InputError(f"places must be {expected}, got shape {tuple(places.shape)}")
        if not is_traced() and not bool(torch.isfinite(places).all()):
            raise InputError("places must be finite, got NaN or infinite values")
        return places.to(self.offsets)

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise RuntimeError("DPMM is not fitted: call initialize, or load a checkpoint")

    def _survivors(self) -> Tensor:
        self._check_fitted()
        keep = self.surviving
        if not is_traced() and not bool(keep.any()):
            raise RuntimeError(
                f"no component survives the weight_threshold of {self.weight_threshold}"
            )
        return keep
