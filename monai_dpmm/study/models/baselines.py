"""Models of normality behind one interface, to be compared on the same embeddings.

Each is fitted to healthy slices, patch grids (h, w, D) whose background is zero, and scores the
patches of others. Letters as everywhere: N patches, K components, D features, S slices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from monai_dpmm.errors import InputError, MissingPackageError
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.study.models.bank import MemoryBank
from monai_dpmm.study.models.padim import PaDiM

__all__ = ["BankModel", "KMeansModel", "MixtureModel", "NormalityModel", "PaDiMModel"]

_CHUNK = 64  # slices


class NormalityModel(Protocol):
    """What a comparison asks of a method.

    Attributes:
        module: holds all that scoring needs, in its buffers, on the device where it runs.
    """

    module: nn.Module

    @property
    def prototypes(self) -> int:
        """What a patch is compared with: how many, 0 until `fit`."""

    def fit(self, slices: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Fit to healthy slices (h, w, D), choosing by others that are held out, if at all."""

    def score(self, slices: Tensor, kind: Any) -> Tensor:
        """Score of each patch: (S, h, w, D) -> (S, h, w), on the CPU; background the lowest."""


class BankModel:
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
        if slices is not None and slices < 1:
            raise InputError(f"slices must be at least 1, got {slices}")
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
        self.module.fit(_patches(slices).to(self.module.prototypes.device))

    def score(self, slices: Tensor, kind: Any) -> Tensor:
        """Distance to the nearest prototype: (S, h, w, D) -> (S, h, w)."""
        return _scored(self.module, slices, lambda x: self.module.score(x, kind), 0.0)


class KMeansModel:
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

    module: MemoryBank

    def __init__(
        self, features: int, clusters: int, *, iterations: int = 20, seed: int = 0
    ) -> None:
        try:
            from sklearn.cluster import KMeans
        except ImportError:
            raise MissingPackageError(
                "k-means needs scikit-learn: pip install 'monai-dpmm[evaluation]'"
            ) from None
        self.module = MemoryBank(features)
        self._clustering = KMeans(
            clusters, init="random", n_init=1, max_iter=iterations, random_state=seed
        )

    @property
    def prototypes(self) -> int:
        """K."""
        return len(self.module.prototypes)

    def fit(self, slices: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Cluster the patches."""
        self._clustering.fit(_patches(slices).numpy())
        self.module.fit(torch.from_numpy(self._clustering.cluster_centers_))

    def score(self, slices: Tensor, kind: Any) -> Tensor:
        """Distance to the nearest centre: (S, h, w, D) -> (S, h, w)."""
        return _scored(self.module, slices, lambda x: self.module.score(x, kind), 0.0)


class MixtureModel:
    """A `DPMM` fitted as in training: batches of slices in random order, the best epoch kept.

    `MixtureModel.finite` is a Gaussian mixture of K components instead: with α = 1 kept, the prior
    v_k ~ Beta(1, 1) is uniform, and the weights of the M-step are s_k, those of maximum likelihood.

    Args:
        features: D.
        options: further arguments of `DPMM`.
        epochs: at least 1; that of the highest likelihood of the slices held out is kept.
        batch_size: slices.
        seed: of the start and the order of the slices.
    """

    module: DPMM

    def __init__(
        self,
        features: int,
        options: Mapping[str, Any],
        *,
        epochs: int = 40,
        batch_size: int = 12,
        seed: int = 0,
    ) -> None:
        for name, value in (("epochs", epochs), ("batch_size", batch_size)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self.module = DPMM(features, **{**options, "seed": seed})
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed

    @classmethod
    def finite(
        cls, features: int, components: int, options: Mapping[str, Any], **kwargs: Any
    ) -> MixtureModel:
        """A finite mixture of K components, which start with equal weights."""
        own = {"components": components, "concentration": 1.0, "learn_concentration": False}
        return cls(features, {**options, **own, "initial_weights": "uniform"}, **kwargs)

    @property
    def prototypes(self) -> int:
        """Components that survive."""
        return int(self.module.num_surviving)

    def fit(self, slices: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Run all epochs, and go back to the best."""
        best, state = -torch.inf, {}
        for epoch in range(self.epochs):
            for x in self._batches(slices, epoch):
                if not self.module.fitted:
                    self.module.initialize(x)
                self.module.step(x)
            self.module.prune()
            log_likelihood = self._log_likelihood(held_out)
            if log_likelihood > best:
                best = log_likelihood
                state = {name: x.clone() for name, x in self.module.state_dict().items()}
        self.module.load_state_dict(state)

    def _batches(self, slices: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
        """Patches (N, D) in the order that training has them in."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        for batch in torch.randperm(len(slices), generator=generator).split(self.batch_size):
            yield _patches([slices[i] for i in batch]).to(self.module.offsets.device)

    def _log_likelihood(self, slices: Sequence[Tensor]) -> float:
        """Mean over all patches, nats."""
        device, parts = self.module.offsets.device, range(0, len(slices), _CHUNK)
        patches = (_patches(slices[i : i + _CHUNK]).to(device) for i in parts)
        return float(torch.cat([self.module.log_prob(x).double() for x in patches]).mean())

    def score(self, slices: Tensor, kind: Any) -> Tensor:
        """A score of `DPMM.score`: (S, h, w, D) -> (S, h, w)."""
        lowest = float(self.module.lowest_score(kind))
        return _scored(self.module, slices, lambda x: self.module.score(x, kind), lowest)


class PaDiMModel:
    """`PaDiM`, whose score is the Mahalanobis distance at a patch's own place.

    Args:
        features: D.
        grid: (h, w).
        seed: of the features selected.
    """

    module: PaDiM

    def __init__(self, features: int, grid: tuple[int, int], *, seed: int = 0) -> None:
        self.module = PaDiM(features, grid, seed=seed)

    @property
    def prototypes(self) -> int:
        """Places."""
        return len(self.module.means) if bool(self.module.factors[0, 0, 0]) else 0

    def fit(self, slices: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Fit all places."""
        self.module.fit(slices)

    def score(self, slices: Tensor, kind: Any) -> Tensor:
        """Mahalanobis distance, the only kind: (S, h, w, D) -> (S, h, w)."""
        if kind != "mahalanobis":
            raise InputError(f"kind must be mahalanobis for PaDiM, got {kind!r}")
        return self.module.score(slices).cpu()


def _patches(slices: Sequence[Tensor]) -> Tensor:
    """Patches that are not background: grids (h, w, D) -> (N, D)."""
    return torch.cat([grid[grid.any(dim=-1)] for grid in slices])


def _scored(
    module: nn.Module, slices: Tensor, score: Callable[[Tensor], Tensor], lowest: float
) -> Tensor:
    """Scores of patches, background the lowest: (S, h, w, D) -> (S, h, w), on the CPU."""
    there = slices.any(dim=-1)
    result = torch.full(there.shape, lowest)
    if bool(there.any()):
        device = next(module.buffers()).device
        result[there] = score(slices[there].to(device)).float().cpu()
    return result
