"""Memory banks: healthy patches kept as prototypes, what the mixture's few are compared with.

AnomalyDINO (Damm et al., WACV 2025) keeps the patches of all healthy slices, or of a few, and its
score is 1 - max cos; PatchCore (Roth et al., CVPR 2022) keeps a coreset, and its score is the
Euclidean distance to the nearest. Letters: N patches to score, P prototypes, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_dpmm.errors import InputError, InputTypeError, MissingPackageError
from monai_dpmm.mixture.checks import check_at_least_one, check_choice
from monai_dpmm.mixture.precision import exact, is_traced
from monai_dpmm.mixture.scores import ScoreKind
from monai_dpmm.study.models.coreset import coreset
from monai_dpmm.study.models.normality import NormalityModel, patches_of

__all__ = ["BankModel", "KMeansModel", "MemoryBank"]

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
        check_at_least_one("features", features)
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
        check_choice("kind", kind, _DISTANCES)
        self._check(x, "x")
        if not is_traced() and not len(self.prototypes):
            raise RuntimeError("MemoryBank is not fitted: call fit, or load a checkpoint")
        rows, tile = (_CHUNK, _TILE) if x.device.type == "cpu" else (_DEVICE_CHUNK, _DEVICE_TILE)
        x = x.to(self._precision)
        scores, indices = [], []
        for part in (x,) if is_traced() else x.split(rows):
            indices.append(self._nearest(part, kind, tile))
            nearest = self.prototypes[indices[-1]].double()
            scores.append(_DISTANCES[kind](part.double(), nearest))
        return torch.cat(scores).to(self._precision), torch.cat(indices)

    def score(self, x: Tensor, kind: ScoreKind = "cosine") -> Tensor:
        """Anomaly score of each patch, see `nearest`: (N, D) -> (N,)."""
        return self.nearest(x, kind)[0]

    def assign(self, x: Tensor, kind: ScoreKind = "cosine") -> Tensor:
        """Index (0 to P - 1) of each patch's prototype, see `nearest`: (N, D) -> (N,)."""
        return self.nearest(x, kind)[1]

    def lowest_score(self, kind: ScoreKind = "cosine") -> Tensor:
        """Score that none is below: 0, a 0-d tensor."""
        check_choice("kind", kind, _DISTANCES)
        return torch.zeros((), dtype=self._precision, device=self.prototypes.device)

    def _nearest(self, x: Tensor, kind: ScoreKind, tile: int) -> Tensor:
        """Index of the prototype with the largest x' · p' (- ‖p'‖² / 2): (n, D) -> (n,)."""
        origin = self.prototypes[:tile].to(x.dtype).mean(0)  # of squares that lose little

        def placed(x: Tensor) -> Tensor:
            return F.normalize(x, dim=1) if kind == "cosine" else x - origin

        x = placed(x)
        best = torch.full_like(x[:, 0], -math.inf)
        index = torch.zeros_like(best, dtype=torch.int64)
        for number, prototypes in enumerate(self.prototypes.split(tile)):
            part = placed(prototypes.to(x.dtype))
            if kind == "cosine":
                similarities = x @ part.T
            else:
                similarities = torch.addmm(part.square().sum(1) / -2, x, part.T)
            highest, places = similarities.max(1)
            index = torch.where(highest > best, places + number * tile, index)
            best = torch.maximum(highest, best)
        return index

    @property
    def _precision(self) -> torch.dtype:
        """That of the prototypes, at least float32."""
        return torch.promote_types(self.prototypes.dtype, torch.float32)

    def _check(self, x: Tensor, name: str) -> None:
        if not is_traced() and (x.ndim != 2 or x.shape[1] != self.features):
            raise InputError(f"{name} must be (N, {self.features}), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise InputTypeError(f"{name} must be of floating point, got {x.dtype}")


# pairs of a patch and its prototype, (n, D) and (n, D) -> (n,)
_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda x, p: (1 - F.cosine_similarity(x, p, eps=1e-12)).clamp_min(0),
    "euclidean": lambda x, p: (x - p).norm(dim=1),
}


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


class BankModel(NormalityModel):
    """Memory bank of the patches of all healthy slices, or of a few, or a coreset of them.

    All slices with the cosine score is AnomalyDINO's full-shot bank, one slice its one-shot bank; a
    coreset with the Euclidean score is PatchCore's bank (see `MemoryBank`).

    Args:
        features: D.
        slices: how many healthy slices are drawn, all if None.
        size: of the coreset, see `MemoryBank`.
        seed: of the draw and the coreset.
    """

    module: MemoryBank

    def __init__(
        self,
        features: int,
        *,
        slices: int | None = None,
        size: int | float | None = None,
        seed: int = 0,
    ) -> None:
        if slices is not None:
            check_at_least_one("slices", slices)
        self.module = MemoryBank(features, size=size, seed=seed)
        self.slices = slices
        self.seed = seed

    @property
    def prototypes(self) -> int:
        """P."""
        return len(self.module.prototypes)

    def fit(self, slices: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Keep patches.

        Raises:
            ValueError: where there are fewer slices than are to be drawn.
        """
        if self.slices is not None:
            if self.slices > len(slices):
                raise InputError(
                    f"slices must be at most the {len(slices)} healthy ones, got {self.slices}"
                )
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randperm(len(slices), generator=generator)[: self.slices]
            slices = [slices[i] for i in drawn]
        self.module.fit(patches_of(slices).to(self.device))


class KMeansModel(BankModel):
    """The centres of k-means as a memory bank: Lloyd's algorithm, from patches drawn uniformly.

    Fitting holds the patches twice, and else memory that does not grow with N x K.

    Args:
        features: D.
        clusters: K.
        iterations: at most so many.
        seed: of the draw.

    Raises:
        ImportError: without scikit-learn.
    """

    def __init__(
        self, features: int, clusters: int, *, iterations: int = 20, seed: int = 0
    ) -> None:
        try:
            from sklearn.cluster import KMeans
        except ImportError:
            raise MissingPackageError(
                "k-means needs scikit-learn: pip install 'monai-dpmm[evaluation]'"
            ) from None
        super().__init__(features)
        self._clustering = KMeans(
            clusters, init="random", n_init=1, max_iter=iterations, random_state=seed
        )

    def fit(self, slices: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Cluster the patches."""
        self._clustering.fit(patches_of(slices).numpy())
        self.module.fit(torch.from_numpy(self._clustering.cluster_centers_))
