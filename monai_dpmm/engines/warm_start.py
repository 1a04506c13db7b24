"""Training that goes on from a saved model, on new data, as an Ignite handler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import CommonKeys as Keys

from monai_dpmm.engines.distributed import gathered
from monai_dpmm.errors import MissingFileError
from monai_dpmm.mixture.adaptation import revive
from monai_dpmm.mixture.planes import mixture_of
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.network.weights import load_weights
from monai_dpmm.transforms.metatensors import DIRECTION

__all__ = ["WarmStart"]


class WarmStart:
    """Load a saved model before the first epoch, in the place of a start from the first batch.

    What further training does to it: see `monai_dpmm.mixture.adaptation`. A resumed run goes
    on from
    its own checkpoint and is not started again.

    Args:
        path: file of `BestModelSaver`, of a detector with the same backbone, components and
            covariance; None for a start from the first batch.
        detector: what is loaded, backbone included, so that a model of another one is an error.
        revive: start components that have vanished again, at patches of the first batch, see
            `monai_dpmm.revive`.
    """

    def __init__(
        self, path: str | Path | None, detector: AnomalyDetector, *, revive: bool = True
    ) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self.detector = detector
        self.revive = revive
        self._revived: set[int] = set()  # directions

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before the handler that resumes."""
        if self.path is None:
            return
        self._require(self.path)
        engine.add_event_handler(Events.STARTED, self._load, self.path)
        if self.revive:
            engine.add_event_handler(Events.ITERATION_STARTED, self._revive)

    @staticmethod
    def _require(path: Path) -> None:
        if not path.is_file():
            raise MissingFileError(f"{path}: must exist to start from, there is no such file")

    def _load(self, engine: Engine, path: Path) -> None:
        self._require(path)
        load_weights(self.detector, path)
        engine.logger.info(f"Started from {path}")

    def _revive(self, engine: Any) -> None:
        direction = engine.state.batch.get(DIRECTION, 0)
        if engine.state.epoch > 1 or direction in self._revived:
            return
        self._revived.add(direction)
        mixture = mixture_of(self.detector.mixture, direction)
        if mixture.fitted:
            patches = engine.state.batch[Keys.IMAGE].flatten(0, -2).to(mixture.offsets.device)
            revived = revive(mixture, gathered(patches))
            engine.logger.info(f"Revived {revived} vanished components at new patches")
