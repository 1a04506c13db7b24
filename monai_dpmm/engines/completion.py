"""What a training adds to its best model: the weights of places, the scale of each direction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events

from monai_dpmm.engines.distributed import broadcast_buffers, gathered, is_main_process
from monai_dpmm.engines.engines import patches_of
from monai_dpmm.engines.model_files import save_model
from monai_dpmm.engines.slices import SliceDataLoader
from monai_dpmm.errors import InputError
from monai_dpmm.mixture.place_choice import calibrate_places
from monai_dpmm.mixture.planes import mixture_of
from monai_dpmm.mixture.scores import SCORES
from monai_dpmm.network.weights import load_weights
from monai_dpmm.transforms.metatensors import DIRECTION, PLACE

if TYPE_CHECKING:
    from torch import Tensor

    from monai_dpmm.mixture.dpmm import DPMM
    from monai_dpmm.network.detector import AnomalyDetector

__all__ = ["ModelCompletion"]

_ENOUGH = 20_000  # patches that decide about places: the gain is sure to a hundredth of a nat


class ModelCompletion:
    """Complete the best model of a training, when its last epoch is over, and save it again.

    Of a mixture with a `place_grid`, the soft counts of all training patches are taken under the
    final parameters; β and λ follow from the validation patches (see `calibrate_places`), and so
    does whether place is used at all: where these patches are likelier with it, and not all in one
    place, as those of a data set without places. Then the scores of
    each of several directions get the mean and standard deviation that standardise them, likewise
    of the validation patches.

    Args:
        path: file of `BestModelSaver`, which is read and replaced.
        detector: whose state it is; it holds the completed model afterwards.
        train_data_loader: of the training, see `SliceDataLoader`.
        val_data_loader: of the validation.
        use_place: whether place is used; the validation patches decide if None.
    """

    def __init__(
        self,
        path: str | Path,
        detector: AnomalyDetector,
        train_data_loader: Iterable[dict[str, Any]],
        val_data_loader: SliceDataLoader,
        *,
        use_place: bool | None = None,
    ) -> None:
        self.path = Path(path)
        self.detector = detector
        self.train_data_loader = train_data_loader
        self.val_data_loader = val_data_loader
        self.use_place = use_place

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Complete the model; a single direction without places is complete already."""
        idist.barrier()  # the main process may still be writing the best model
        if not self.path.is_file():
            raise InputError(f"{self.path}: must hold the best model of the training, it is gone")
        load_weights(self.detector, self.path)
        placed = [one for one in self.detector.mixtures if one.fitted and one.places is not None]
        if not placed and len(self.detector.mixtures) == 1:
            return
        if placed:
            self._count(engine)
        for number, mixture in enumerate(self.detector.mixtures):
            if not mixture.fitted:
                continue
            count = sum(len(patches) for patches, _ in _Healthy(self, engine, number))
            if count == 0:
                engine.logger.warning(
                    f"No validation scan has slices of direction {number}: maps do without it"
                )
                mixture.fitted = False
                mixture.initialized.fill_(False)
                continue
            if mixture.places is not None:
                self._decide(engine, number, mixture, max(1, count // _ENOUGH))
            if len(self.detector.mixtures) > 1:
                self._standardize(engine, number)
        broadcast_buffers(self.detector)
        if is_main_process():
            save_model(self.detector, self.path)
        idist.barrier()  # whoever reads it next reads the completed one

    def _count(self, engine: Any) -> None:
        """Soft counts of the training patches, of all processes."""
        for mixture in self.detector.mixtures:
            if mixture.places is not None:
                mixture.places.counts.zero_()
        sampler = getattr(self.train_data_loader, "sampler", None)
        if sampler is not None and hasattr(
            sampler, "set_epoch"
        ):  # the sum's order: the last epoch's, resumed or not
            sampler.set_epoch(engine.state.epoch)
        for batch in self.train_data_loader:
            mixture = mixture_of(self.detector.mixture, batch.get(DIRECTION, 0))
            patches, places = patches_of(batch, engine), _places_of(batch, engine)
            if mixture.places is not None and len(patches):
                mixture.places.counts += mixture.place_counts(patches, places)
        for mixture in self.detector.mixtures:
            if mixture.places is not None:
                total = cast("Tensor", idist.all_reduce(mixture.places.counts))
                mixture.places.counts.copy_(total)

    def _decide(self, engine: Any, number: int, mixture: DPMM, step: int) -> None:
        """Set β, λ and whether place is used, of every n-th patch."""
        gain = calibrate_places(mixture, _Healthy(self, engine, number, step))
        possible = SCORES[self.detector.score].place is not None
        ends = [torch.stack(u.aminmax(dim=0)) for _, u in _Healthy(self, engine, number) if len(u)]
        possible &= bool((torch.cat(ends).amax(0) > torch.cat(ends).amin(0)).any())
        used = possible and (gain > 0 if self.use_place is None else self.use_place)
        mixture.places.used.fill_(used)  # type: ignore[union-attr]
        if is_main_process():
            engine.logger.info(
                f"Place makes healthy validation patches of direction {number} {gain:+.2f} nats"
                f" likelier: it is {'used' if used else 'not used'}"
            )

    def _standardize(self, engine: Any, number: int) -> None:
        """Mean and standard deviation of the validation patches' scores in a direction."""
        moments = self.detector.score_moments
        moments[number] = moments.new_tensor([0.0, 1.0])
        total = torch.zeros(3, dtype=torch.float64)
        for patches, places in _Healthy(self, engine, number):
            scores = self.detector.patch_scores(patches, number, places).double()
            parts = (scores.new_tensor(float(len(scores))), scores.sum(), scores.square().sum())
            total += torch.stack(parts).cpu()
        mean = float(total[1] / total[0])
        deviation = math.sqrt(max(float(total[2] / total[0]) - mean * mean, 0.0))
        moments[number] = moments.new_tensor([mean, max(deviation, 1e-12)])


class _Healthy:
    """Validation patches of one direction with their places, of all processes, to be read often."""

    def __init__(self, of: ModelCompletion, engine: Any, direction: int, step: int = 1) -> None:
        self.loader, self.engine, self.step = of.val_data_loader, engine, step
        self.own = len(of.detector.mixtures) > 1
        self.direction = direction

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader.of_direction(self.direction) if self.own else self.loader:
            patches = gathered(patches_of(batch, self.engine))
            places = gathered(_places_of(batch, self.engine))
            yield patches[:: self.step], places[:: self.step]


def _places_of(batch: dict[str, Any], engine: Any) -> Tensor:
    """Places (N, 3) of a batch; in the middle of the body where none are known."""
    if PLACE in batch:
        return batch[PLACE].to(engine.state.device)
    patches = patches_of(batch, engine)
    return patches.new_full((len(patches), 3), 0.5)
