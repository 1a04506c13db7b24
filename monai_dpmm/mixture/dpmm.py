"""Truncated Dirichlet process mixture, fitted by batched EM.

Schulthess and Konukoglu, MICCAI 2025, Eq. 1-11; EM after Kimura et al., Pattern Analysis and
Applications 16(1), 2013. Letters: N patches, K components (the truncation), D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from monai_dpmm.errors import InputError, renamed_arguments
from monai_dpmm.mixture.checks import (
    check_at_least_one,
    check_choice,
    check_patch,
    check_positive,
    check_state,
)
from monai_dpmm.mixture.em import (
    NEGLIGIBLE,
    STEP_SIZES,
    Moments,
    accumulated,
    maximal_weights,
    normalized,
    stick_breaking,
)
from monai_dpmm.mixture.gaussian import (
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
from monai_dpmm.mixture.mixture import Mixture
from monai_dpmm.mixture.precision import exact
from monai_dpmm.mixture.scores import chunks
from monai_dpmm.mixture.von_mises_fisher import VonMisesFisher

__all__ = ["COMPONENT_KINDS", "DPMM", "ComponentKind", "ScheduleKind"]

ComponentKind = Literal["diagonal", "full", "spherical", "von_mises_fisher"]
ScheduleKind = Literal["ema", "exp", "none"]

# what makes the components, and the variance floor where none is given
COMPONENT_KINDS: Mapping[str, tuple[Callable[[int, int, float], nn.Module], float]] = {
    "diagonal": (DiagonalCovariance, 1e-6),
    "full": (FullCovariance, 1e-3),
    "spherical": (SphericalCovariance, 1e-6),
    "von_mises_fisher": (VonMisesFisher, 1e-6),
}


class DPMM(Mixture):
    """Dirichlet process mixture of Gaussians, truncated to K components (Eq. 1-2).

    p(x) = Σ_k π_k N(x; μ_k, Σ_k) with π_k = v_k Π_{j<k} (1 - v_j) and v_k ~ Beta(1, α). Components
    that the data do not need lose their weight; those above `weight_threshold` survive, and only
    they take part in log-likelihoods and scores.

    All state is in buffers of fixed shape, so a loaded state dict takes the very next EM step
    that the saved mixture would have taken.

    Args:
        features: D.
        components: K.
        component_kind: shape of Σ_k; or "von_mises_fisher", for patches of unit norm: densities on
            the sphere, exp(κ_k cos(x, μ_k)) up to a constant, in the place of Gaussians.
        initialization: the means at the start, K patches of the first batch: "random" different
            ones drawn uniformly, the paper's; "k-means++" far from each other.
        initial_weights: π_k at the start: "beta" by v_k ~ Beta(1, α), the paper's; "uniform" 1/K,
            which lets more components find patches of their own.
        concentration: α at the start.
        learn_concentration: update α at each step (Eq. 10), or keep it.
        schedule: step size γ_t of the moving averages: "ema" γ = step_size; "exp"
            γ_t = t^(-step_size); "none" γ = 1, plain EM on each batch.
        step_size: of the schedule.
        variance_floor: ε, added to each variance; 1e-6 (1e-3 for full) if None.
        weight_threshold: π_k above which a component survives.
        place_grid: bins along the axes of the body in which components have weights of their own,
            as (8, 10, 8) of a head, see `Places`. None is the paper's mixture, which forgets where
            a patch was.
        seed: of the start.

    Raises:
        ValueError: for arguments out of range.
    """

    concentration: Tensor
    steps: Tensor
    average_weight: Tensor
    average_first: Tensor
    active: Tensor
    _float64: ClassVar = ("concentration", "log_weights", "average_weight")

    @renamed_arguments(covariance="component_kind", rate="step_size")
    def __init__(
        self,
        features: int,
        components: int = 500,
        *,
        component_kind: ComponentKind = "diagonal",
        initialization: InitializationKind = "random",
        initial_weights: InitialWeightsKind = "beta",
        concentration: float = 2.0,
        learn_concentration: bool = True,
        schedule: ScheduleKind = "ema",
        step_size: float = 0.2,
        variance_floor: float | None = None,
        weight_threshold: float = 1e-6,
        place_grid: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        check_choice("component_kind", component_kind, COMPONENT_KINDS)
        check_choice("initialization", initialization, INITIALIZATIONS)
        check_choice("initial_weights", initial_weights, INITIAL_STICKS)
        check_choice("schedule", schedule, STEP_SIZES)
        kind, floor = COMPONENT_KINDS[component_kind]
        floor = floor if variance_floor is None else variance_floor
        check_at_least_one("features", features)
        check_at_least_one("components", components)
        check_positive("concentration", concentration)
        check_positive("variance_floor", floor)
        if not 0 < step_size <= 1:
            raise InputError(f"step_size must lie in (0, 1], got {step_size}")
        if not 0 <= weight_threshold < 1:
            raise InputError(f"weight_threshold must lie in [0, 1), got {weight_threshold}")
        super().__init__(kind, features, components, floor, weight_threshold, place_grid)
        self.learn_concentration = learn_concentration
        self.seed = seed
        self._choice = INITIALIZATIONS[initialization]
        self._initial_sticks = INITIAL_STICKS[initial_weights]
        self._step_size = partial(STEP_SIZES[schedule], step_size=step_size)
        self._start_concentration = float(concentration)
        start = torch.tensor(concentration, dtype=torch.float64)
        self.register_buffer("concentration", start)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average_weight", start.new_zeros(components))
        self.register_buffer("average_first", torch.zeros(components, features))
        self.register_buffer("active", torch.arange(components), persistent=False)
        self.register_load_state_dict_pre_hook(check_state)
        self.register_load_state_dict_post_hook(_refresh)

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
        check_patch(x)
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
        if self.places is not None:
            self.places.counts.zero_()
        self.initialized.fill_(True)
        self.active = torch.arange(self.components, device=x.device)
        self.fitted = True

    def step(self, x: Tensor) -> Tensor:
        """One batched EM step on patches (N, D); returns their mean log-likelihood before it.

        Where a patch is NaN or infinite the mixture stays as it is, and the result is not finite.

        Raises:
            ValueError: where x is no (N, D) tensor with N >= 1.
            TypeError: where x is no tensor of floating point.
            RuntimeError: before `initialize`.
        """
        check_patch(x)
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
            TypeError: where x is no tensor of floating point, but a NumPy array, for example.
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
    def m_step(self, moments: Moments, *, whole: bool = False) -> None:
        """Blend moments into the moving averages (Eq. 7-9), then maximise (Eq. 5, 6, 10).

        Moments of no patches change nothing, nor do those of a patch that is not finite.

        Args:
            moments: of the E-step.
            whole: they are of all patches and take the place of the averages, γ = 1.
        """
        self._check_fitted()
        moments = moments.unless_broken()
        there = moments.count > 0
        self.steps += there
        blended = self._step_size(self.steps.double())
        step_size = torch.where(there, 1 if whole else blended, 0).double()
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
        log_weights, alpha = maximal_weights(self.average_weight, self.concentration, count)
        self.log_weights.copy_(torch.where(there, log_weights, self.log_weights))
        if self.learn_concentration and self.components > 1:
            self.concentration.copy_(torch.where(there, alpha, self.concentration))

    @exact
    def place_counts(self, x: Tensor, places: Tensor) -> Tensor:
        """Soft counts n_bk of patches (N, D) at places (N, d), which add up: (K, G) float64.

        Nothing changes. After the fit, the counts of all training patches are to be summed into
        `mixture.places.counts`; responsibilities are those of the E-step.

        Raises:
            ValueError: where the places are no (N, d), or the mixture has no `place_grid`.
        """
        x = self._checked(x)
        self._check_fitted()
        u, own = self._checked_places(places, x), self._own_places()
        components = self._components(self.active)
        total = self.log_weights.new_zeros(len(self.active), own.bins)
        for part, at in zip(chunks(x), chunks(u), strict=True):
            log_joint = components.log_density(part).add_(components.log_weights)
            total += own.counted(at, normalized(log_joint)[0])
        counts = total.new_zeros(self.components, own.bins)
        return counts.index_copy_(0, self.active, total)

    @torch.no_grad()
    def prune(self) -> None:
        """Leave components that have vanished out of all further E-steps.

        It changes no result but for rounding: their weight is exactly zero, which no patch can
        raise again. An E-step then costs what the others cost. The host waits for the device here,
        so call it once in a while, as `EMTrainer` does after each epoch, and not at every step.
        """
        self.active = torch.isfinite(self.log_weights).nonzero()[:, 0]


def _refresh(module: nn.Module, _: object) -> None:
    mixture = cast(DPMM, module)
    mixture.fitted = bool(mixture.initialized)
    if mixture.fitted:
        mixture.prune()
