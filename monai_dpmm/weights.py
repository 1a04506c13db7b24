"""A trained model, and its backbone, from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from monai_dpmm.backbones import Backbone, create_backbone, load_backbone
from monai_dpmm.json_files import json_object
from monai_dpmm.tensor_files import load_tensors

__all__ = ["bundled_backbone", "load_weights", "model_setting"]

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
    state = load_tensors(file)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: must fit the network, {_reason(error)}") from error
    return network


def bundled_backbone(architecture: str, model: str | Path) -> Backbone:
    """Backbone of a bundle that holds a trained model: no download, wherever it is made.

    Made from another directory than the bundle's, as by `monai.bundle.load`, it has no weights yet
    and refuses to run until the model's state dict is loaded.

    Args:
        architecture: the model's, see `create_backbone`.
        model: file of the trained model, models/model.pt, with model.json beside it.
    """
    file = Path(model).expanduser()
    return load_backbone(file) if file.is_file() else create_backbone(architecture)


def model_setting(model: str | Path, name: str) -> Any:
    """What the settings beside a trained model say now, None where they do not name it.

    Args:
        model: file of the trained model, models/model.pt, with model.json beside it.
        name: of the setting.

    Raises:
        FileNotFoundError: where there are no settings.
        ValueError: where they are broken.
    """
    return json_object(Path(model).expanduser().with_suffix(".json")).get(name)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"
