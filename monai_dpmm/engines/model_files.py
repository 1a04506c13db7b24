"""The two files of a trained model, written together and tied by a digest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from monai_dpmm.files import file_digest, json_object, replacement, save_tensors
from monai_dpmm.network.weights import DIGEST

__all__ = ["save_model"]


def save_model(
    network: torch.nn.Module, path: Path, settings: Mapping[str, Any] | None = None
) -> None:
    """Write a network's state dict, and settings with the file's digest as JSON beside it.

    Both take the place of earlier ones together: where a run is killed between the two, the next
    that writes or reads the model completes it, and `load_weights` refuses a pair that is none.

    Args:
        network: what is saved.
        path: of the state dict, for example models/model.pt.
        settings: those that are there if None; without any, only the state dict is written.

    Raises:
        OSError: in one line, where the files cannot be written.
        ValueError: where the settings that are there are no JSON.
    """
    beside = path.with_suffix(".json")
    if settings is None and beside.is_file():
        settings = json_object(beside)
    if settings is None:
        save_tensors(network.state_dict(), path)
        return
    with replacement(path.parent, {}, (path.name, beside.name), marked=False) as partial:
        save_tensors(network.state_dict(), partial / path.name)
        tied = {**settings, DIGEST: file_digest(partial / path.name)}
        (partial / beside.name).write_text(json.dumps(tied, indent=4))
