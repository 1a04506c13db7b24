"""The next scan is loaded while the one before is embedded, in a thread beside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from monai.data import DataLoader

__all__ = ["PrefetchingDataLoader", "prefetched"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What a function makes of each item, in order; that of the next one is made meanwhile.

    An error comes where its result would have come, so after the results before it.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prefetching") as thread:
        before: Future[Result] | None = None
        for item in items:
            after = thread.submit(function, item)
            if before is not None:
                yield before.result()
            before = after
        if before is not None:
            yield before.result()


class PrefetchingDataLoader(DataLoader):
    """MONAI's DataLoader, which loads the next batch while the one before is used.

    In a thread, so that there is one process, as with `num_workers=0`. (Of MONAI's
    `ThreadDataLoader` an error that a data set raises ends the thread, and with it the epoch, as if
    there were no more scans.)

    Args:
        dataset: whose items are loaded.
        **kwargs: of `monai.data.DataLoader`, but no `num_workers`.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # one iterator an epoch
        batches = super().__iter__()
        return prefetched(lambda _: next(batches), range(len(self)))
