"""One bad scan does not stop the others: it is left out, and named when all are done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ignite.engine import Engine
from monai.data import Dataset, list_data_collate
from monai.engines import SupervisedEvaluator

from monai_dpmm.engines.distributed import interleaved, is_main_process
from monai_dpmm.errors import InputError, expected_error

__all__ = ["Refusal", "ScanDataset", "ScanEvaluator", "collate_scans"]


class Refusal(NamedTuple):
    """Why a scan was left out, one line."""

    reason: str


class ScanDataset(Dataset):
    """MONAI's Dataset, but a scan that the transform refuses is a `Refusal` instead of an error."""

    def __getitem__(self, index: Any) -> Any:
        """An item after the transform, or why there is none."""
        try:
            return super().__getitem__(index)
        except Exception as error:
            return _refusal(error)


def collate_scans(items: Sequence[Any]) -> Any:
    """MONAI's batch of the items, or the refusal among them; for batches of one scan."""
    refused = [item for item in items if isinstance(item, Refusal)]
    return refused[0] if refused else list_data_collate(items)


class ScanEvaluator(SupervisedEvaluator):
    """MONAI's SupervisedEvaluator, going on where a scan is refused, and naming these at the end.

    A scan is refused where this package raises an error for it: while it is loaded (by a
    `ScanDataset` with `collate_scans`), scored, postprocessed or saved. Other errors stop the run,
    as they always do. The engine's output is then empty for that iteration.

    Args:
        **kwargs: of `monai.engines.SupervisedEvaluator`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.refused: list[str] = []
        self.scans = 0

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Run over all scans.

        Raises:
            InputError: after the last scan, with a line for each that was refused, if any was.
        """
        self.refused, self.scans = [], 0
        super().run(*args, **kwargs)
        refused, scans = interleaved(self.refused), sum(interleaved([self.scans]))
        if refused and is_main_process():
            lines = "".join(f"\n  {reason}" for reason in refused)
            raise InputError(f"{len(refused)} of {scans} scans were left out:{lines}")

    def _iteration(self, engine: Engine, batchdata: Any) -> Any:
        self.scans += 1
        try:
            if isinstance(batchdata, Refusal):
                raise InputError(batchdata.reason)
            return super()._iteration(engine, batchdata)
        except Exception as error:
            self.refused.append(_refusal(error).reason)
            engine.state.output = []
            return []


def _refusal(error: Exception) -> Refusal:
    """What a user is told.

    Raises:
        Exception: the error itself, where it is none by which this package refuses an input.
    """
    expected = expected_error(error)
    if expected is None:
        raise error
    return Refusal(" ".join(str(expected).split()))
