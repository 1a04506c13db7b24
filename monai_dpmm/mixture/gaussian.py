"""Covariances of a mixture's Gaussians: how each is stored, evaluated and maximised.

Letters: n patches of a chunk, K components, D features. Patches and means are taken about the
mixture's origin, so that the expanded squares lose as little to rounding as they can. What the
E-step needs of a patch is computed once, as `expand(x)`: (n, D) -> (n, F).
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

__all__ = [
    "Covariance",
    "Density",
    "DiagonalCovariance",
    "FullCovariance",
    "LinearDensity",
    "SphericalCovariance",
]

_LOG_2PI = math.log(2 * math.pi)
_COMPONENTS_AT_ONCE = 16  # full covariance: bounds (k, D, D) and (k, D, n) temporaries


class Density(Protocol):
    """Gaussians at fixed parameters, ready to be evaluated on many chunks of patches."""

    @property
    def log_norm(self) -> Tensor:
        """Logarithm of each density's highest value, nats: (K,)."""

    def log_prob(self, phi: Tensor) -> Tensor:
        """Log-density of each patch under each component, nats: (n, F) -> (n, K)."""


class Covariance(Protocol):
    """What a mixture asks of its covariances; a module with the buffers that they are kept in."""

    def origin(self, x: Tensor) -> Tensor:
        """What patches are taken about, from the first of them: (N, D) -> (D,)."""

    def reset(self, variance: Tensor) -> None:
        """Give every component the spread of patches with the variances (D,), and the floor."""

    def expand(self, x: Tensor) -> Tensor:
        """What densities and moments are linear in: (n, D) -> (n, F)."""

    def density(self, means: Tensor, keep: Tensor | None = None) -> Density:
        """Density of the components, or of those kept: means (K, D), keep (K,) bool or indices."""

    def moments(self, r: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """First (K, D) and second moments of patches weighted by r (n, K), as sums (Eq. 8-9)."""

    def blend(self, second: Tensor, step_size: Tensor) -> None:
        """Move the average of the second moments towards `second`, a mean over patches (Eq. 9)."""

    def recentre(self, first: Tensor, weight: Tensor, shift: Tensor) -> None:
        """Take the average second moments about an origin that is `shift` (D,) further back.

        Args:
            first: average first moments about the old origin, (K, D).
            weight: average weights, (K,).
            shift: old origin less the new one.
        """

    def maximise(self, weight: Tensor, means: Tensor, alive: Tensor) -> None:
        """Covariances of the averages (Eq. 6) where `alive` (K,); the others stay."""


def _mean(x: Tensor) -> Tensor:
    """Mean of the patches, about which the expanded squares lose the least: (N, D) -> (D,)."""
    return x.double().mean(0)


class LinearDensity(NamedTuple):
    """Density that is linear in phi: log N = log_norm - mahalanobis² / 2 = phi @ slope + bias."""

    slope: Tensor
    bias: Tensor
    log_norm: Tensor

    def log_prob(self, phi: Tensor) -> Tensor:
        """Log-density of each patch under each component, nats: (n, F) -> (n, K)."""
        return torch.addmm(self.bias, phi, self.slope)


class DiagonalCovariance(nn.Module):
    """One variance for each component and feature: (K, D). The paper's default.

    Densities and moments are two matrix products each, with phi = (x, x²): nothing larger than
    (n, K) or (K, 2D) is ever made.
    """

    variance: Tensor
    second: Tensor

    origin = staticmethod(_mean)

    def __init__(self, components: int, features: int, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("variance", torch.ones(components, features))
        self.register_buffer("second", torch.zeros(components, features))

    def reset(self, variance: Tensor) -> None:
        """Give every component the variances (D,) plus the floor."""
        self.variance.copy_((variance + self.floor).expand_as(self.variance))
        self.second.zero_()

    def expand(self, x: Tensor) -> Tensor:
        """Patches and their squares: (n, D) -> (n, 2D)."""
        n, D = x.shape
        phi = x.new_empty(n, 2 * D)
        phi[:, :D] = x
        torch.mul(x, x, out=phi[:, D:])
        return phi

    def density(self, means: Tensor, keep: Tensor | None = None) -> Density:
        """Density of the components, or of those kept."""
        variance = self.variance if keep is None else self.variance[keep]
        means = means if keep is None else means[keep]
        precision = variance.reciprocal()
        scaled = means * precision
        log_norm = -0.5 * (variance.log().sum(1) + means.shape[1] * _LOG_2PI)
        slope = torch.cat([scaled, -0.5 * precision], dim=1).T.contiguous()
        return LinearDensity(slope, log_norm - 0.5 * (means * scaled).sum(1), log_norm)

    def moments(self, r: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """First and second moments, sums: (K, D), (K, D)."""
        first, second = (r.T @ phi).tensor_split(2, dim=1)
        return first, second

    def blend(self, second: Tensor, step_size: Tensor) -> None:
        """Move the average second moment towards that of a batch."""
        self.second.lerp_(second, step_size)

    def recentre(self, first: Tensor, weight: Tensor, shift: Tensor) -> None:
        """Take the average second moments about another origin."""
        self.second += 2 * shift * first + weight[:, None] * shift * shift

    def maximise(self, weight: Tensor, means: Tensor, alive: Tensor) -> None:
        """Σ_k = diag(C_k / s_k - μ_k²) + ε (Eq. 6); rounding below zero is cut before ε."""
        second = torch.where(alive[:, None], self.second, 0)
        self.second.copy_(second)
        variance = (second / weight[:, None] - means * means).clamp_min_(0).add_(self.floor)
        self.variance.copy_(torch.where(alive[:, None], variance, self.variance))


class SphericalCovariance(nn.Module):
    """One variance for each component: (K,). phi = (x, ‖x‖²)."""

    variance: Tensor
    second: Tensor

    origin = staticmethod(_mean)

    def __init__(self, components: int, features: int, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("variance", torch.ones(components))
        self.register_buffer("second", torch.zeros(components))

    def reset(self, variance: Tensor) -> None:
        """Give every component the mean of the variances (D,) plus the floor."""
        self.variance.copy_((variance.mean() + self.floor).expand_as(self.variance))
        self.second.zero_()

    def expand(self, x: Tensor) -> Tensor:
        """Patches and their squared norms: (n, D) -> (n, D + 1)."""
        return torch.cat([x, (x * x).sum(1, keepdim=True)], dim=1)

    def density(self, means: Tensor, keep: Tensor | None = None) -> Density:
        """Density of the components, or of those kept."""
        variance = self.variance if keep is None else self.variance[keep]
        means = means if keep is None else means[keep]
        precision = variance.reciprocal()
        log_norm = -0.5 * means.shape[1] * (variance.log() + _LOG_2PI)
        slope = torch.cat([means * precision[:, None], -0.5 * precision[:, None]], dim=1)
        bias = log_norm - 0.5 * (means * means).sum(1) * precision
        return LinearDensity(slope.T.contiguous(), bias, log_norm)

    def moments(self, r: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """First and second moments, sums: (K, D), (K,)."""
        both = r.T @ phi
        return both[:, :-1], both[:, -1]

    def blend(self, second: Tensor, step_size: Tensor) -> None:
        """Move the average second moment towards that of a batch."""
        self.second.lerp_(second, step_size)

    def recentre(self, first: Tensor, weight: Tensor, shift: Tensor) -> None:
        """Take the average second moments about another origin."""
        self.second += 2 * (first @ shift) + weight * (shift @ shift)

    def maximise(self, weight: Tensor, means: Tensor, alive: Tensor) -> None:
        """σ_k² = (C_k / s_k - ‖μ_k‖²) / D + ε, C_k the average squared norm."""
        self.second.copy_(torch.where(alive, self.second, 0))
        spread = self.second / weight - (means * means).sum(1)
        variance = (spread / means.shape[1]).clamp_min_(0).add_(self.floor)
        self.variance.copy_(torch.where(alive, variance, self.variance))


class FullCovariance(nn.Module):
    """A covariance matrix for each component: (K, D, D), kept with its Cholesky factor.

    Components are visited a few at a time, so that temporaries stay bounded; the buffers
    themselves take 8·K·D² bytes (590 MB at K = 500, D = 384). phi = x.
    """

    cholesky: Tensor
    second: Tensor

    origin = staticmethod(_mean)

    def __init__(self, components: int, features: int, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("cholesky", torch.eye(features).repeat(components, 1, 1))
        self.register_buffer("second", torch.zeros(components, features, features))

    @property
    def covariance(self) -> Tensor:
        """Covariance matrices: (K, D, D)."""
        return self.cholesky @ self.cholesky.mT

    def reset(self, variance: Tensor) -> None:
        """Give every component the covariance diag(variance) (D,) plus the floor."""
        self.cholesky.copy_((variance + self.floor).sqrt().diag().expand_as(self.cholesky))
        self.second.zero_()

    def expand(self, x: Tensor) -> Tensor:
        """The patches themselves: (n, D)."""
        return x

    def density(self, means: Tensor, keep: Tensor | None = None) -> Density:
        """Density of the components, or of those kept."""
        cholesky = self.cholesky if keep is None else self.cholesky[keep]
        means = means if keep is None else means[keep]
        log_det = cholesky.diagonal(dim1=1, dim2=2).log().sum(1)
        return _Triangular(means, cholesky, -log_det - 0.5 * means.shape[1] * _LOG_2PI)

    def moments(self, r: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """First and second moments, sums: (K, D), (K, D, D)."""
        K, D = r.shape[1], phi.shape[1]
        second = phi.new_empty(K, D, D)
        for k in range(0, K, _COMPONENTS_AT_ONCE):
            weighted = r[:, k : k + _COMPONENTS_AT_ONCE].T.unsqueeze(2) * phi
            second[k : k + _COMPONENTS_AT_ONCE] = weighted.mT @ phi
        return r.T @ phi, second

    def blend(self, second: Tensor, step_size: Tensor) -> None:
        """Move the average second moment towards that of a batch."""
        self.second.lerp_(second, step_size)

    def recentre(self, first: Tensor, weight: Tensor, shift: Tensor) -> None:
        """Take the average second moments about another origin."""
        for k in range(len(first)):  # one component at a time: (K, D, D) exists once
            cross = torch.outer(first[k], shift)
            self.second[k] += cross + cross.T + weight[k] * torch.outer(shift, shift)

    def maximise(self, weight: Tensor, means: Tensor, alive: Tensor) -> None:
        """Σ_k = C_k / s_k - μ_k μ_kᵀ + εI (Eq. 6), factored a few components at a time.

        A matrix that rounding has left indefinite, which takes a floor below it, stays as it was.
        """
        D = means.shape[1]
        floor = self.floor * torch.eye(D, dtype=means.dtype, device=means.device)
        for k in range(0, len(means), _COMPONENTS_AT_ONCE):
            part = slice(k, k + _COMPONENTS_AT_ONCE)
            there = alive[part, None, None]
            second = torch.where(there, self.second[part], 0)
            self.second[part] = second
            mean = means[part]
            sigma = second / weight[part, None, None] - mean[:, :, None] * mean[:, None, :]
            factor, info = torch.linalg.cholesky_ex((sigma + sigma.mT) / 2 + floor)
            usable = there & (info == 0)[:, None, None]
            self.cholesky[part] = torch.where(usable, factor, self.cholesky[part])


class _Triangular(NamedTuple):
    """Density by triangular solves: mahalanobis = ‖L⁻¹(x - μ)‖."""

    means: Tensor
    cholesky: Tensor
    log_norm: Tensor

    def log_prob(self, phi: Tensor) -> Tensor:
        result = phi.new_empty(len(phi), len(self.means))
        for k in range(0, len(self.means), _COMPONENTS_AT_ONCE):
            part = slice(k, k + _COMPONENTS_AT_ONCE)
            offsets = (phi - self.means[part, None, :]).mT
            solved = torch.linalg.solve_triangular(self.cholesky[part], offsets, upper=False)
            result[:, part] = self.log_norm[part] - 0.5 * solved.square_().sum(1).T
        return result
