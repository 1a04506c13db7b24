"""Memory banks and k-means as a comparison has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_dpmm.errors import InputError, MissingPackageError
from monai_dpmm.study.models.bank import MemoryBank
from monai_dpmm.study.models.normality import NormalityModel, patches_of

__all__ = ["BankModel", "KMeansModel"]


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
