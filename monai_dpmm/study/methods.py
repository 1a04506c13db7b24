"""The ways to model normality that a comparison knows, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from monai_dpmm.study.models.autoregressive import AutoregressiveModel
from monai_dpmm.study.models.bank import BankModel, KMeansModel
from monai_dpmm.study.models.mixture import FINITE, PLACED, MixtureModel
from monai_dpmm.study.models.normality import NormalityModel
from monai_dpmm.study.models.padim import PaDiM

__all__ = ["METHODS", "PAPER", "Data", "Method"]


class Data(Protocol):
    """What a method needs to know of the data to make its model.

    Attributes:
        features: D.
        grid: (h, w) of the slices' patches.
        place_grid: bins of the body.
    """

    features: int
    grid: tuple[int, int]
    place_grid: tuple[int, ...]

    def mixture(self, seed: int, **own: Any) -> MixtureModel:
        """The mixture of the config, but for options of its own."""


class Method(NamedTuple):
    """A way to model normality.

    Attributes:
        label: in the tables.
        kinds: scores that are measured, the one of Table 1 first.
        make: for data, of a seed and the number of prototypes that its DPMM kept.
        seeds: run no more of them: a full bank has none, and PatchCore's 10 % cost more than all
            others together but hardly depend on it.
        unit_norm: whether embeddings are scaled to unit norm.
        matched: whether it takes as many prototypes as the DPMM kept.
        aligned: whether all slices must be of one patch grid.
        slices, patches: how many it needs to train on.
    """

    label: str
    kinds: tuple[str, ...]
    make: Callable[[Data, int, int], NormalityModel]
    seeds: int | None = None
    unit_norm: bool = True
    matched: bool = False
    aligned: bool = False
    slices: int = 1
    patches: int = 1


def _mixture(on: Data, seed: int, count: int) -> MixtureModel:
    return on.mixture(seed, place_grid=on.place_grid)


def _raw(on: Data, seed: int, count: int) -> MixtureModel:
    return on.mixture(seed)


def _paper(on: Data, seed: int, count: int) -> MixtureModel:
    return on.mixture(seed, **PAPER)


def _finite(on: Data, seed: int, count: int) -> MixtureModel:
    return on.mixture(seed, components=count, **FINITE)


def _bank(**options: Any) -> Callable[[Data, int, int], NormalityModel]:
    return lambda on, seed, count: BankModel(on.features, seed=seed, **options)


def _k_means(on: Data, seed: int, count: int) -> KMeansModel:
    return KMeansModel(on.features, count, seed=seed)


def _padim(on: Data, seed: int, count: int) -> PaDiM:
    return PaDiM(on.features, on.grid, seed=seed)


def _autoregressive(on: Data, seed: int, count: int) -> AutoregressiveModel:
    return AutoregressiveModel(on.features, seed=seed)


# the paper's mixture, whatever the config has
PAPER: Mapping[str, Any] = {
    "components": 500,
    "component_kind": "diagonal",
    "variance_floor": 1e-6,
    "initialization": "random",
    "initial_weights": "beta",
    "concentration": 2.0,
    "schedule": "ema",
    "step_size": 0.2,
}
_PLACES = tuple(f"{PLACED}{kind}" for kind in ("cosine", "likelihood", "mixture"))
_THREE, _COSINE, _EUCLIDEAN = ("cosine", "euclidean", "likelihood"), ("cosine",), ("euclidean",)
METHODS: dict[str, Method] = {
    "dpmm": Method("DPMM", (*_THREE, "mixture", *_PLACES), _mixture),
    "dpmm-paper": Method("DPMM, the paper's", _COSINE, _paper),
    "dpmm-raw": Method("DPMM, raw embeddings", _THREE, _raw, unit_norm=False),
    "full": Method("full bank (AnomalyDINO)", _COSINE, _bank(), seeds=1),
    "shots-16": Method("bank of 16 slices", _COSINE, _bank(slices=16), slices=16),
    "shots-4": Method("bank of 4 slices", _COSINE, _bank(slices=4), slices=4),
    "shots-1": Method("bank of 1 slice", _COSINE, _bank(slices=1)),
    "coreset-10%": Method("PatchCore, 10 %", _EUCLIDEAN, _bank(size=0.1), seeds=2),
    "coreset-1024": Method("PatchCore, 1,024", _EUCLIDEAN, _bank(size=1024), patches=1024),
    "coreset-150": Method("PatchCore, 150", _EUCLIDEAN, _bank(size=150), patches=150),
    "k-means": Method("k-means", _COSINE, _k_means, matched=True),
    "gaussian-mixture": Method("Gaussian mixture", ("cosine", "mixture"), _finite, matched=True),
    "padim": Method("PaDiM", ("mahalanobis",), _padim, aligned=True),
    "autoregressive": Method("masked convolution", ("surprise",), _autoregressive),
}
