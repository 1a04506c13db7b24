"""A trained model as a bundle of its own, folder and zip: what MONAI Label and others get."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_dpmm.app.settings import BESIDE, RENAMED, SETTINGS
from monai_dpmm.errors import ExistingFileError, InputError, MissingFileError
from monai_dpmm.files import file_digest, json_object, make_folder, scratch_folder, sync_below

__all__ = ["checked_settings", "configs_dir", "write_bundle"]

_OWN_BACKBONE = {
    "_target_": "monai_dpmm.bundled_backbone",
    "architecture": "@backbone_architecture",
    "blocks": "@backbone_blocks",
    "precision": "@backbone_precision",
    "model": "@backbone_weights",
}
# found by `calibrate`, after the training; a training in the bundle's folder takes them back
_NOW = "$monai_dpmm.model_setting(@ckpt_dir + '/model.pt', '{}', @released)"
_CALIBRATED = {
    "healthy_scans": _NOW.format("healthy_scans"),
    "scan_reference": _NOW.format("scan_reference"),
    "volume_thresholds": _NOW.format("volume_thresholds") + " or []",
}
CHECKSUMS = "SHA256SUMS"
# no text that MONAI would run, look up, or take for what to make
_PLAIN = re.compile(r"(?!_)[\w .-]*", re.ASCII)
_SERVER_WORDS = ("detection", "classification", "deepedit", "deepgrow")


def configs_dir() -> Path:
    """Folder of the bundle's configs: the checkout's, or the copy inside an installed package."""
    package = Path(__file__).parents[1]
    installed = package / "bundle" / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def checked_settings(file: Path) -> dict[str, Any]:
    """Settings beside a trained model: plain values under the names that a training gives them.

    They become part of a config, and MONAI runs what a config holds, so that a model.json that
    holds anything else would be a program.

    Raises:
        ValueError: where it does, or is broken.
    """
    try:
        settings = json_object(file)
    except ValueError as error:
        raise InputError(f"{file}: must be JSON with settings by name, {error}") from error
    remembered = {name for name, row in SETTINGS.items() if row.remembered} | {*BESIDE}
    settings = {RENAMED.get(name, name): value for name, value in settings.items()}
    if unknown := sorted(settings.keys() - remembered):
        raise InputError(
            f"{file}: settings must be those of a training, got {', '.join(unknown)} as well"
            " (a model of another version)"
        )
    for name, value in settings.items():
        if odd := [text for text in _texts(value) if not _PLAIN.fullmatch(text)]:
            raise InputError(f"{file}: {name} must be a plain value, got {odd[0]!r}")
    return settings


def write_bundle(
    out: str | Path,
    folder: str | Path = ".",
    *,
    data: str | None = None,
    metrics: str | Path | None = None,
) -> Path:
    """Bundle of a trained model: configs, models, documents and licence, complete in itself.

    The model's settings are written into the configs, so that inference needs no overlay, and
    training goes on with the model's own backbone, without a download. `docs/README.md` is the
    model's card, `SHA256SUMS` lists every file (`sha256sum -c SHA256SUMS` verifies them), and the
    same folder lies beside it as `OUT.zip`. Both appear when they are complete.

    Args:
        out: the new folder; its name is the bundle's, by which MONAI Label serves it.
        folder: where models/model.pt and models/model.json lie.
        data: a sentence on the healthy scans, for the card and the metadata.
        metrics: metrics.json of an evaluation of this model, for the same.

    Raises:
        FileNotFoundError: where there is no trained model, or no such metrics.json.
        FileExistsError: where `out` or its zip exists already.
        ValueError: for a name with a word that MONAI Label takes for another kind of model,
            settings that are not those of a training, or a metrics.json without metrics.
    """
    out, models = Path(out).expanduser().absolute(), Path(folder) / "models"
    _check_name(out.name)
    archive = out.with_name(f"{out.name}.zip")
    for path in (out, archive):
        if path.exists():
            raise ExistingFileError(f"{path}: must be new, it exists already")
    files = [models / "model.pt", models / "model.json"]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise MissingFileError(
            f"{missing[0]}: must exist, there is no such file (train a model first)"
        )
    settings = checked_settings(files[1])
    settings.pop("model_digest", None)  # it stays beside the model
    from monai_dpmm.app.model_card import model_card, read_metrics  # torch, when it is used

    measured = {} if metrics is None else read_metrics(metrics)
    template = (_documents_dir() / "docs" / "README.md").read_text()
    card = model_card(files[0], template, name=out.name, data=data, metrics=measured)
    entries = {"name": out.name, "eval_metrics": measured, "data_source": data or "not given"}
    make_folder(out.parent)
    with scratch_folder(out.parent) as partial:
        bundle = partial / out.name
        _copy_documents(bundle)
        (bundle / "docs" / "README.md").write_text(card)
        _write_configs(bundle / "configs", settings, entries)
        (bundle / "models").mkdir()
        for file in files:
            shutil.copy(file, bundle / "models")
        (bundle / CHECKSUMS).write_text(_checksums(bundle))
        zipped = shutil.make_archive(str(partial / "zip"), "zip", partial, out.name)
        sync_below(partial)
        bundle.rename(out)
        os.replace(zipped, archive)
    return out


def _texts(value: Any) -> Iterator[str]:
    """All text in a value of JSON, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        for part in parts:
            yield from _texts(part)


def _checksums(bundle: Path) -> str:
    """A line for each file, as sha256sum writes and reads it."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    return "".join(
        f"{file_digest(file)}  {file.relative_to(bundle).as_posix()}\n" for file in files
    )


def _check_name(name: str) -> None:
    found = [word for word in _SERVER_WORDS if word in name.lower()]
    if found:
        raise InputError(
            f"the bundle's name must not contain {found[0]!r}, by which MONAI Label tells another"
            f" kind of model, got {name!r}"
        )


def _documents_dir() -> Path:
    """Folder of what a bundle carries beside configs: the checkout's, or that of the package."""
    configs = configs_dir()
    of_checkout = configs.parent / "bundle"
    return of_checkout if of_checkout.is_dir() else configs.parent


def _copy_documents(bundle: Path) -> None:
    shutil.copytree(_documents_dir(), bundle, ignore=shutil.ignore_patterns("configs"))


def _write_configs(folder: Path, settings: dict[str, Any], entries: Mapping[str, Any]) -> None:
    shutil.copytree(configs_dir(), folder)
    metadata = json.loads((folder / "metadata.json").read_text())
    _update(folder / "metadata.json", _of_the_model(metadata, settings) | entries)
    calibrated = {name: settings[name] for name in _CALIBRATED if name in settings}
    settings = settings | {name: _CALIBRATED[name] for name in calibrated}
    where = {"bundle_root": "$monai_dpmm.bundle_folder()", "released": calibrated}
    _update(folder / "inference.json", settings | where)
    of_the_folder = {
        "backbone_weights": "$@bundle_root + '/models/model.pt'",
        "backbone": _OWN_BACKBONE,
        # MONAI Label offers every models/*.pt as a model
        "checkpoint": "$@output_dir + '/checkpoint.pt'",
    }
    remembered = {name: value for name, value in settings.items() if SETTINGS[name].remembered}
    _update(folder / "train.json", remembered | of_the_folder)


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


def _update(file: Path, values: dict[str, Any]) -> None:
    """Set keys that a config has."""
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | values, indent=4) + "\n")
