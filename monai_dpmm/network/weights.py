"""A trained model, and its backbone, from its file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from monai_dpmm.errors import InputError, MissingFileError
from monai_dpmm.files import json_object, load_tensors
from monai_dpmm.network.backbones.registry import Backbone, create_backbone, load_backbone

__all__ = ["bundled_backbone", "load_weights", "model_setting"]

_LOGGER = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)


def load_weights(
    network: Network, path: str | Path, settings: Mapping[str, Any] | None = None
) -> Network:
    """The network, with the state dict in a file; pickled code is never run.

    Args:
        network: an `AnomalyDetector`, or any module.
        path: file of `BestModelSaver`, models/model.pt.
        settings: what the model is used with, by name. Where its training's, in models/model.json,
            are others, a warning is logged: scores and thresholds may be wrong.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is broken, holds more than tensors, or does not fit the network.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingFileError(f"{file}: must exist, there is no such file (train a model first)")
    state = load_tensors(file)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: must fit the network, {_reason(error)}") from error
    trained = file.with_suffix(".json")
    if settings is not None and trained.is_file():
        _compare(json_object(trained), settings, trained)
    return network


def _compare(trained: Mapping[str, Any], used: Mapping[str, Any], file: Path) -> None:
    """Warn of settings that are not the training's."""
    now = json.loads(json.dumps(dict(used)))  # lists, as a file has them
    odd = [name for name in now if name in trained and trained[name] != now[name]]
    if odd:
        listed = ", ".join(f"{name} {trained[name]!r} and not {now[name]!r}" for name in odd)
        _LOGGER.warning("the model was trained with %s: lay %s over the config", listed, file)


def bundled_backbone(
    architecture: str, model: str | Path, blocks: Sequence[int] | None = None
) -> Backbone:
    """Backbone of a bundle that holds a trained model: no download, wherever it is made.

    Made from another directory than the bundle's, as by `monai.bundle.load`, it has no weights yet
    and raises an error until the model's state dict is loaded.

    Args:
        architecture: the model's, see `create_backbone`.
        model: file of the trained model, models/model.pt, with model.json beside it.
        blocks: see `load_backbone`.
    """
    file = Path(model).expanduser()
    if file.is_file():
        return load_backbone(file, blocks)
    return create_backbone(architecture, blocks)


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
