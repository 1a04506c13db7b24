"""PatchCore's coreset: few patches that leave no other far from all of them.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, Algorithm 1: greedy
k-center (Gonzalez, 1985), whose largest distance is at most twice the smallest possible one, on a
random projection of the patches. Letters: N patches, D features, M of them chosen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.precision import full_float32

__all__ = ["coreset", "coreset_size", "projected_features"]

_POOL = 2048  # candidates for the next choices, compared with each other in cache
_BLOCK = 512  # most choices between two passes over all patches
_CHUNK = 8192  # patches: distances (8192, 512) at a time


@torch.no_grad()
def coreset(
    x: Tensor, size: int | float, *, generator: torch.Generator, distortion: float = 0.9
) -> Tensor:
    """Indices of different patches, each the farthest from those before it: (N, D) -> (M,).

    The first is drawn uniformly. Distances are Euclidean ones of the patches, or of their random
    projection where `projected_features` are fewer than D. All draws are made on the CPU, so they
    do not depend on the device. Beside a centred or projected copy of the patches, memory does not
    grow with N x M; time does, as 2·N·M·min(D, projected features) flop.

    Args:
        x: patches.
        size: M as a number (int), or as a fraction of N (float).
        generator: of the draws, on the CPU.
        distortion: of squared distances by the projection, in (0, 1).

    Raises:
        ValueError: where x is no finite (N, D) tensor with N >= 1, or for arguments out of range.
    """
    if x.ndim != 2 or not len(x):
        raise InputError(f"x must be (N, D) with N at least 1, got shape {tuple(x.shape)}")
    count = coreset_size(len(x), size)
    first = torch.randint(len(x), (1,), generator=generator).to(x.device)
    with torch.autocast(x.device.type, enabled=False), full_float32():
        points = _projected(x, projected_features(len(x), distortion), generator)
        squares = points.square().sum(1)
        if not bool(torch.isfinite(squares).all()):
            raise InputError("x must be finite, got NaN or infinite values")
        return _k_center_greedy(points, squares, count, first)


def coreset_size(patches: int, size: int | float) -> int:
    """M of N patches: a number (int) as it is, a fraction (float) of them, at least 1.

    Raises:
        ValueError: for a number outside 1 to N, or a fraction outside (0, 1].
    """
    if isinstance(size, float):
        if not 0 < size <= 1:
            raise InputError(f"size as a fraction must lie in (0, 1], got {size}")
        return max(1, round(size * patches))
    if not 1 <= size <= patches:
        raise InputError(f"size must be from 1 to the {patches} patches, got {size}")
    return size


def projected_features(patches: int, distortion: float = 0.9) -> int:
    """Features that keep all squared distances of N patches within 1 ± distortion, likely.

    By the lemma of Johnson and Lindenstrauss, 4 ln N / (ε²/2 - ε³/3) (Dasgupta and Gupta, 2003).

    Raises:
        ValueError: for a distortion outside (0, 1).
    """
    if not 0 < distortion < 1:
        raise InputError(f"distortion must lie in (0, 1), got {distortion}")
    needed = 4 * math.log(patches) / (distortion**2 / 2 - distortion**3 / 3)
    return max(1, int(needed))


def _projected(x: Tensor, features: int, generator: torch.Generator) -> Tensor:
    """Centred patches (N, D), by a Gaussian projection if that makes them smaller."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    origin = x.mean(0)
    if features >= x.shape[1]:
        return x - origin
    gaussian = torch.randn(x.shape[1], features, generator=generator, dtype=torch.float64)
    projection = (gaussian / math.sqrt(features)).to(x)
    result = x.new_empty(len(x), features)
    for part, out in zip(x.split(_CHUNK), result.split(_CHUNK), strict=True):
        torch.mm(part - origin, projection, out=out)
    return result


def _k_center_greedy(x: Tensor, squares: Tensor, count: int, first: Tensor) -> Tensor:
    """The first patch, then always the farthest from those chosen: (N, d) -> (count,)."""
    distance = torch.full_like(squares, math.inf)
    chosen, done, block = [first], 1, 16
    while done < count:
        _approach(distance, x, squares, chosen[-1])
        chosen.append(_farthest(distance, x, squares, min(block, count - done)))
        done += len(chosen[-1])
        block = min(2 * len(chosen[-1]), _BLOCK)
    return torch.cat(chosen)


def _approach(distance: Tensor, x: Tensor, squares: Tensor, new: Tensor) -> None:
    """Lower squared distances (N,) to those to the new patches; -1 marks these as taken."""
    points, norms = x[new], squares[new]
    for near, part, own in zip(*(t.split(_CHUNK) for t in (distance, x, squares)), strict=True):
        to_new = torch.addmm(norms, part, points.T, alpha=-2).amin(1).add_(own).clamp_min_(0)
        torch.minimum(near, to_new, out=near)
    distance[new] = -1


def _farthest(distance: Tensor, x: Tensor, squares: Tensor, limit: int) -> Tensor:
    """The next greedy choices, at least 1 and at most `limit`, without a look at all patches.

    Distances only fall. So as long as one of the patches that were farthest before is still as far
    as the farthest of all others was, the farthest of them is the farthest of all. The host waits
    for the device once, to learn how long that was so.
    """
    heights, pool = distance.topk(min(_POOL + 1, len(x)))
    rest = heights[-1] if len(x) > _POOL else -math.inf
    near, pool = heights[:_POOL], pool[:_POOL]
    points, norms = x[pool], squares[pool]
    picks = torch.empty(min(limit, len(pool)), dtype=torch.int64, device=x.device)
    reach = near.new_empty(len(picks))
    for i in range(len(picks)):
        best = near.argmax(0, keepdim=True)
        picks[i : i + 1], reach[i : i + 1] = best, near.index_select(0, best)
        products = torch.mv(points, points.index_select(0, best)[0])
        to_best = (norms - 2 * products + norms.index_select(0, best)).clamp_min_(0)
        near = torch.minimum(near, to_best).index_fill_(0, best, -1)
    valid = int((reach >= rest).sum())  # a prefix, since reaches fall
    return pool[picks[:valid]]
