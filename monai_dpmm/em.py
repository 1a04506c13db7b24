"""Pieces of batched EM that know no parameters: moments, responsibilities, sticks, step sizes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "NEGLIGIBLE",
    "STEP_SIZES",
    "Moments",
    "accumulated",
    "normalized",
    "stick_breaking",
]

NEGLIGIBLE = 1e-30  # responsibilities and average weights below it count as exactly zero
_LOWEST = -87.0  # exp of anything lower is denormal, and denormals make products very slow


class Moments(NamedTuple):
    """Sufficient statistics of some patches, sums over them; those of disjoint batches add up.

    Attributes:
        weight: responsibilities, (K,) float64.
        first: responsibility-weighted patches about the mixture's origin, (K, D).
        second: likewise of second order, (K, D), (K, D, D) or (K,) by covariance.
        count: number of patches, 0-d float64.
        log_likelihood: of the patches before the update, nats, 0-d float64.
    """

    weight: Tensor
    first: Tensor
    second: Tensor
    count: Tensor  # type: ignore[assignment]
    log_likelihood: Tensor

    def __add__(self, other: object) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        return Moments(*(a + b for a, b in zip(self, other, strict=True)))

    def scattered(self, active: Tensor, components: int) -> Moments:
        """Moments of all K components, zero but for the active ones (A,), whose moments these are.

        Args:
            active: their indices, ascending.
            components: K.
        """

        def spread(part: Tensor) -> Tensor:
            return part.new_zeros(components, *part.shape[1:]).index_copy_(0, active, part)

        first, second = spread(self.first), spread(self.second)
        return self._replace(weight=spread(self.weight), first=first, second=second)


def normalized(log_joint: Tensor) -> tuple[Tensor, Tensor]:
    """Responsibilities (n, K) and log-likelihoods (n,) of joint log-densities, overwriting them."""
    highest = log_joint.amax(1, keepdim=True)
    r = log_joint.sub_(highest).clamp_min_(_LOWEST).exp_()
    F.threshold(r, NEGLIGIBLE, 0.0, inplace=True)
    total = r.sum(1, keepdim=True)
    return r.div_(total), (highest + total.log()).squeeze(1)


def accumulated(total: Moments, part: Moments) -> Moments:
    """The sum, in the storage of the first."""
    for a, b in zip(total, part, strict=True):
        a.add_(b)
    return total


def stick_breaking(log_v: Tensor, log_rest: Tensor) -> Tensor:
    """Log-weights log v_k + Σ_{j<k} log(1 - v_j) with v_K = 1 (Eq. 2): (K,), (K,) -> (K,)."""
    before = F.pad(log_rest[:-1].cumsum(0), (1, 0))
    last = torch.zeros_like(log_v[-1:])
    return torch.cat([log_v[:-1], last]) + before


def _ema_step_size(t: Tensor, rate: float) -> Tensor:
    return torch.full_like(t, rate)


def _exp_step_size(t: Tensor, rate: float) -> Tensor:
    return t ** (-rate)


def _whole_step_size(t: Tensor, rate: float) -> Tensor:
    return torch.ones_like(t)


STEP_SIZES = {"ema": _ema_step_size, "exp": _exp_step_size, "none": _whole_step_size}
