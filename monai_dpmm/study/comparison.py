"""Every method on the same embeddings, for several seeds: what the paper's tables are made of."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import Tensor

from monai_dpmm.errors import InputError, MissingPackageError
from monai_dpmm.files import atomic_write, json_object
from monai_dpmm.report.environment import environment
from monai_dpmm.study.embedded_dataset import EmbeddedDataset, embedded_dataset
from monai_dpmm.study.methods import METHODS, PAPER, Method
from monai_dpmm.study.models.mixture import MixtureModel
from monai_dpmm.study.runs import cost, quality

__all__ = ["METHODS", "compare"]

_TIMED = 5  # slices
_PLACE_GRID = (10, 8, 8)  # where the config has none
_SIGMA = 4.0  # mm, or pixels of pictures, where the config smooths nothing
_EVALUATION = 3  # of trials that are kept: those of another one are run again


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
        self.places = {section: dataset.places(section) for section in ("train", "val")}
        self._load(unit_norm=True)
        height, width, self.features = self.train[0].shape
        self.grid = (height, width)
        own = ("_target_", "features", "planes", "seed")
        arguments = [key for key in parser["mixture"] if key not in own]
        options = {key: parser.get_parsed_content(f"mixture#{key}") for key in arguments}
        self.place_grid = tuple(options.pop("place_grid", None) or _PLACE_GRID)
        self.options = options
        self.sigma_mm = float(parser.get_parsed_content("smoothing_mm") or _SIGMA)
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
        settings: dict[str, Any] = {"unit_norm": method.unit_norm, "scores": list(method.kinds)}
        settings["smoothing_mm"] = self.sigma_mm
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
        mixture = name in ("dpmm", "dpmm-paper", "dpmm-raw", "gaussian-mixture")
        own = {**self.options, **training} if mixture else {}
        own |= {"dpmm": {"place_grid": list(self.place_grid)}, "dpmm-paper": PAPER}.get(name, {})
        matched = {"components" if mixture else "clusters": count}
        return own | (matched if METHODS[name].matched else {})

    def _trial(self, method: Method, seed: int, count: int) -> dict[str, Any]:
        """Fit, score and measure."""
        model = method.make(self, seed, count)
        model.module.to(self.device)
        start = time.perf_counter()
        model.fit(self.train, self.val)
        if isinstance(model, MixtureModel) and model.module.places is not None:
            placed = (self.train, self.places["train"]), (self.val, self.places["val"])
            print(f"places make healthy patches {model.place(*placed):+.2f} nats likelier")
        seconds = time.perf_counter() - start
        scores = {}
        for kind in method.kinds:
            tests = self.dataset.tests(unit_norm=method.unit_norm)
            held_out = zip(self.val, self.places["val"], strict=True)
            scores[kind] = quality(model, kind, held_out, tests, self.sigma_mm)
            scores[kind] |= cost(model, kind, self._timed(method.unit_norm))._asdict()
        first = scores[method.kinds[0]]
        print(
            f"{method.label}, seed {seed}: {model.prototypes} prototypes, AUROC"
            f" {first['auroc']:.4f}, AUPR {first['aupr']:.4f}, fitted in {seconds:.0f} s",
            flush=True,
        )
        done = {"prototypes": model.prototypes, "fit_seconds": seconds, "scores": scores}
        return done | {"environment": environment()}

    def _timed(self, unit_norm: bool) -> list[tuple[Tensor, Tensor]]:
        """The middle slices of the first test scans, and the places of their patches."""
        scans = zip(range(_TIMED), self.dataset.tests(unit_norm=unit_norm), strict=False)
        middle = ((scan, len(scan.embeddings) // 2) for _, scan in scans)
        return [(scan.embeddings[i], scan.places[i]) for scan, i in middle]
