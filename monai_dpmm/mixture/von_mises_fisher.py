"""Von Mises-Fisher components: a mixture on the unit sphere, in the place of Gaussians.

f(x; μ, κ) = C_D(κ) exp(κ μᵀx) with ‖x‖ = ‖μ‖ = 1 (Banerjee et al., Clustering on the unit
hypersphere using von Mises-Fisher distributions, JMLR 6, 2005). Its log-likelihood is a component's
cosine, scaled by a κ_k of its own: the paper's score (Eq. 11) made a density.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.gaussian import Density, LinearDensity

__all__ = ["VonMisesFisher", "kappa_of", "log_bessel"]

_LARGE_ORDER = 50.0  # of Bessel functions, from which four terms of Debye's expansion give 1e-10
_NEWTON_STEPS = 5
_UNIT_TOLERANCE = 1e-3


class VonMisesFisher(nn.Module):
    """One κ for each component: (K,). phi = x, of unit norm.

    The mean of a component's patches is ρ_k μ_k (Eq. 6), so it gives the direction μ_k and the
    mean resultant length ρ_k at once, there is no second moment, and a step takes two matrix
    products. 1/κ_k plays the variance's part: the floor is added to it.
    """

    concentration: Tensor  # κ, under the name that saved mixtures have

    def __init__(self, components: int, features: int, floor: float) -> None:
        super().__init__()
        if features < 2:
            raise InputError(f"features must be at least 2 on a sphere, got {features}")
        self.floor = floor
        self.register_buffer("concentration", torch.ones(components))

    @property
    def kappa(self) -> Tensor:
        """How close patches lie about each direction μ_k: (K,)."""
        return self.concentration

    def origin(self, x: Tensor) -> Tensor:
        """The sphere's centre: (N, D) -> (D,).

        Raises:
            ValueError: where a patch is not of unit norm.
        """
        norms = torch.linalg.vector_norm(x, dim=1)
        if bool((norms - 1).abs().max() > _UNIT_TOLERANCE):
            raise InputError(
                "x must be of unit norm for von_mises_fisher, got norms from"
                f" {norms.min():.4g} to {norms.max():.4g}"
            )
        return x.new_zeros(x.shape[1])

    def reset(self, variance: Tensor) -> None:
        """Give every component the κ of patches that have the variances (D,)."""
        resultant = (1 - variance.sum()).clamp(0, 1).sqrt()
        self.kappa.copy_(self._floored(resultant, len(variance)))

    def expand(self, x: Tensor) -> Tensor:
        """The patches themselves: (n, D)."""
        return x

    def density(self, means: Tensor, keep: Tensor | None = None) -> Density:
        """Density of the components, or of those kept."""
        kappa = self.kappa if keep is None else self.kappa[keep]
        directions = F.normalize(means if keep is None else means[keep], dim=1)
        wide, D = kappa.double(), means.shape[1]
        log_constant = -0.5 * D * math.log(2 * math.pi) - log_bessel(0.5 * D - 1, wide)[0]
        slope = (directions * kappa[:, None]).T.contiguous()
        return LinearDensity(slope, log_constant.to(kappa), (log_constant + wide).to(kappa))

    def moments(self, r: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """First moments, sums, and no second ones: (K, D), (K, 0)."""
        return r.T @ phi, phi.new_empty(r.shape[1], 0)

    def blend(self, second: Tensor, step_size: Tensor) -> None:
        """Nothing to blend: the first moments are all there is."""

    def recentre(self, first: Tensor, weight: Tensor, shift: Tensor) -> None:
        """Nothing to move: the origin is the sphere's centre."""

    def maximise(self, weight: Tensor, means: Tensor, alive: Tensor) -> None:
        """κ_k of the mean resultant length ρ_k = ‖m_k‖ / s_k, with 1/κ_k raised by ε."""
        resultant = torch.linalg.vector_norm(means.double(), dim=1)
        kappa = self._floored(resultant, means.shape[1]).to(self.kappa)
        self.kappa.copy_(torch.where(alive, kappa, self.kappa))

    def _floored(self, resultant: Tensor, features: int) -> Tensor:
        kappa = kappa_of(resultant, features)
        return kappa / (1 + self.floor * kappa)


def kappa_of(resultant: Tensor, features: int) -> Tensor:
    """κ whose mean resultant length is ρ in [0, 1], float64: (K,) -> (K,).

    A_D(κ) = I_{D/2}(κ) / I_{D/2-1}(κ) = ρ, by Newton from Banerjee's approximation (Sra, A short
    note on parameter approximation for von Mises-Fisher distributions, Comput. Stat. 27, 2012).
    """
    rho = resultant.double().clamp(0, 1 - 1e-9)
    kappa = rho * (features - rho * rho) / (1 - rho * rho)
    for _ in range(_NEWTON_STEPS):
        ratio = kappa * log_bessel(0.5 * features - 1, kappa)[1]
        slope = 1 - ratio * ratio - (features - 1) / kappa.clamp_min(1e-12) * ratio
        slope = torch.where(kappa > 1e-6, slope, 1 / features)
        kappa = (kappa - (ratio - rho) / slope).clamp_min_(0)
    return kappa


def log_bessel(order: float, z: Tensor) -> tuple[Tensor, Tensor]:
    """log(I_ν(z) / z^ν) and I_{ν+1}(z) / (z I_ν(z)), float64: ν >= 0, z >= 0 (K,) -> (K,), (K,).

    By Debye's uniform expansion at large order (Abramowitz and Stegun 9.7.7) and, for smaller ones,
    from there down by the recurrence I_{ν-1} = I_{ν+1} + 2ν/z I_ν, which is stable.
    """
    up = max(0, math.ceil(_LARGE_ORDER - order))
    log_value = _debye(order + up, z)
    ratio = torch.exp(_debye(order + up + 1, z) - log_value)
    for n in range(up, 0, -1):
        ratio = 1 / (2 * (order + n) + z * z * ratio)
        log_value = log_value - ratio.log()
    return log_value, ratio


def _debye(order: float, z: Tensor) -> Tensor:
    """log(I_ν(z) / z^ν) for a large order ν."""
    root = torch.sqrt(1 + (z / order) ** 2)
    t, u = 1 / root, 1 / (root * root)
    series = (
        1
        + t * (3 - 5 * u) / (24 * order)
        + u * (81 + u * (-462 + 385 * u)) / (1152 * order**2)
        + t * u * (30375 + u * (-369603 + u * (765765 - 425425 * u))) / (414720 * order**3)
        + u**2
        * (4465125 + u * (-94121676 + u * (349922430 + u * (-446185740 + 185910725 * u))))
        / (39813120 * order**4)
    )
    exponent = order * (root - torch.log1p(root) - math.log(order))
    return exponent - 0.5 * (math.log(2 * math.pi * order) + root.log()) + series.log()
