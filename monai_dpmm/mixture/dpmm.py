"""Truncated Dirichlet process mixture, fitted by batched EM.

Schulthess and Konukoglu, MICCAI 2025, Eq. 1-11; EM after Kimura et al., Pattern Analysis and
Applications 16(1), 2013. Letters: N patches, K components (the truncation), D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from monai_dpmm.errors import InputError, InputTypeError
from monai_dpmm.mixture.em import (
    NEGLIGIBLE,
    STEP_SIZES,
    Moments,
    accumulated,
    maximal_concentration,
    maximal_sticks,
    normalized,
    stick_breaking,
    weight_after,
)
from monai_dpmm.mixture.gaussian import (
    Covariance,
    Density,
    DiagonalCovariance,
    FullCovariance,
    SphericalCovariance,
)
from monai_dpmm.mixture.initialization import (
    INITIAL_STICKS,
    INITIALIZATIONS,
    InitializationKind,
    InitialWeightsKind,
)
from monai_dpmm.mixture.precision import exact, is_traced
from monai_dpmm.mixture.scores import Components, ScoreKind, chunks
from monai_dpmm.mixture.von_mises_fisher import VonMisesFisher

__all__ = ["DPMM", "CovarianceKind", "InitializationKind", "Moments", "ScheduleKind", "ScoreKind"]

CovarianceKind = Literal["diagonal", "full", "spherical", "von_mises_fisher"]
ScheduleKind = Literal["ema", "exp", "none"]

_COVARIANCES = {
    "diagonal": (DiagonalCovariance, 1e-6),
    "full": (FullCovariance, 1e-3),
    "spherical": (SphericalCovariance, 1e-6),
    "von_mises_fisher": (VonMisesFisher, 1e-6),
}
_FLOAT64 = ("concentration", "log_weights", "average_weight")  # whatever the module is cast to


class DPMM(nn.Module):
    """Dirichlet process mixture of Gaussians, truncated to K components (Eq. 1-2).

    p(x) = Σ_k π_k N(x; μ_k, Σ_k) with π_k = v_k Π_{j<k} (1 - v_j) and v_k ~ Beta(1, α). Components
    that the data do not need lose their weight; those above `weight_threshold` survive, and only
    they take part in log-likelihoods and scores.

    All state is in buffers of fixed shape, so a loaded state dict takes the very next EM step
    that the saved mixture would have taken.

    Args:
        features: D.
        components: K.
        covariance: shape of Σ_k; or "von_mises_fisher", for patches of unit norm: densities on the
            sphere, exp(κ_k cos(x, μ_k)) up to a constant, in the place of Gaussians.
        initialization: the means at the start, K patches of the first batch: "random" different
            ones drawn uniformly, the paper's; "k-means++" far from each other.
        initial_weights: π_k at the start: "beta" by v_k ~ Beta(1, α), the paper's; "uniform" 1/K,
            which lets more components find patches of their own.
        concentration: α at the start.
        learn_concentration: update α at each step (Eq. 10), or keep it.
        schedule: step size γ_t of the moving averages: "ema" γ = rate; "exp" γ_t = t^(-rate);
            "none" γ = 1, plain EM on each batch.
        rate: of the schedule.
        variance_floor: ε, added to each variance; 1e-6 (1e-3 for full) if None.
        weight_threshold: π_k above which a component survives.
        seed: of the start.

    Raises:
        ValueError: for arguments out of range.
    """

    concentration: Tensor
    steps: Tensor
    initialized: Tensor
    origin: Tensor
    offsets: Tensor
    log_weights: Tensor
    average_weight: Tensor
    average_first: Tensor
    active: Tensor

    def __init__(
        self,
        features: int,
        components: int = 500,
        *,
        covariance: CovarianceKind = "diagonal",
        initialization: InitializationKind = "random",
        initial_weights: InitialWeightsKind = "beta",
        concentration: float = 2.0,
        learn_concentration: bool = True,
        schedule: ScheduleKind = "ema",
        rate: float = 0.2,
        variance_floor: float | None = None,
        weight_threshold: float = 1e-6,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_choice("covariance", covariance, CovarianceKind)
        _check_choice("initialization", initialization, InitializationKind)
        _check_choice("initial_weights", initial_weights, InitialWeightsKind)
        _check_choice("schedule", schedule, ScheduleKind)
        kind, floor = _COVARIANCES[covariance]
        floor = floor if variance_floor is None else variance_floor
        _check_at_least_one("features", features)
        _check_at_least_one("components", components)
        _check_positive("concentration", concentration)
        _check_positive("variance_floor", floor)
        if not 0 < rate <= 1:
            raise InputError(f"rate must lie in (0, 1], got {rate}")
        if not 0 <= weight_threshold < 1:
            raise InputError(f"weight_threshold must lie in [0, 1), got {weight_threshold}")
        self.features = features
        self.components = components
        self.learn_concentration = learn_concentration
        self.weight_threshold = weight_threshold
        self.seed = seed
        self._choice = INITIALIZATIONS[initialization]
        self._initial_sticks = INITIAL_STICKS[initial_weights]
        self._step_size = partial(STEP_SIZES[schedule], rate=rate)
        self._start_concentration = float(concentration)
        self.covariance = cast(Covariance, kind(components, features, floor))
        start = torch.tensor(concentration, dtype=torch.float64)
        self.register_buffer("concentration", start)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("origin", torch.zeros(features))
        self.register_buffer("offsets", torch.zeros(components, features))
        self.register_buffer("log_weights", start.new_full((components,), -math.inf))
        self.register_buffer("average_weight", start.new_zeros(components))
        self.register_buffer("average_first", torch.zeros(components, features))
        self.register_buffer("active", torch.arange(components), persistent=False)
        self.fitted = False
        self.register_load_state_dict_pre_hook(_check_state)
        self.register_load_state_dict_post_hook(_refresh)

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
    def initialize(self, x: Tensor) -> None:
        """Start from a first batch (N, D), whatever was fitted before.

        Means are K patches, chosen by `initialization` (the rest standard normal where N < K),
        weights those of `initial_weights`, and every covariance is the batch's own diagonal one
        plus ε. All draws are made on the CPU from `seed`, so they do not depend on the device.

        Raises:
            ValueError: where x is no finite (N, D) tensor with N >= 1, or has not unit norm where
                the components need it.
        """
        x = self._checked(x)
        _check_some(x)
        if not torch.isfinite(x).all():
            raise InputError("x must be finite, got NaN or infinite values")
        generator = torch.Generator().manual_seed(self.seed)
        self.origin.copy_(self.covariance.origin(x))
        offsets = x - self.origin
        chosen = self._choice(offsets, min(self.components, len(x)), generator)
        spare = torch.randn(self.components, self.features, generator=generator)
        self.concentration.fill_(self._start_concentration)
        self.offsets.copy_(spare).sub_(self.origin)
        self.offsets[: len(chosen)] = offsets[chosen]
        self.covariance.reset(x.double().var(0, correction=0).to(x.dtype))
        sticks = self._initial_sticks(self.components, self._start_concentration, generator)
        self.log_weights.copy_(stick_breaking(*sticks))
        for average in (self.average_weight, self.average_first, self.steps):
            average.zero_()
        self.initialized.fill_(True)
        self.active = torch.arange(self.components, device=x.device)
        self.fitted = True

    def step(self, x: Tensor) -> Tensor:
        """One batched EM step on patches (N, D); returns their mean log-likelihood before it.

        Raises:
            ValueError: where x is no (N, D) tensor with N >= 1.
            RuntimeError: before `initialize`.
        """
        _check_some(x)
        moments = self.e_step(x)
        self.m_step(moments)
        return (moments.log_likelihood / moments.count).to(self.offsets.dtype)

    @exact
    def e_step(self, x: Tensor) -> Moments:
        """Moments of patches (N, D) under the present parameters (Eq. 7-9), which stay.

        Responsibilities below 1e-30 count as zero. Memory does not grow with N. Components that
        `prune` has found to be gone cost nothing. No patches (0, D) have moments of zero.

        Raises:
            ValueError: where x is no (N, D) tensor.
            RuntimeError: before `initialize`.
        """
        x = self._checked(x)
        self._check_fitted()
        density = self.covariance.density(self.offsets, self.active)
        log_weights = self.log_weights[self.active].to(x.dtype)
        parts = (self._chunk_moments(part, density, log_weights) for part in chunks(x))
        return reduce(accumulated, parts).scattered(self.active, self.components)

    def _chunk_moments(self, x: Tensor, density: Density, log_weights: Tensor) -> Moments:
        phi = self.covariance.expand(x - self.origin)
        log_joint = density.log_prob(phi).add_(log_weights)
        r, log_likelihood = normalized(log_joint)
        first, second = self.covariance.moments(r, phi)
        count = self.concentration.new_full((), len(x))
        return Moments(r.sum(0).double(), first, second, count, log_likelihood.double().sum())

    @exact
    def m_step(self, moments: Moments) -> None:
        """Blend moments into the moving averages (Eq. 7-9), then maximise (Eq. 5, 6, 10).

        Moments of no patches change nothing.
        """
        self._check_fitted()
        there = moments.count > 0
        self.steps += there
        step_size = torch.where(there, self._step_size(self.steps.double()), 0)
        narrow = step_size.to(self.offsets.dtype)
        count = moments.count.clamp_min(1)
        self.average_weight.lerp_(moments.weight / count, step_size)
        self.average_first.lerp_(moments.first / count.to(narrow.dtype), narrow)
        self.covariance.blend(moments.second / count.to(narrow.dtype), narrow)
        alive = self.average_weight > NEGLIGIBLE
        self.average_weight.mul_(alive)
        self.average_first.copy_(torch.where(alive[:, None], self.average_first, 0))
        weight = torch.where(alive, self.average_weight, 1).to(narrow.dtype)
        means = self.average_first / weight[:, None]
        self.offsets.copy_(torch.where(alive[:, None], means, self.offsets))
        self.covariance.maximise(weight, means, alive)
        self._maximise_weights(count, there)

    def _maximise_weights(self, count: Tensor, there: Tensor) -> None:
        s, alpha = self.average_weight, self.concentration
        after = weight_after(s)
        log_weights = stick_breaking(*maximal_sticks(s, after, alpha, count))
        self.log_weights.copy_(torch.where(there, log_weights, self.log_weights))
        if self.learn_concentration and self.components > 1:
            alpha.copy_(torch.where(there, maximal_concentration(s, after, alpha, count), alpha))

    @torch.no_grad()
    def prune(self) -> None:
        """Leave components that have vanished out of all further E-steps.

        It changes no result but for rounding: their weight is exactly zero, which no patch can
        raise again. An E-step then costs what the others cost. The host waits for the device here,
        so call it once in a while, as `EMTrainer` does after each epoch, and not at every step.
        """
        self.active = torch.isfinite(self.log_weights).nonzero()[:, 0]

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
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-likelihood per patch under the surviving components, nats: (N, D) -> (N,)."""
        x = self._checked(x)
        return self._components(self._survivors()).log_prob(x)

    @exact
    def score(self, x: Tensor, kind: ScoreKind = "cosine") -> Tensor:
        """Anomaly score of each patch, larger is more anomalous: (N, D) -> (N,).

        Args:
            x: patches.
            kind: "cosine" 1 - max_k cos(x, μ_k), the paper's (Eq. 11); "euclidean" min_k ‖x - μ_k‖;
                "likelihood" -max_k log N(x; μ_k, Σ_k); "mahalanobis" to the nearest component in
                that metric; "mixture" -log p(x). Over surviving components only (Sec. 2.2).
        """
        _check_choice("kind", kind, ScoreKind)
        if kind == "mixture":
            return -self.log_prob(x)
        x = self._checked(x)
        return self._components(self._survivors()).nearest(x, kind)[0]

    def lowest_score(self, kind: ScoreKind = "cosine") -> Tensor:
        """Score that none is below, 0 for distances: a 0-d tensor.

        For log-likelihoods, the score of a patch at the mode of the sharpest component.
        """
        _check_choice("kind", kind, ScoreKind)
        keep = self._survivors()
        if kind in ("likelihood", "mixture"):
            return -self._components(keep).density.log_norm.max()
        return self.offsets.new_zeros(())

    @exact
    def assign(self, x: Tensor, kind: ScoreKind = "cosine") -> Tensor:
        """Index (0 to K - 1) of the component that gives each patch its score: (N, D) -> (N,).

        For "mixture" it is the component of the highest responsibility.
        """
        _check_choice("kind", kind, ScoreKind)
        x = self._checked(x)
        index = self._components(self._survivors()).nearest(x, kind)[1]
        return self.surviving.nonzero()[:, 0][index]

    def _components(self, keep: Tensor | None) -> Components:
        """All components, or those kept (K,) bool, prepared once for all chunks of patches."""
        density = self.covariance.density(self.offsets, keep)
        kept = slice(None) if keep is None else keep
        log_weights = self.log_weights[kept].to(self.offsets.dtype)
        expand = self.covariance.expand
        return Components(self.means[kept], log_weights, density, lambda x: expand(x - self.origin))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DPMM:
        """Move or cast, but nothing below float32, and weights and concentration stay float64."""

        def wide_enough(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            narrow = result.is_floating_point() and result.dtype.itemsize < 4
            return tensor.to(result.device) if narrow else result

        wide = {name: self._buffers[name] for name in _FLOAT64}
        super()._apply(wide_enough, recurse)
        for name, before in wide.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != torch.float64:
                self._buffers[name] = before.to(after.device)
        return self

    def _checked(self, x: Tensor) -> Tensor:
        if not is_traced() and (x.ndim != 2 or x.shape[1] != self.features):
            raise InputError(f"x must be (N, {self.features}), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise InputTypeError(f"x must be of floating point, got {x.dtype}")
        return x.to(self.offsets.dtype)

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


def _check_state(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Refuse a state dict of another truncation or dimension, in words."""
    saved, own = state.get(f"{prefix}offsets"), cast(Tensor, module.offsets)
    if saved is not None and saved.shape != own.shape:
        raise InputError(
            f"checkpoint has components={saved.shape[0]} and features={saved.shape[1]}, this DPMM"
            f" has components={own.shape[0]} and features={own.shape[1]}"
        )


def _refresh(module: nn.Module, _: object) -> None:
    mixture = cast(DPMM, module)
    mixture.fitted = bool(mixture.initialized)
    if mixture.fitted:
        mixture.prune()


def _check_some(x: Tensor) -> None:
    if len(x) == 0:
        raise InputError(f"x must hold at least one patch, got shape {tuple(x.shape)}")


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise InputError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")


def _check_positive(name: str, value: float) -> None:
    if not value > 0 or math.isinf(value):
        raise InputError(f"{name} must be positive and finite, got {value}")
