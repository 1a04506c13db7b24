"""A trained model as a bundle of its own, folder and zip: what MONAI Label and others get."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai_dpmm.app.bundle_files import (
    CHECKSUMS,
    configs_dir,
    copy_configs,
    update_configs,
    write_checksums,
    write_documents,
)
from monai_dpmm.app.settings import BESIDE, RENAMED, SETTINGS
from monai_dpmm.errors import ExistingFileError, InputError, MissingFileError
from monai_dpmm.files import (
    json_object,
    make_folder,
    require_writable,
    scratch_folder,
    sync_below,
)

__all__ = ["checked_settings", "configs_dir", "update_bundle", "write_bundle"]

# no text that MONAI would run, look up, or take for what to make
_PLAIN = re.compile(r"(?!_)[\w .-]*", re.ASCII)
_TRAINED_ON = "; then trained further on scans of the folder's user."
_SERVER_WORDS = ("detection", "classification", "deepedit", "deepgrow")


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
            settings that are not those of a training, a model that is damaged or not theirs, or a
            metrics.json without metrics.
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
    require_writable(out.parent)
    settings = checked_settings(files[1])
    settings.pop("model_digest", None)  # it stays beside the model
    from monai_dpmm.app.model_card import read_metrics  # torch, when it is used
    from monai_dpmm.network.weights import trained_state

    trained_state(files[0])
    measured = {} if metrics is None else read_metrics(metrics)
    make_folder(out.parent)
    with scratch_folder(out.parent) as partial:
        bundle = partial / out.name
        copy_configs(bundle)
        update_configs(bundle / "configs", settings)
        (bundle / "models").mkdir()
        for file in files:
            shutil.copy(file, bundle / "models")
        write_documents(bundle, settings, data=data, metrics=measured)
        write_checksums(bundle)
        zipped = shutil.make_archive(str(partial / "zip"), "zip", partial, out.name)
        sync_below(partial)
        bundle.rename(out)
        os.replace(zipped, archive)
    return out


def update_bundle(bundle: str | Path, models: str | Path) -> None:
    """Bring configs, card, metadata and checksums of a released bundle to its present model.

    A training in the bundle's folder ends with it. Where its model went elsewhere, or the folder is
    no released bundle, nothing is done. The metrics of the model of before are not this one's.

    Args:
        bundle: the folder.
        models: folder that the training has written to.
    """
    from monai_dpmm.engines.distributed import is_main_process  # torch, when it is used

    folder, model = Path(bundle).absolute(), Path(models).absolute() / "model.pt"
    released = (folder / CHECKSUMS).is_file() and (folder / "models" / "model.pt").is_file()
    if not is_main_process() or not released or not model.is_file():
        return
    if not model.samefile(folder / "models" / "model.pt"):
        return
    settings = checked_settings(model.with_suffix(".json"))
    settings.pop("model_digest", None)
    before = json_object(folder / "configs" / "metadata.json").get("data_source", "not given")
    data = before if before.endswith(_TRAINED_ON) else f"{before.rstrip('.')}{_TRAINED_ON}"
    update_configs(folder / "configs", settings)
    write_documents(folder, settings, data=data, metrics={})
    write_checksums(folder)


def _texts(value: Any) -> Iterator[str]:
    """All text in a value of JSON, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        for part in parts:
            yield from _texts(part)


def _check_name(name: str) -> None:
    found = [word for word in _SERVER_WORDS if word in name.lower()]
    if found:
        raise InputError(
            f"the bundle's name must not contain {found[0]!r}, by which MONAI Label tells another"
            f" kind of model, got {name!r}"
        )
