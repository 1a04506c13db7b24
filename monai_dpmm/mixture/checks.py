"""Checks of a mixture's arguments: argument, rule, value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from monai_dpmm.errors import InputError, InputTypeError
from monai_dpmm.mixture.precision import is_traced

__all__ = [
    *("check_at_least_one", "check_choice", "check_patch", "check_positive"),
    *("check_state", "plain_tensor"),
]


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_at_least_one(name: str, value: int) -> None:
    """Refuse a number below 1."""
    if value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")


def check_positive(name: str, value: float) -> None:
    """Refuse 0, negative, infinite values and NaN."""
    if not value > 0 or math.isinf(value):
        raise InputError(f"{name} must be positive and finite, got {value}")


def check_patch(x: Tensor) -> None:
    """Refuse no patches (0, D)."""
    if len(x) == 0:
        raise InputError(f"x must hold at least one patch, got shape {tuple(x.shape)}")


def plain_tensor(name: str, x: Tensor) -> Tensor:
    """The tensor as PyTorch's own class, of a subclass such as MONAI's MetaTensor, too.

    Raises:
        InputTypeError: for what is no tensor, such as a NumPy array.
    """
    if not isinstance(x, Tensor):
        raise InputTypeError(
            f"{name} must be a tensor, got {type(x).__name__} (torch.as_tensor makes one)"
        )
    return x if is_traced() or type(x) is Tensor else x.as_subclass(Tensor)


def check_state(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Refuse a state dict of another truncation or dimension, before PyTorch lists every tensor."""
    saved, own = state.get(f"{prefix}offsets"), cast(Tensor, module.offsets)
    if saved is not None and saved.shape != own.shape:
        if saved.ndim != own.ndim:
            raise InputError(
                f"offsets must have shape {tuple(own.shape)}, got {tuple(saved.shape)}"
            )
        raise InputError(
            f"checkpoint has components={saved.shape[0]} and features={saved.shape[1]}, this DPMM"
            f" has components={own.shape[0]} and features={own.shape[1]}"
        )
