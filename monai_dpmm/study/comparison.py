"""Every method on the same embeddings, for several seeds: what the paper's tables are made of."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser
from torch import Tensor

from monai_dpmm.errors import InputError, MissingPackageError
from monai_dpmm.files import atomic_write, json_object
from monai_dpmm.report.environment import environment
from monai_dpmm.study.embedded_dataset import EmbeddedDataset, embedded_dataset
from monai_dpmm.study.models.bank import BankModel, KMeansModel
from monai_dpmm.study.models.mixture import FINITE, MixtureModel
from monai_dpmm.study.models.normality import NormalityModel
from monai_dpmm.study.models.padim import PaDiM
from monai_dpmm.study.runs import cost, quality

__all__ = ["METHODS", "Method", "compare"]

_TIMED = 5  # slices
_EVALUATION = 2  # of trials that are kept: those of another one are run again


class Method(NamedTuple):
    """A way to model normality.

    Attributes:
        label: in the tables.
        kinds: scores that are measured, the one of Table 1 first.
        make: for a comparison, of a seed and the number of prototypes that its DPMM kept.
        seeds: run no more of them: a full bank has none, and PatchCore's 10 % cost more than all
            others together but hardly depend on it.
        unit_norm: whether embeddings are scaled to unit norm.
        matched: whether it takes as many prototypes as the DPMM kept.
        aligned: whether all slices must be of one patch grid.
        slices, patches: how many it needs to train on.
    """

    label: str
    kinds: tuple[str, ...]
    make: Callable[[_Comparison, int, int], NormalityModel]
    seeds: int | None = None
    unit_norm: bool = True
    matched: bool = False
    aligned: bool = False
    slices: int = 1
    patches: int = 1


def _mixture(on: _Comparison, seed: int, count: int) -> MixtureModel:
    return on.mixture(seed)


def _finite(on: _Comparison, seed: int, count: int) -> MixtureModel:
    return on.mixture(seed, components=count, **FINITE)


def _bank(**options: Any) -> Callable[[_Comparison, int, int], NormalityModel]:
    return lambda on, seed, count: BankModel(on.features, seed=seed, **options)


def _k_means(on: _Comparison, seed: int, count: int) -> KMeansModel:
    return KMeansModel(on.features, count, seed=seed)


def _padim(on: _Comparison, seed: int, count: int) -> PaDiM:
    return PaDiM(on.features, on.grid, seed=seed)


_THREE, _COSINE, _EUCLIDEAN = ("cosine", "euclidean", "likelihood"), ("cosine",), ("euclidean",)
METHODS: dict[str, Method] = {
    "dpmm": Method("DPMM", _THREE, _mixture),
    "dpmm-raw": Method("DPMM, raw embeddings", _THREE, _mixture, unit_norm=False),
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
}


def compare(
    parser: ConfigParser,
    folder: str | Path,
    *,
    seeds: int = 5,
    methods: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Records of all trials, a method with a seed each, on the data set of a training config.

    Embeddings are those of training's store, and each trial is kept in `folder/trials` as soon as
    it is done; one that is there, of the same data and settings, is not run again. The DPMM is
    always among the methods.

    Args:
        parser: of the config and its overlays; the mixture is made of its values.
        folder: made where it does not exist.
        seeds: how many, from 0.
        methods: names in `METHODS`; all that the data allow if None.

    Raises:
        ValueError: for fewer than one seed, or an unknown method.
        InputError: see `monai_dpmm.scans.datalist`, where no test scan has a lesion, or where the
            data do not allow a method that was asked for.
        ImportError: where a package of the extra `evaluation` is missing.
    """
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}")
    unknown = [name for name in methods or () if name not in METHODS]
    if unknown:
        raise InputError(f"methods must be among {', '.join(METHODS)}, got {unknown[0]!r}")
    for package in ("scipy", "sklearn", "tabulate"):
        if find_spec(package) is None:
            raise MissingPackageError(
                f"compare needs {package}: pip install 'monai-dpmm[evaluation]'"
            )
    dataset = embedded_dataset(parser)
    if not any(bool(scan.masks.any()) for scan in dataset.tests()):
        raise InputError(f"{parser['dataset_dir']}: must have test scans with lesions, got none")
    return _Comparison(parser, dataset, Path(folder) / "trials", seeds).run(methods)


