"""How much place counts, decided without labels by healthy patches that were held out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.mixture import Mixture
from monai_dpmm.mixture.places import Places

__all__ = ["calibrate_places", "place_gains", "place_scale"]

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)
_HIGHEST = 0.02  # λ, in units of the cosine
_HIGHEST_FLAT = 0.005  # of pictures, whose level in the body is not known
Batches = Iterable[tuple[Tensor, Tensor]]  # patches (N, D) and their places (N, d)


def calibrate_places(
    mixture: Mixture, batches: Batches, strengths: Sequence[float] = STRENGTHS
) -> float:
    """Set β to the best strength and λ by its rule; nats a patch that place then gains.

    Where the gain is not positive, healthy patches are as likely without places.

    Args:
        mixture: with a grid of places and their counts.
        batches: of healthy patches that were held out; read twice.
        strengths: β to choose from, in patches.
    """
    gains, places = place_gains(mixture, batches, strengths), _places(mixture)
    places.strength.fill_(strengths[int(gains.argmax())])
    places.scale.copy_(place_scale(mixture, batches))
    return float(gains.max())


def place_gains(
    mixture: Mixture, batches: Batches, strengths: Sequence[float] = STRENGTHS
) -> Tensor:
    """Mean of log p(x | u) - log p(x) for each strength β, nats a patch: (C,) float64."""
    _places(mixture)
    total, count = torch.zeros(len(strengths)).double(), 0
    for x, u in batches:
        plain, *placed = mixture.place_log_probs(x, u, strengths).double().sum(1).cpu()
        total += torch.stack(placed) - plain
        count += len(x)
    if count == 0:
        raise InputError("batches must hold at least one patch, got none")
    return total / count


def place_scale(mixture: Mixture, batches: Batches) -> Tensor:
    """λ, in units of the cosine: deviation of 1 - cos over that of -log π_k(u), 0-d; 0.02 at most.

    Both are standard deviations over patches, at each patch's nearest prototype, so that place
    says as much as appearance does. Of pictures, whose third coordinate is always the middle, it is
    0.005 at most: slices of all levels lie on each other there. Above these, validation lesions
    were found less well, on brain volumes and on single FLAIR slices.
    """
    pairs, flat = [], True
    for x, u in batches:
        flat &= u.shape[1] == 3 and bool((u[:, 2] == 0.5).all())
        distance, index = mixture.nearest(x, "cosine")
        pairs.append(torch.stack([distance, mixture.place_log_weight(index, u)]))
    if not pairs:
        raise InputError("batches must hold at least one patch, got none")
    appearance, place = torch.cat(pairs, 1).double().std(1, correction=0)
    return torch.where(place > 0, appearance / place, 0).clamp_max(
        _HIGHEST_FLAT if flat else _HIGHEST
    )


def _places(mixture: Mixture) -> Places:
    if mixture.places is None:
        raise InputError("mixture must have a place_grid, got none")
    return mixture.places
