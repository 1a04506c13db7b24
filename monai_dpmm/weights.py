"""A trained model from its file."""

from __future__ import annotations

from pathlib import Path
from pickle import PickleError
from typing import TypeVar

import torch
from torch import nn

__all__ = ["load_weights"]

Network = TypeVar("Network", bound=nn.Module)


def load_weights(network: Network, path: str | Path) -> Network:
    """The network, with the state dict in a file; pickled code is never run.

    Args:
        network: an `AnomalyDetector`, or any module.
        path: file of `BestModelSaver`, models/model.pt.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is broken, holds more than tensors, or does not fit the network.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: must exist, there is no such file (train a model first)")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, PickleError, LookupError, ValueError) as error:
        raise ValueError(f"{file}: must be a state dict of tensors, {_reason(error)}") from error
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: must fit the network, {_reason(error)}") from error
    return network


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"
