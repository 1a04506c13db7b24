"""Training scans calibrated as if they had been held back: each by the model without it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ignite.engine import Engine, Events
from monai.utils import convert_to_tensor

from monai_dpmm.mixture.leave_one_out import exact_moments, without
from monai_dpmm.mixture.planes import mixture_of
from monai_dpmm.transforms.metatensors import DIRECTION, PLACE

if TYPE_CHECKING:
    from torch import Tensor

    from monai_dpmm.engines.embedding_store import StoredEmbeddings
    from monai_dpmm.mixture.em import Moments
    from monai_dpmm.network.detector import AnomalyDetector

__all__ = ["ENOUGH_SCANS", "LeaveOneOut", "calibration_scans"]

ENOUGH_SCANS = 19  # with fewer, no p-value can be 0.05
_KEPT = 2**29  # bytes of sums that are kept: of some twenty scans at 500 components
_LOGGER = logging.getLogger(__name__)


def calibration_scans(
    held_back: Sequence[Mapping[str, Any]],
    trained: Sequence[Mapping[str, Any]],
    leave_one_out: bool | None = None,
) -> list[Mapping[str, Any]]:
    """Scans that a calibration takes: those held back, then the training scans, if they are taken.

    Training scans are taken where fewer than 19 are held back, since no p-value can be 0.05 then,
    and never where all are of one patient, since each is scored by a model of the others.

    Args:
        held_back: items of the validation scans.
        trained: items of the training scans, "patient" the same for those of one.
        leave_one_out: whether training scans are taken; the rule above if None.
    """
    few = len(held_back) < ENOUGH_SCANS
    wanted = few if leave_one_out is None else leave_one_out
    return [*held_back, *(trained if wanted and len(set(_patients(trained))) > 1 else ())]


class LeaveOneOut:
    """Exchange a detector's model for the one without a training scan, while that scan is scored.

    Attach it to the evaluator of a calibration before other handlers: batches are of one scan, its
    number at "scan". The moments of all training patches under the fitted parameters are summed
    once; for a training scan those of its patient are taken off, and one M-step gives the model of
    the others, see `monai_dpmm.mixture.leave_one_out`; the counts of places likewise. What the
    validation scans decided stays: whether place is used, β, λ, and the scale of each direction.
    When the evaluator has run, the detector is as it was.

    Args:
        detector: that scores the scans.
        embeddings: of the training scans, as they were trained on.
        first: number of the first training scan; those before it are scored by the fitted model.
    """

    def __init__(self, detector: AnomalyDetector, embeddings: StoredEmbeddings, first: int) -> None:
        self.detector = detector
        self.embeddings = embeddings
        self.first = first
        self._patients = _patients(embeddings.data)
        self._forget()

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._exchange)
        engine.add_event_handler(Events.COMPLETED, lambda _: self._finish())
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _forget(self) -> None:
        self._fitted: list[dict[str, Tensor]] = []
        self._totals: dict[int, _Sums] = {}
        self._own: dict[Any, dict[int, _Sums]] = {}  # of each patient, as far as they fit
        self._without: Any = None  # the patient that the detector's model is without

    def _exchange(self, engine: Any) -> None:
        """Give the detector the model without the patient of the batch's scan."""
        (number,) = engine.state.batch["scan"].tolist()
        if number < self.first:
            return
        if not self._fitted:
            states = (mixture.state_dict() for mixture in self.detector.mixtures)
            self._fitted = [{name: x.clone() for name, x in state.items()} for state in states]
            self._take_totals()
        patient = self._patients[number - self.first]
        if patient == self._without:
            return
        self._load_fitted()
        known = self._own.pop(patient, None)
        for direction, own in (known or self._sums(self._scans(patient))).items():
            mixture, total = mixture_of(self.detector.mixture, direction), self._totals[direction]
            if bool(own.moments.count < total.moments.count):
                rest = without(mixture, total.moments, own.moments, own.place_counts)
                mixture.load_state_dict(rest.state_dict())
            else:
                _LOGGER.warning(
                    f"All training slices of direction {direction} are of one patient, who is"
                    " scored by the model with them"
                )
        self._without = patient

    def _scans(self, patient: Any) -> list[int]:
        return [index for index, one in enumerate(self._patients) if one == patient]

    def _take_totals(self) -> None:
        """Sums of all scans; those of each patient are kept where they fit, or made again later."""
        size = 0
        for patient in dict.fromkeys(self._patients):
            own = self._sums(self._scans(patient))
            size += sum(sums.bytes for sums in own.values())
            if size <= _KEPT:
                self._own[patient] = own
            for direction, sums in own.items():
                before = self._totals.get(direction)
                self._totals[direction] = sums if before is None else before + sums

    def _sums(self, scans: Sequence[int]) -> dict[int, _Sums]:
        """Moments and counts of all patches of training scans, by direction."""
        sums: dict[int, _Sums] = {}
        for index in scans:
            for direction, x, u in self._patches(index):
                mixture = mixture_of(self.detector.mixture, direction)
                counts = None if mixture.places is None else mixture.place_counts(x, u)
                own = _Sums(exact_moments(mixture, x), counts)
                sums[direction] = sums[direction] + own if direction in sums else own
        return sums

    def _patches(self, index: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Patches (N, D) of a training scan in each direction, and their places (N, 3)."""
        item = self.embeddings[index]
        device = self.detector.thresholds.device
        for one in item if isinstance(item, list) else [item]:
            grid, direction = convert_to_tensor(one["image"], track_meta=False), _direction(one)
            there = grid.any(dim=-1)
            if bool(there.any()) and mixture_of(self.detector.mixture, direction).fitted:
                # transforms of one's own may give no places: all patches are in the middle then
                place = one.get(PLACE, grid.new_full((*grid.shape[:-1], 3), 0.5))
                yield direction, grid[there].to(device), place[there].to(device)

    def _load_fitted(self) -> None:
        for mixture, state in zip(self.detector.mixtures, self._fitted, strict=False):
            mixture.load_state_dict(state)

    def _finish(self) -> None:
        """Give the fitted model back."""
        self._load_fitted()
        self._forget()

    def _fail(self, engine: Engine, error: Exception) -> None:
        self._finish()
        raise error


class _Sums(NamedTuple):
    """Moments of patches, and their counts by place (K, G) where there are places; they add up."""

    moments: Moments
    place_counts: Tensor | None

    @property
    def bytes(self) -> int:
        """What they take in memory."""
        tensors = [*self.moments, *([] if self.place_counts is None else [self.place_counts])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def __add__(self, other: object) -> _Sums:
        if not isinstance(other, _Sums):
            return NotImplemented
        counts = self.place_counts
        if counts is not None and other.place_counts is not None:
            counts = counts + other.place_counts
        return _Sums(self.moments + other.moments, counts)


def _direction(item: Mapping[str, Any]) -> int:
    return int(item.get(DIRECTION, 0))


def _patients(items: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Whose each scan is; one of nobody known is of a patient of its own."""
    return [item.get("patient", number) for number, item in enumerate(items)]
