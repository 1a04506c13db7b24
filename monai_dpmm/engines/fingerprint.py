"""What an embedding follows from, as one digest: bytes of the files, steps, weights."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monai_dpmm import __version__

__all__ = ["fingerprint", "scan_content"]

_ANYWHERE = {"device", "batch_size"}  # where, and how many at once, not what


def fingerprint(*parts: Any) -> str:
    """Digest of what the parts are made of, the same in every process: 64 hexadecimal digits.

    Plain values count as they are, tensors and arrays by their bytes, modules by their structure
    and state dict, functions by their code, any other object by its class and attributes. What
    only says where or in which portions a transform works is left out, and this package's version
    is part of it.
    """
    text = json.dumps([__version__, _described(parts, ())], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def scan_content(item: Any, digest: Callable[[Path], str]) -> Any:
    """An item of a data set with the digest of its bytes in the place of each scan's path."""
    if isinstance(item, Mapping):
        named = {"patient": item["patient"]} if "patient" in item else {}  # a name, no path
        files = {str(key): scan_content(item[key], digest) for key in item if key not in named}
        return files | named
    if isinstance(item, str | Path) and (path := Path(item).expanduser()).exists():
        return digest(path)
    return item


def _described(value: Any, above: tuple[int, ...]) -> Any:
    """What JSON holds of a value; `above` are the objects it is in, lest one holds itself."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in above:
        return above.index(id(value))
    above = (*above, id(value))
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().as_subclass(Tensor).reshape(-1)
        shape = [str(value.dtype), list(value.shape)]
        return [*shape, _described(flat.view(torch.uint8).numpy(), above)]
    if isinstance(value, nn.Module):
        own = {k: v for k, v in vars(value).items() if isinstance(v, int | float | str | tuple)}
        own.pop("training", None)
        state = {name: _described(part, above) for name, part in value.state_dict().items()}
        return [repr(value), _described(own, above), state]
    if isinstance(value, Mapping):
        return {str(key): _described(part, above) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_described(part, above) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return _object(value, above)


def _object(value: Any, above: tuple[int, ...]) -> Any:
    """A class or function by name and code, an object by its class and attributes."""
    named = value if hasattr(value, "__qualname__") else type(value)
    name = f"{named.__module__}.{named.__qualname__}"
    if code := getattr(value, "__code__", None):
        plain = [c for c in code.co_consts if isinstance(c, int | float | str)]
        return [name, code.co_code.hex(), list(code.co_names), plain]
    if named is value:
        return name
    if hasattr(value, "__dict__"):
        # what a thread has of its own is no part of it, as MONAI's note that a transform is traced
        kept = {k: v for k, v in vars(value).items() if not isinstance(v, threading.local)}
        parts = {k: part for k, part in kept.items() if k not in _ANYWHERE}
        return [name, _described(parts, above)]
    text = repr(value)
    return [name, "" if " at 0x" in text else text]
