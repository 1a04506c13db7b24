"""Full float32 where half of it would cost hundreds of nats: no autocast, no TF32, no bfloat16.

Log-densities are differences of large terms. With products of ten mantissa bits (TF32) in the place
of float32's 23 they are wrong by 0.01 nats at a variance of 1e-2 and by hundreds at 1e-6, with
seven bits (bfloat16) by ten times that, see benchmarks/precision.py. The backbone may run in any
precision; the mixture does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.backends import mkldnn

__all__ = ["exact", "full_float32", "is_traced"]

_Method = TypeVar("_Method", bound=Callable[..., Any])


def is_traced() -> bool:
    """Whether a graph is being recorded, which no value and no number of patches may enter."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


@contextmanager
def full_float32() -> Iterator[None]:
    """Context in which products of float32 matrices are float32's, whatever the program allows."""
    backends: list[Any] = [torch.backends.cuda.matmul, mkldnn.matmul]  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def exact(method: _Method) -> _Method:
    """A module's method without gradients and in full float32."""

    @wraps(method)
    def in_full(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        device = next(self.buffers()).device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            if is_traced():
                return method(self, *args, **kwargs)
            with full_float32():
                return method(self, *args, **kwargs)

    return cast(_Method, in_full)
