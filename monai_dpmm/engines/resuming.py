"""Ignite handlers by which an interrupted training goes on: its checkpoint and its history."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine, Events

from monai_dpmm.engines.distributed import is_main_process
from monai_dpmm.errors import InputError, MissingFileError, cause, one_line
from monai_dpmm.files import (
    atomic_write,
    json_number,
    json_value,
    load_tensors,
    make_folder,
    save_tensors,
)
from monai_dpmm.network.weights import check_finite

if TYPE_CHECKING:
    from monai.engines import Evaluator

    from monai_dpmm.engines.embedding_store import StoredEmbeddings
    from monai_dpmm.mixture.dpmm import DPMM
    from monai_dpmm.mixture.planes import PlaneMixtures

__all__ = ["History", "TrainingCheckpoint"]


class TrainingCheckpoint:
    """Save all that an interrupted training needs after each epoch, and resume from it.

    A run that resumes gives what the uninterrupted run would have given, bit for bit on the CPU:
    the mixture's state, the trainer's epoch and the validator's best epoch are all that there is,
    since the order of the batches follows from the epoch (DistributedSampler) and EM draws nothing.

    Args:
        path: the file, replaced atomically at the end of each epoch.
        mixture: what is trained.
        validator: whose best metric is kept.
        resume: start from the file, which must exist; otherwise from scratch.
        settings: plain values of the model, which must be the same when it is resumed.
        training: likewise, of how it is trained.
        datasets: embeddings that it is trained and validated on, which must be the same as well.
    """

    def __init__(
        self,
        path: str | Path,
        mixture: DPMM | PlaneMixtures,
        validator: Evaluator,
        *,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        datasets: Sequence[StoredEmbeddings] = (),
    ) -> None:
        self.path = Path(path)
        values = {**(settings or {}), **(training or {})}
        self.settings = json.loads(json.dumps(values))  # lists, as a file has them
        self.datasets = datasets
        self._state: dict[str, Any] = {}
        self.mixture = mixture
        self.validator = validator
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, as its last handler: validation comes before saving."""
        if self.resume:
            self._read(engine)
            engine.add_event_handler(Events.STARTED, self._load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the state at the end of an epoch; of several processes the main one does."""
        if not is_main_process():
            return
        state = {
            "mixture": self.mixture.state_dict(),
            "trainer": dict(engine.state_dict()),
            "validator": {key: getattr(self.validator.state, key) for key in _BEST},
            "settings": self.settings,
            "data": self._data(),
        }
        save_tensors(state, self.path)

    def _read(self, engine: Engine) -> None:
        """Read the checkpoint, and refuse it before any work is done."""
        if not self.path.is_file():
            raise MissingFileError(f"{self.path}: must exist to resume from, there is no such file")
        state = load_tensors(self.path)
        with self._naming():
            if changed := _changed(state["settings"], self.settings):
                raise InputError(f"{self.path}: must be resumed with its own settings, {changed}")
            trainer, epochs = state["trainer"], engine.state.max_epochs
            done = trainer["iteration"] // trainer["epoch_length"]
            if epochs is not None and done > epochs:
                raise InputError(
                    f"{self.path}: max_epochs must be at least {done}, the epochs that are done,"
                    f" got {epochs}"
                )
            check_finite(state["mixture"], self.path)
            copy.deepcopy(self.mixture).load_state_dict(state["mixture"])
            for key in _BEST:
                float(state["validator"][key])
        self._state = state

    def _load(self, engine: Engine) -> None:
        if not self._state:
            self._read(engine)
        state, self._state = self._state, {}
        if state.get("data", self._data()) != self._data():
            raise InputError(
                f"{self.path}: must be resumed with its own data: the scans, their split into"
                " training and validation, the backbone's weights or the version of monai_dpmm"
                " were others"
            )
        epochs = engine.state.max_epochs
        with self._naming():
            self.mixture.load_state_dict(state["mixture"])
            engine.load_state_dict({**state["trainer"], "max_epochs": epochs})
            for key in _BEST:
                setattr(self.validator.state, key, state["validator"][key])
        engine.logger.info(f"Resumed after epoch {engine.state.epoch}: {self.path}")

    def _data(self) -> str | None:
        """Digest of the training's embeddings, which are named after all that they follow from."""
        if not self.datasets:
            return None
        names = [[data.path(i).name for i in range(len(data))] for data in self.datasets]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """What a file that is none of a training raises, in one line that names it."""
        try:
            yield
        except InputError as error:
            if str(self.path) in str(error):
                raise
            raise InputError(f"{self.path}: {one_line(error)}") from error
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.path}: must be a training's checkpoint, {cause(error)[:300]}"
            ) from error


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, in words; empty where none does.

    One that the training of an earlier version did not keep is taken to be the same.
    """
    names = [name for name in before if name in now and before[name] != now[name]]
    return ", ".join(f"{n} was {before[n]!r} and is {now[n]!r}" for n in names)


_BEST = ("best_metric", "best_metric_epoch")


class History:
    """Metrics of every epoch, trainer's and validator's together, for the training curves.

    Args:
        path: JSON file: a list of {"epoch": ..., metric: value, ...}, rewritten after each epoch; a
            resumed run continues the list.
        validator: whose metrics are added to the trainer's.
        resume: the list must be whole, which is looked at before any work is done.
    """

    def __init__(self, path: str | Path, validator: Evaluator, *, resume: bool = False) -> None:
        self.path = Path(path)
        self.resume = resume
        self.validator = validator
        self.records: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the validation handler."""
        if self.resume:
            self._earlier()
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _earlier(self) -> list[dict[str, Any]]:
        """The records of the file, where there is one.

        Raises:
            InputError: where it holds anything else.
        """
        if not self.path.is_file():
            return []
        try:
            records = [{k: json_number(v) for k, v in r.items()} for r in json_value(self.path)]
            for record in records:
                int(record["epoch"])  # type: ignore[arg-type]
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
            raise InputError(
                f"{self.path}: must be a training's history, {cause(error)}"
            ) from error
        return records

    def __call__(self, engine: Engine) -> None:
        """Add the epoch's record and write the file; of several processes the main one does."""
        if not is_main_process():
            return
        epoch = engine.state.epoch
        if epoch > 1 and not self.records:
            self.records = [record for record in self._earlier() if record["epoch"] < epoch]
        metrics = {**engine.state.metrics, **self.validator.state.metrics}
        self.records.append({"epoch": epoch, **metrics})
        make_folder(self.path.parent)
        with atomic_write(self.path) as partial:
            partial.write_text(json.dumps(self.records, indent=1))
