"""Freed memory kept by this process, instead of handed back to the system after each layer."""

from __future__ import annotations

import ctypes
import os
from functools import cache

__all__ = ["keep_freed_memory"]

# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30  # bytes
_CHOICES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")


@cache
def keep_freed_memory() -> bool:
    """Have glibc keep up to 1 GiB of freed memory for what comes next; whether it does so.

    By default it maps every block above 32 MiB anew and unmaps it after use, and the kernel fills
    each page with zeros each time: tens of thousands of page faults an image, and up to half of the
    time of a small network on the CPU (`benchmarks/allocator.py`). What loads a backbone calls
    this, so that training, inference, `monai.bundle run` and MONAI Label all have it. Blocks of
    1 GiB and more are still given back at once.

    Nothing changes where the C library is another one, or where the environment has settings of
    glibc's allocator (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_MAX_`, or
    `GLIBC_TUNABLES` of `glibc.malloc`): these hold.
    """
    chosen = any(name in os.environ for name in _CHOICES)
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or os.name != "posix":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(option, _KEPT) == 1 for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
