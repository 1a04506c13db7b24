"""Memory banks: healthy patches kept as prototypes, what the mixture's few are compared with.

AnomalyDINO (Damm et al., WACV 2025) keeps the patches of all healthy slices, or of a few, and its
score is 1 - max cos; PatchCore (Roth et al., CVPR 2022) keeps a coreset, and its score is the
Euclidean distance to the nearest. Letters: N patches to score, P prototypes, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_dpmm.errors import InputError, InputTypeError
from monai_dpmm.mixture.precision import exact, is_traced
from monai_dpmm.mixture.scores import ScoreKind
from monai_dpmm.study.models.coreset import coreset

__all__ = ["MemoryBank"]

_CHUNK = 2048  # patches: similarities (2048, 2048) at a time
_TILE = 2048  # prototypes
_DEVICE_CHUNK = 16384
_DEVICE_TILE = 8192


class MemoryBank(nn.Module):
    """Healthy patches that others are compared with, in the place of a `DPMM` in a detector.

    The bank is full (size None), for all patches or those of a few slices, whatever `fit` is given;
    or it keeps PatchCore's coreset of them. Prototypes found otherwise, as by k-means, are fitted
    to a full bank.

    Prototypes may be stored in half precision (`bank.half()`); distances are those of float32 or
    better. A state dict brings its own number of prototypes.

    Args:
        features: D.
        size: prototypes that `fit` keeps: a number (int), a fraction of the patches (float), or
            None for all.
        seed: of the coreset.

    Attributes:
        prototypes: buffer (P, D); P is 0 until `fit`.

    Raises:
        ValueError: for arguments out of range.
    """

    prototypes: Tensor

    def __init__(self, features: int, *, size: int | float | None = None, seed: int = 0) -> None:
        super().__init__()
        if features < 1:
            raise InputError(f"features must be at least 1, got {features}")
        if isinstance(size, float) and not 0 < size <= 1:
            raise InputError(f"size as a fraction must lie in (0, 1], got {size}")
        if size is not None and size <= 0:
            raise InputError(f"size must be at least 1, got {size}")
        self.features = features
        self.size = size
        self.seed = seed
        self.register_buffer("prototypes", torch.zeros(0, features))
        self.register_load_state_dict_pre_hook(_make_room)

    @exact
    def fit(self, patches: Tensor) -> None:
        """Keep healthy patches (N, D), all or a coreset, in the place of what was kept before.

        A full bank shares its memory with patches of its own precision and device.

        Raises:
            ValueError: where the patches are no finite (N, D) tensor with N >= 1, or fewer than
                the size.
        """
        self._check(patches, "patches")
        if not len(patches):
            raise InputError(
                f"patches must hold at least one patch, got shape {tuple(patches.shape)}"
            )
        if not all(bool(torch.isfinite(part).all()) for part in patches.split(_DEVICE_CHUNK)):
            raise InputError("patches must be finite, got NaN or infinite values")
        if self.size is not None:
            generator = torch.Generator().manual_seed(self.seed)
            patches = patches[coreset(patches, self.size, generator=generator)]
        self.prototypes = patches.detach().to(self.prototypes)

    @exact
    def nearest(self, x: Tensor, kind: ScoreKind = "cosine") -> tuple[Tensor, Tensor]:
        """Score of each patch and the prototype that gives it: (N, D) -> (N,), (N,) int64.

        A score is larger where a patch is more anomalous. The nearest prototype is found in the
        precision of the prototypes, at least float32, and its distance then measured in float64,
        so that a patch of the bank scores 0. Memory does not grow with N x P.

        Args:
            x: patches.
            kind: "cosine" 1 - max_p cos(x, p); "euclidean" min_p ‖x - p‖.

        Raises:
            ValueError: where x is no (N, D) tensor, or for a score that a bank does not have.
            RuntimeError: before `fit`.
        """
        metric = _metric(kind)
        scores, indices = [], []
        for part, index in self._nearest(x, metric):
            scores.append(metric.distance(part.double(), self.prototypes[index].double()))
            indices.append(index)
        return torch.cat(scores).to(self._precision), torch.cat(indices)

    def score(self, x: Tensor, kind: ScoreKind = "cosine") -> Tensor:
        """Anomaly score of each patch, see `nearest`: (N, D) -> (N,)."""
        return self.nearest(x, kind)[0]

    def assign(self, x: Tensor, kind: ScoreKind = "cosine") -> Tensor:
        """Index (0 to P - 1) of each patch's prototype, see `nearest`: (N, D) -> (N,)."""
        return self.nearest(x, kind)[1]

    def lowest_score(self, kind: ScoreKind = "cosine") -> Tensor:
        """Score that none is below: 0, a 0-d tensor."""
        _metric(kind)
        return torch.zeros((), dtype=self._precision, device=self.prototypes.device)

    def _nearest(self, x: Tensor, metric: _Metric) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of patches (n, D), and which prototype is nearest to each patch (n,)."""
        self._check(x, "x")
        if not is_traced() and not len(self.prototypes):
            raise RuntimeError("MemoryBank is not fitted: call fit, or load a checkpoint")
        on_cpu = x.device.type == "cpu"
        rows, tile = (_CHUNK, _TILE) if on_cpu else (_DEVICE_CHUNK, _DEVICE_TILE)
        origin = self.prototypes[:tile].to(self._precision).mean(0)  # of squares that lose little
        x = x.to(self._precision)
        for part in (x,) if is_traced() else x.split(rows):
            yield part, self._nearest_of_all(metric.placed(part, origin), metric, origin, tile)

    def _nearest_of_all(self, x: Tensor, metric: _Metric, origin: Tensor, tile: int) -> Tensor:
        """Index of the prototype nearest to each patch (n,): first its tile, then its place there.

        The highest similarity of a tile costs little beside the product, its place half as much as
        that, so a place is looked for in one tile only.
        """
        tiles = self.prototypes.split(tile)
        if len(tiles) == 1 or is_traced():
            highest_and_places = (metric.similarities(x, part, origin).max(1) for part in tiles)
            highest, places = map(torch.stack, zip(*highest_and_places, strict=True))
            which = highest.argmax(0, keepdim=True)
            return (places.gather(0, which) + which * tile)[0]
        best = torch.full_like(x[:, 0], -math.inf)
        where = torch.zeros_like(best, dtype=torch.int64)
        for number, prototypes in enumerate(tiles):
            highest = metric.similarities(x, prototypes, origin).amax(1)
            where = torch.where(highest > best, number, where)
            best = torch.maximum(highest, best)
        nearest = torch.empty_like(where)
        for number in where.unique().tolist():
            rows = (where == number).nonzero()[:, 0]
            places = metric.similarities(x[rows], tiles[number], origin).argmax(1)
            nearest[rows] = places + number * tile
        return nearest

    @property
    def _precision(self) -> torch.dtype:
        """That of the prototypes, at least float32."""
        return torch.promote_types(self.prototypes.dtype, torch.float32)

    def _check(self, x: Tensor, name: str) -> None:
        if not is_traced() and (x.ndim != 2 or x.shape[1] != self.features):
            raise InputError(f"{name} must be (N, {self.features}), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise InputTypeError(f"{name} must be of floating point, got {x.dtype}")


class _Metric(NamedTuple):
    """How patches are compared: the nearest prototype has the largest x' · p' + offset(p').

    Attributes:
        placed: patches or prototypes (n, D), and a point amid them (D,) -> x' or p', (n, D).
        offsets: prototypes p' (n, D) -> (n,), if not all 0.
        distance: pairs of a patch and a prototype, (n, D) and (n, D) -> (n,).
    """

    placed: Callable[[Tensor, Tensor], Tensor]
    offsets: Callable[[Tensor], Tensor] | None
    distance: Callable[[Tensor, Tensor], Tensor]

    def similarities(self, x: Tensor, prototypes: Tensor, origin: Tensor) -> Tensor:
        """Of placed patches and some prototypes: (n, D), (t, D) -> (n, t)."""
        part = self.placed(prototypes.to(x.dtype), origin)
        if self.offsets is None:
            return x @ part.T
        return torch.addmm(self.offsets(part), x, part.T)


_METRICS = {
    "cosine": _Metric(
        placed=lambda x, origin: F.normalize(x, dim=1),
        offsets=None,
        distance=lambda x, p: (1 - F.cosine_similarity(x, p, eps=1e-12)).clamp_min(0),
    ),
    "euclidean": _Metric(
        placed=lambda x, origin: x - origin,
        offsets=lambda p: p.square().sum(1) / -2,
        distance=lambda x, p: (x - p).norm(dim=1),
    ),
}


def _metric(kind: str) -> _Metric:
    if kind not in _METRICS:
        kinds = ", ".join(_METRICS)
        raise InputError(f"kind must be one of {kinds} for a memory bank, got {kind!r}")
    return _METRICS[kind]


def _make_room(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Take as many prototypes as the state dict has, but of no other dimension."""
    saved, bank = state.get(f"{prefix}prototypes"), cast(MemoryBank, module)
    if saved is None:
        return
    if saved.ndim != 2 or saved.shape[1] != bank.features:
        raise InputError(
            f"checkpoint has prototypes of shape {tuple(saved.shape)}, this MemoryBank has"
            f" features={bank.features}"
        )
    bank.prototypes = bank.prototypes.new_zeros(saved.shape)
