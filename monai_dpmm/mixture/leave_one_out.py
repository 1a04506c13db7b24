"""A fitted mixture as it is without some of the patches that it was fitted to.

Moments are sums over patches, so those of all patches less those of some are the others': one
M-step of them gives the mixture of the others, without a fit of its own. What remains of the
patches left out is their part in the responsibilities of the others.
"""

from __future__ import annotations

import copy

from torch import Tensor

from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.em import Moments

__all__ = ["exact_moments", "without"]

_NOTHING = 1e-6  # patches: what float64 leaves of a component that no other patch has


def exact_moments(mixture: DPMM, x: Tensor) -> Moments:
    """Moments of patches (N, D) as `DPMM.e_step` gives them, in float64.

    Sums of them keep what each part has added, so that it can be taken off again.
    """
    return Moments(*(part.double() for part in mixture.e_step(x)))


def without(
    mixture: DPMM, total: Moments, own: Moments, place_counts: Tensor | None = None
) -> DPMM:
    """A copy of the mixture after a whole M-step (γ = 1) on all patches but some.

    Components that no other patch has are gone. Where no patch is left, nothing has changed.

    Args:
        mixture: under whose parameters the moments were taken.
        total: of all patches, sums of `exact_moments`.
        own: of those to leave out, likewise.
        place_counts: of those to leave out, (K, G), for a mixture with places.
    """
    kept = total.weight - own.weight > _NOTHING
    weight, first, second = (
        (all_of_them - some) * kept.view(-1, *(1,) * (some.ndim - 1))
        for all_of_them, some in zip(total[:3], own[:3], strict=True)
    )
    narrow = mixture.offsets.dtype
    others = Moments(
        weight,
        first.to(narrow),
        second.to(narrow),
        total.count - own.count,
        total.log_likelihood - own.log_likelihood,
    )
    result = copy.deepcopy(mixture)
    result.m_step(others, whole=True)
    result.prune()
    if result.places is not None and place_counts is not None:
        counts = result.places.counts.double() - place_counts
        result.places.counts.copy_(counts.clamp_min(0) * kept[:, None])
    return result
