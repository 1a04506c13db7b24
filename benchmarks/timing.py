"""Time and memory of calls: timed in turn, so that what slows one slows the others as well."""

from __future__ import annotations

import ctypes
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from monai_dpmm.errors import UsageError

STATM = Path("/proc/self/statm")
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_CALLS = {"cpu": 1, "cuda": 10}  # timed at once: kernels of one call are queued during another

__all__ = [
    *("STATM", "Clock", "available_device", "in_turn", "median_ratio", "peak", "resident"),
    *("return_freed_blocks", "seconds", "wait"),
]


def available_device(name: str | None = None) -> torch.device:
    """The device of that name; None is CUDA where there is one, else the CPU.

    Raises:
        UsageError: where CUDA is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UsageError("device must be there, got cuda, and PyTorch finds no CUDA device")
    return torch.device(name or ("cuda" if there else "cpu"))


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call; on CUDA the mean of several that follow each other."""
    calls = _CALLS[device.type]
    wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    wait(device)
    return (time.perf_counter() - start) / calls


def in_turn(
    runs: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each call, a list over the repeats, all timed in turn after one to warm up."""
    for run in runs.values():
        run()
    turns = [{name: seconds(run, device) for name, run in runs.items()} for _ in range(repeats)]
    return {name: [turn[name] for turn in turns] for name in runs}


def median_ratio(times: Mapping[str, list[float]], name: str, to: str) -> float:
    """Median over the turns of the ratio of two times."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


def resident() -> int:
    """Bytes of this process in memory, where /proc tells."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def return_freed_blocks() -> None:
    """Have freed blocks of 64 KiB and more given back to the system at once, from here on.

    Otherwise what the C library keeps of them varies from process to process, by more than a step
    needs. Libraries other than glibc keep their ways.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 65536)


def peak(run: Callable[[], object], measured: Callable[[], int] = resident) -> float:
    """Highest memory during a call above the memory before it, MB, sampled every millisecond.

    Freed memory is given back to the system first, where its C library can, so that the call
    cannot hide in it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    before, highest, done = measured(), 0, threading.Event()

    def sample() -> None:
        nonlocal highest
        while not done.wait(1e-3):
            highest = max(highest, measured())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        run()
    finally:
        done.set()
        sampler.join()
    return (max(highest, measured()) - before) / 1e6


class Clock:
    """Seconds of named stages; a stage within another is taken out of it.

    Args:
        device: whose work is waited for at both ends of a stage.
        memory: called at the end of each stage, such as the highest memory so far.

    Attributes:
        seconds: by stage.
        memory: what was found at the end of the latest call of a stage, by stage.
    """

    def __init__(self, device: torch.device, memory: Callable[[], int] | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, int] = {}
        self._device = device
        self._measured = memory
        self._inner = [0.0]

    def __call__(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose calls are counted under the name."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            wait(self._device)
            self._inner.append(0.0)
            start = time.perf_counter()
            result = function(*args, **kwargs)
            wait(self._device)
            elapsed = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed - self._inner.pop()
            self._inner[-1] += elapsed
            if self._measured is not None:
                self.memory[name] = self._measured()
            return result

        return timed
