"""Scans that cannot be used are skipped and listed when all others are done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from monai.data import Dataset, list_data_collate
from monai.engines import SupervisedEvaluator

from monai_dpmm.engines.distributed import interleaved, is_main_process
from monai_dpmm.errors import InputError, SkippedScansError, expected_error, one_line

__all__ = ["ScanDataset", "ScanEvaluator", "SkippedScan", "collate_scans"]


class SkippedScan(NamedTuple):
    """Why a scan is skipped, one line."""

    reason: str


class ScanDataset(Dataset):
    """MONAI's Dataset, but a scan that cannot be used is a `SkippedScan` instead of an error."""

    def __getitem__(self, index: Any) -> Any:
        """An item after the transform, or why there is none."""
        try:
            return super().__getitem__(index)
        except Exception as error:
            return _skipped(error)


def collate_scans(items: Sequence[Any]) -> Any:
    """MONAI's batch of the items, or the skipped scan among them; for batches of one scan."""
    skipped = [item for item in items if isinstance(item, SkippedScan)]
    return skipped[0] if skipped else list_data_collate(items)


class ScanEvaluator(SupervisedEvaluator):
    """MONAI's SupervisedEvaluator, which skips scans that cannot be used and lists them at the end.

    A scan is skipped where this package raises an error for it: while it is loaded (by a
    `ScanDataset` with `collate_scans`), scored, postprocessed or saved. Other errors stop the run,
    as they always do. The engine's output is then empty for that iteration.

    Args:
        **kwargs: of `monai.engines.SupervisedEvaluator`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skipped: list[str] = []
        self.scans = 0

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]  # as MONAI's
        """Run over all scans.

        Raises:
            SkippedScansError: after the last scan, a line for each that was skipped, if any was.
        """
        self.skipped, self.scans = [], 0
        super().run(global_epoch)
        skipped, scans = interleaved(self.skipped), sum(interleaved([self.scans]))
        if skipped and is_main_process():
            lines = "".join(f"\n  {reason}" for reason in skipped)
            raise SkippedScansError(f"{len(skipped)} of {scans} scans were skipped:{lines}")

    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        self.scans += 1
        try:
            if isinstance(batchdata, SkippedScan):
                raise InputError(batchdata.reason)
            return super()._iteration(engine, batchdata)
        except Exception as error:
            self.skipped.append(_skipped(error).reason)
            engine.state.output = []
            return []


def _skipped(error: Exception) -> SkippedScan:
    """Why a scan was skipped.

    Raises:
        Exception: the error itself, where it is none of those that a bad input causes.
    """
    expected = expected_error(error)
    if expected is None:
        raise error
    return SkippedScan(one_line(expected))
