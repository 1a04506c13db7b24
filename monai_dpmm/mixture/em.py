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
    "maximal_weights",
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

    def unless_broken(self) -> Moments:
        """The moments, or those of no patches where one of theirs was NaN or infinite.

        The host need not wait for the device to know.
        """
        whole = torch.isfinite(self.log_likelihood)
        return Moments(*(torch.where(whole, part, 0) for part in self))

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


def _weight_after(s: Tensor) -> Tensor:
    """Average weight T_k = Σ_{j>k} s_j after each component, exact where s_k dwarfs it: (K,)."""
    return F.pad(s[1:].flip(0).cumsum(0).flip(0), (0, 1))


def maximal_weights(s: Tensor, alpha: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Log-weights (K,) and α of average weights s_k (Eq. 5, 10): (K,), both from the old α."""
    after = _weight_after(s)
    log_weights = stick_breaking(*_maximal_sticks(s, after, alpha, count))
    return log_weights, _maximal_concentration(s, after, alpha, count)


def _maximal_sticks(
    s: Tensor, after: Tensor, alpha: Tensor, count: Tensor
) -> tuple[Tensor, Tensor]:
    """Log v_k and log(1 - v_k) for v_k = s_k / (s_k + T_k + (α - 1)/N) (Eq. 5): (K,), (K,).

    Where α < 1 would push v_k past 1 it is 1, and log(1 - v_k) stays finite.
    """
    rest = (after + (alpha - 1) / count).clamp_min_(1e-300)
    log_total = (s + rest).log()
    return s.log() - log_total, rest.log() - log_total


def _maximal_concentration(s: Tensor, after: Tensor, alpha: Tensor, count: Tensor) -> Tensor:
    """Concentration α (Eq. 10) from the old one: 0-d."""
    up = torch.digamma(count * (s + after) + alpha + 1)
    down = torch.digamma(count * after + alpha)
    return (len(s) - 1) / (up - down)[:-1].sum()


def _ema_step_size(t: Tensor, step_size: float) -> Tensor:
    return torch.full_like(t, step_size)


def _exp_step_size(t: Tensor, step_size: float) -> Tensor:
    return t ** (-step_size)


def _whole_step_size(t: Tensor, step_size: float) -> Tensor:
    return torch.ones_like(t)


STEP_SIZES = {"ema": _ema_step_size, "exp": _exp_step_size, "none": _whole_step_size}