class _Comparison:
    """The trials of a data set, embeddings of one normalisation in memory at a time."""

    def __init__(
        self, parser: ConfigParser, dataset: EmbeddedDataset, folder: Path, seeds: int
    ) -> None:
        self.dataset = dataset
        self.folder = folder
        self.seeds = seeds
        self.key = dataset.key
        self.device = parser.get_parsed_content("device")
        self._unit_norm: bool | None = None
        self._load(unit_norm=True)
        height, width, self.features = self.train[0].shape
        self.grid = (height, width)
        arguments = [k for k in parser["mixture"] if k not in ("_target_", "features", "seed")]
        self.options = {key: parser.get_parsed_content(f"mixture#{key}") for key in arguments}
        self.epochs = parser.get_parsed_content("max_epochs")
        self.batch_size = parser.get_parsed_content("batch_size")

    def mixture(self, seed: int, **own: Any) -> MixtureModel:
        """The DPMM of the config, but for what is its own."""
        training = {"epochs": self.epochs, "batch_size": self.batch_size, "seed": seed}
        return MixtureModel(self.features, {**self.options, **own}, **training)

    def run(self, methods: Sequence[str] | None) -> list[dict[str, Any]]:
        """Records in the order of `METHODS`."""
        names = self._possible(methods)
        records: dict[str, list[dict[str, Any]]] = {}
        for name in sorted(names, key=lambda name: not METHODS[name].unit_norm):
            seeds = range(min(self.seeds, METHODS[name].seeds or self.seeds))
            dpmm = records.get("dpmm", [])
            counts = [record["prototypes"] for record in dpmm] or [0] * self.seeds
            records[name] = [self._record(name, seed, counts[seed]) for seed in seeds]
        return [record for name in names for record in records[name]]

    def _possible(self, methods: Sequence[str] | None) -> list[str]:
        """Names of the methods that the data allow, in the order of `METHODS`."""
        chosen = [name for name in METHODS if methods is None or name in {*methods, "dpmm"}]
        obstacles = {name: self._obstacle(METHODS[name]) for name in chosen}
        found = {name: obstacle for name, obstacle in obstacles.items() if obstacle}
        for name, obstacle in found.items():
            if methods is not None:
                raise InputError(f"{self.dataset.root}: {name} needs {obstacle}")
            print(f"{name} is left out: it needs {obstacle}")
        return [name for name in chosen if name not in found]

    def _obstacle(self, method: Method) -> str | None:
        """What the data lack."""
        grids = sorted({tuple(grid.shape[:2]) for grid in (*self.train, *self.val)})
        if method.aligned and len(grids) > 1:
            return f"slices of one patch grid, got {grids}"
        if len(self.train) < method.slices:
            return f"{method.slices} healthy slices to train on, got {len(self.train)}"
        patches = sum(int(grid.any(-1).sum()) for grid in self.train)
        if patches < method.patches:
            return f"{method.patches} healthy patches to train on, got {patches}"
        return None

    def _load(self, *, unit_norm: bool) -> None:
        if self._unit_norm != unit_norm:
            self.train: list[Tensor] = self.dataset.healthy("train", unit_norm=unit_norm)
            self.val: list[Tensor] = self.dataset.healthy("val", unit_norm=unit_norm)
            self._unit_norm = unit_norm

    def _record(self, name: str, seed: int, count: int) -> dict[str, Any]:
        """The record of a trial, run unless it is there."""
        method = METHODS[name]
        settings = {"unit_norm": method.unit_norm, "scores": list(method.kinds)}
        settings |= self._settings(name, count)
        done = {"method": name, "seed": seed, "settings": settings, "data": self.key}
        done["evaluation"] = _EVALUATION
        path = self.folder / f"{name}-{seed}.json"
        if path.is_file():
            record = json_object(path)
            if all(record.get(key) == value for key, value in done.items()):
                return record | {"label": method.label}  # the file's is untrusted
        self._load(unit_norm=method.unit_norm)
        record = {**done, "label": method.label, **self._trial(method, seed, count)}
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(record, indent=1))
        return record

    def _settings(self, name: str, count: int) -> dict[str, Any]:
        training = {"max_epochs": self.epochs, "batch_size": self.batch_size}
        mixture = name in ("dpmm", "dpmm-raw", "gaussian-mixture")
        own = {**self.options, **training} if mixture else {}
        matched = {"components" if mixture else "clusters": count}
        return own | (matched if METHODS[name].matched else {})

    def _trial(self, method: Method, seed: int, count: int) -> dict[str, Any]:
        """Fit, score and measure."""
        model = method.make(self, seed, count)
        model.module.to(self.device)
        start = time.perf_counter()
        model.fit(self.train, self.val)
        seconds = time.perf_counter() - start
        scores = {}
        for kind in method.kinds:
            tests = self.dataset.tests(unit_norm=method.unit_norm)
            scores[kind] = quality(model, kind, self.val, tests)
            scores[kind] |= cost(model, kind, self._timed(method.unit_norm))._asdict()
        first = scores[method.kinds[0]]
        print(
            f"{method.label}, seed {seed}: {model.prototypes} prototypes, AUROC"
            f" {first['auroc']:.4f}, AUPR {first['aupr']:.4f}, fitted in {seconds:.0f} s",
            flush=True,
        )
        done = {"prototypes": model.prototypes, "fit_seconds": seconds, "scores": scores}
        return done | {"environment": environment()}

    def _timed(self, unit_norm: bool) -> list[Tensor]:
        """The middle slices of the first test scans."""
        scans = zip(range(_TIMED), self.dataset.tests(unit_norm=unit_norm), strict=False)
        return [scan.embeddings[len(scan.embeddings) // 2] for _, scan in scans]
