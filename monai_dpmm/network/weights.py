"""A trained model, and its backbone, from its file."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from monai_dpmm.errors import InputError, MissingFileError
from monai_dpmm.files import file_digest, json_object, load_tensors, sweep
from monai_dpmm.network.backbones.registry import (
    Backbone,
    Precision,
    create_backbone,
    load_backbone,
)

__all__ = [
    *("DIGEST", "bundle_folder", "bundled_backbone", "check_finite", "load_weights"),
    *("model_setting", "trained_state"),
]

DIGEST = "model_digest"  # among a model's settings, SHA-256 of its file of tensors

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
        ValueError: where it is broken, holds more than tensors or what is not finite, does not fit
            the network, or is not the one that the settings beside it were written with.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingFileError(f"{file}: must exist, there is no such file (train a model first)")
    sweep(file.parent, {})  # a run that was killed may have left a model half replaced
    state, known = trained_state(file)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{file}: must fit the network, {_reason(error)}") from error
    if settings is not None:
        _compare(known, settings, file.with_suffix(".json"))
    return network


def trained_state(file: Path) -> tuple[Any, dict[str, Any]]:
    """State dict of a trained model, and the settings beside it, none where there is no such file.

    Raises:
        OSError: where it cannot be opened.
        ValueError: where it is broken, holds more than tensors or what is not finite, or is not the
            one that the settings beside it were written with.
    """
    trained = file.with_suffix(".json")
    known = _settings(trained) if trained.is_file() else {}
    if known.get(DIGEST) not in (None, file_digest(file)):
        raise InputError(
            f"{file}: must be the model that {trained.name} was written with, its {DIGEST} is"
            " another: one of the two is damaged, cut off or of another training; copy both again,"
            " or train again"
        )
    state = load_tensors(file)
    check_finite(state, file)
    return state, known


def check_finite(state: Any, file: Path) -> None:
    """Refuse a state dict with NaN, or infinity in anything but weights, of whatever network.

    Log-weights are -inf of components that have vanished, thresholds NaN before calibration.

    Raises:
        InputError: naming file and tensor.
    """
    if not isinstance(state, Mapping):
        raise InputError(
            f"{file}: must fit the network, which has tensors by name, got {type(state).__name__}"
        )
    for name, value in state.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        last = str(name).rpartition(".")[2]
        if last == "thresholds" and bool(value.isnan().all()):
            continue
        low, high = value.aminmax() if value.numel() else (value.new_zeros(()),) * 2
        if last == "log_weights":
            low = low.clamp_min(-1.0)  # which keeps NaN
        if not bool(torch.isfinite(low)) or not bool(torch.isfinite(high)):
            raise InputError(f"{file}: {name} must be finite, got {low:g} to {high:g}")


def _settings(file: Path) -> dict[str, Any]:
    """Settings beside a model.

    Raises:
        InputError: where they are no JSON.
    """
    try:
        return json_object(file)
    except ValueError as error:
        raise InputError(f"{file}: must be JSON with settings by name, {error}") from error


def _compare(trained: Mapping[str, Any], used: Mapping[str, Any], file: Path) -> None:
    """Warn of settings that are not the training's."""
    now = json.loads(json.dumps(dict(used)))  # lists, as a file has them
    odd = [name for name in now if name in trained and trained[name] != now[name]]
    if odd:
        listed = ", ".join(f"{name} {trained[name]!r} and not {now[name]!r}" for name in odd)
        _LOGGER.warning("the model was trained with %s: lay %s over the config", listed, file)


def bundled_backbone(
    architecture: str,
    model: str | Path,
    blocks: Sequence[int] | None = None,
    precision: Precision = "float32",
) -> Backbone:
    """Backbone of a bundle that holds a trained model: no download, wherever it is made.

    Made from another directory than the bundle's, as by `monai.bundle.load`, it has no weights yet
    and raises an error until the model's state dict is loaded.

    Args:
        architecture: the model's, see `create_backbone`.
        model: file of the trained model, models/model.pt, with model.json beside it.
        blocks: see `load_backbone`.
        precision: see `load_backbone`.
    """
    file = Path(model).expanduser()
    if file.is_file():
        return load_backbone(file, blocks, precision)
    return create_backbone(architecture, blocks, precision)


def bundle_folder() -> str:
    """Folder of the bundle that a program is using: the first in `sys.path`, or the working one.

    MONAI Label and MONAI Deploy put there what they serve, from wherever they run.
    """
    for folder in map(Path, sys.path):
        if (folder / "configs/metadata.json").is_file() and (folder / "models").is_dir():
            return str(folder)
    return "."


def model_setting(model: str | Path, name: str, released: Mapping[str, Any] | None = None) -> Any:
    """What the settings beside a trained model say now, None where they do not name it.

    Args:
        model: file of the trained model, models/model.pt, with model.json beside it.
        name: of the setting.
        released: settings at the release of a bundle, by name. They count where there is no such
            file, as inside of a TorchScript archive; without them that is an error.

    Raises:
        FileNotFoundError: where there are no settings.
        ValueError: where they are broken.
    """
    file = Path(model).expanduser().with_suffix(".json")
    if released is not None and not file.with_suffix(".pt").exists():
        return released.get(name)
    return _settings(file).get(name)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"
