"""The one door through which files of tensors come in: no pickled code is ever run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

__all__ = ["load_tensors"]


def load_tensors(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """What `torch.save` wrote: tensors, numbers and text in dictionaries and lists.

    Raises:
        OSError: where the file cannot be opened.
        ValueError: where it is broken, or holds anything else, such as code.
    """
    with Path(path).open("rb") as file:
        try:
            return torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # a broken file can make the unpickler raise anything
            kind = type(error).__name__
            raise ValueError(f"{path} is broken or holds more than tensors ({kind})") from error
