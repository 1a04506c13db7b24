"""The files of a released bundle beside its model: configs, card, checksums."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_dpmm.app.settings import SETTINGS
from monai_dpmm.errors import InputError
from monai_dpmm.files import atomic_write, file_digest, json_object

__all__ = [
    *("CHECKSUMS", "configs_dir", "copy_configs", "update_configs", "write_checksums"),
    "write_documents",
]

CHECKSUMS = "SHA256SUMS"
_OWN_BACKBONE = {
    "_target_": "monai_dpmm.bundled_backbone",
    "architecture": "@backbone_architecture",
    "blocks": "@backbone_blocks",
    "precision": "@backbone_precision",
    "model": "@backbone_weights",
}
# found at the end of a training, so that one in the bundle's folder changes them
_NOW = "$monai_dpmm.model_setting(@ckpt_dir + '/model.pt', '{}', @released)"
_CALIBRATED = {
    "healthy_scans": _NOW.format("healthy_scans"),
    "scan_reference": _NOW.format("scan_reference"),
    "volume_thresholds": _NOW.format("volume_thresholds") + " or []",
}
# of the model's work; the others are of data sets and of the paper
_CONFIGS = (
    *("metadata.json", "logging.conf", "train.json", "inference.json", "evaluate.json"),
    *("calibrate.json", "multi_gpu_train.json", "multi_gpu_evaluate.json"),
)
_REFRESH = "$monai_dpmm.update_bundle(@bundle_root, @ckpt_dir)"
_METRICS = ("pixel_aupr", "pixel_best_dice", "image_auroc")  # that metadata name, of all measured
_ACRONYMS = {"ct", "dpmm", "flair", "mr", "mri", "oct", "pet", "us"}
_CARD_HEADER = """---
license: apache-2.0
library_name: monai
pipeline_tag: image-segmentation
tags: [monai, medical, anomaly-detection, unsupervised]
---

"""


def configs_dir() -> Path:
    """Folder of the bundle's configs: the checkout's, or the copy inside an installed package."""
    package = Path(__file__).parents[1]
    installed = package / "bundle" / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _documents_dir() -> Path:
    """Folder of what a bundle carries beside configs: the checkout's, or that of the package."""
    configs = configs_dir()
    of_checkout = configs.parent / "bundle"
    return of_checkout if of_checkout.is_dir() else configs.parent


def write_documents(
    bundle: Path, settings: Mapping[str, Any], *, data: str | None, metrics: Mapping[str, float]
) -> None:
    """Write the card, `docs/README.md`, and metadata of a bundle that has its model and configs.

    `README.md` is the card with the header that model hubs read.
    """
    from monai_dpmm.app.model_card import model_card  # torch, when it is used

    metadata = json.loads((configs_dir() / "metadata.json").read_text())
    entries = {
        "name": _display_name(bundle.name),
        "eval_metrics": {name: metrics[name] for name in _METRICS if name in metrics},
        "data_source": data or "not given",
    }
    described = metadata | _of_the_model(metadata, settings) | entries
    _write(bundle / "configs" / "metadata.json", json.dumps(described, indent=4) + "\n")
    template = (_documents_dir() / "docs" / "README.md").read_text()
    model = bundle / "models" / "model.pt"
    card = model_card(model, template, name=bundle.name, data=data, metrics=metrics)
    _write(bundle / "docs" / "README.md", card)
    _write(bundle / "README.md", _CARD_HEADER + card)


def write_checksums(bundle: Path) -> None:
    """Write a line for each file that a bundle was made of, as sha256sum writes and reads it.

    What its users add beside them, results and embeddings, is not listed.
    """
    own = [path for path in bundle.iterdir() if path.is_file() and path.name != CHECKSUMS]
    for name in ("configs", "docs", "models"):
        own += [path for path in (bundle / name).rglob("*") if path.is_file()]
    files = sorted(path for path in own if not path.name.startswith("."))  # such as a lock
    lines = [f"{file_digest(file)}  {file.relative_to(bundle).as_posix()}\n" for file in files]
    _write(bundle / CHECKSUMS, "".join(lines))


def copy_configs(bundle: Path) -> None:
    """Copy licence, documents and the configs of a model's work, as they are."""
    shutil.copytree(_documents_dir(), bundle, ignore=shutil.ignore_patterns("configs"))
    (bundle / "configs").mkdir()
    for name in _CONFIGS:
        shutil.copy(configs_dir() / name, bundle / "configs")


def update_configs(folder: Path, settings: dict[str, Any]) -> None:
    """Write a model's settings into the configs of a bundle."""
    calibrated = {name: settings[name] for name in _CALIBRATED if name in settings}
    settings = settings | _CALIBRATED
    where = {"bundle_root": "$monai_dpmm.bundle_folder()", "released": calibrated}
    _update(folder / "inference.json", settings | where)
    of_the_folder = {
        "backbone_weights": "$@bundle_root + '/models/model.pt'",
        "backbone": _OWN_BACKBONE,
        # MONAI Label offers every models/*.pt as a model
        "checkpoint": "$@output_dir + '/checkpoint.pt'",
    }
    remembered = {name: value for name, value in settings.items() if SETTINGS[name].remembered}
    train = _config(folder / "train.json")
    finalize = [_REFRESH, *(one for one in train["finalize"] if one != _REFRESH)]
    _update(folder / "train.json", remembered | of_the_folder | {"finalize": finalize})


def _of_the_model(metadata: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of the metadata depends on the model: packages, and the range of its scores."""
    from monai_dpmm.mixture.scores import SCORES  # torch, when it is used
    from monai_dpmm.network.backbones.registry import BACKBONES

    name = str(settings.get("backbone_architecture"))
    own = BACKBONES[name].package if name in BACKBONES else None
    foreign = {backbone.package for backbone in BACKBONES.values()} - {own}
    needed = metadata["required_packages_version"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    score = SCORES.get(str(settings.get("score")))
    pred["value_range"] = [] if score is None else list(score.value_range)
    return {
        "required_packages_version": {k: v for k, v in needed.items() if k not in foreign},
        "network_data_format": metadata["network_data_format"],
    }


def _display_name(name: str) -> str:
    """A bundle's name as people read it: "Brain MRI anomaly DPMM" of brain_mri_anomaly_dpmm."""
    words = [word.upper() if word in _ACRONYMS else word for word in name.split("_")]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def _update(file: Path, values: dict[str, Any]) -> None:
    """Set keys that a config has."""
    _write(file, json.dumps(_config(file) | values, indent=4) + "\n")


def _config(file: Path) -> dict[str, Any]:
    """A config of a bundle, which may have been changed since."""
    try:
        return json_object(file)
    except ValueError as error:
        raise InputError(f"{file}: must be a config in JSON, {error}") from error


def _write(file: Path, text: str) -> None:
    """Write a file, whole or not at all: a training in a released bundle brings it up to date."""
    with atomic_write(file) as partial:
        partial.write_text(text, encoding="utf-8")
