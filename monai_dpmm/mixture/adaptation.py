"""A fitted mixture meets new data: another site, another scanner, another year.

Further EM steps move what is there. With the schedule "ema" the moments of the old data fade by
(1 - γ) a step, so after t steps on new data they count for (1 - γ)^t, and a component that the new
data never use vanishes in the end; with "exp" the step size goes on falling from where it was, so
old and new patches keep counting alike. To keep what only the old data have, train on both, or
merge (`monai_dpmm.merged`). What further steps cannot do is to use components that have vanished,
whose weight is zero for good, for what only the new data have: that takes `revive`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.initialization import far_patches
from monai_dpmm.mixture.precision import exact

__all__ = ["revive"]


def revive(mixture: DPMM, x: Tensor) -> int:
    """Start vanished components again at new patches (N, D) far from the others; how many they are.

    Their means are drawn as in k-means++, by the squared distance to all means that are there; they
    get the covariance of x, and share the probability α / (N + α) with which the Dirichlet process
    opens a new component after N patches (Kimura et al. 2013), taken from the others alike. The
    draws follow from the mixture's seed and its number of steps. Nothing else changes.

    Raises:
        ValueError: where x is no finite (N, D) tensor with N >= 1.
        RuntimeError: where the mixture is not fitted.
    """
    if len(x) == 0 or not bool(torch.isfinite(x).all()):
        raise InputError(f"x must hold finite patches, at least one, got shape {tuple(x.shape)}")
    return exact(_revive)(mixture, x)


def _revive(mixture: DPMM, x: Tensor) -> int:
    distance = mixture.score(x, "euclidean").square()
    x = x.to(mixture.offsets)
    offsets = x - mixture.origin
    gone = torch.isinf(mixture.log_weights).nonzero()[:, 0][: len(x)]
    generator = torch.Generator().manual_seed(mixture.seed + int(mixture.steps))
    chosen = far_patches(offsets, len(gone), generator, distance)
    mixture.offsets[gone] = offsets[chosen]
    _restart_covariances(mixture, gone, x)
    new = mixture.concentration / (len(x) + mixture.concentration)
    if mixture.places is not None:  # of those that they were before
        mixture.places.counts[gone] = 0
    mixture.log_weights += torch.log1p(-new)
    mixture.log_weights[gone] = torch.log(new / max(len(gone), 1))
    mixture.prune()
    return len(gone)


def _restart_covariances(mixture: DPMM, gone: Tensor, x: Tensor) -> None:
    covariance = cast(nn.Module, mixture.covariance)
    before = {name: buffer.clone() for name, buffer in covariance.named_buffers()}
    mixture.covariance.reset(x.double().var(0, correction=0).to(x.dtype))
    for name, buffer in covariance.named_buffers():
        before[name][gone] = buffer[gone]
        buffer.copy_(before[name])
