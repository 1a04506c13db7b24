"""Data sets of the Medical Segmentation Decathlon and of nnU-Net, by their `dataset.json`."""

from __future__ import annotations

import glob
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from monai.data import load_decathlon_datalist

from monai_dpmm.errors import InputError, cause
from monai_dpmm.files import json_object
from monai_dpmm.io.layouts import Section, child
from monai_dpmm.io.names import Labels
from monai_dpmm.io.suffixes import format_of, stem
from monai_dpmm.io.survey import matching, survey

__all__ = ["listed_items"]

_LISTS = {"train": "training", "val": "validation", "test": "test"}
_FOLDERS = {"train": ("imagestr", "labelstr"), "test": ("imagests", "labelsts")}


def listed_items(
    file: Path, section: Section, pattern: str | None
) -> tuple[list[dict[str, Any]], bool]:
    """Items of a section, and whether they are the training's, to draw validation scans from.

    The lists are named "training", "validation" and "test". nnU-Net names its images after the
    channel, NAME_0000, also where a list says NAME; its version 2 has no lists, and images lie in
    `imagesTr` and `imagesTs`, labels in `labelsTr` and `labelsTs`.

    Raises:
        InputError: where the file is broken, has no such list, or scans to test lie elsewhere, and
            where several channels of a scan are there, and the pattern chooses none.
    """
    try:
        lists = json_object(file)
    except ValueError as error:
        raise InputError(f"{file}: must be JSON with lists by name, {error}") from error
    drawn = section == "val" and not lists.get("validation")
    section = "train" if drawn else section
    key, drawn = _LISTS[section], drawn or (section == "train" and not lists.get("validation"))
    folders = [child(file.parent, name) for name in _FOLDERS.get(section, ("", ""))]
    if lists.get(key):
        items = _of_list(file, key)
        paths = [_channel(Path(os.fspath(item["image"])), pattern) for item in items]
    elif folders[0] is not None:
        paths = matching(survey(folders[0]), folders[0], pattern).images
        items = [{} for _ in paths]
        _check_channels(paths)
    else:
        found = ", ".join(name for name, value in lists.items() if isinstance(value, list))
        raise InputError(f"{file}: must have a list {key!r} that is not empty, got lists {found}")
    items = [{**item, "image": str(path)} for item, path in zip(items, paths, strict=True)]
    if folders[1] is not None and folders[1].is_dir():
        labels = Labels(survey(folders[1]).images, folders[1])
        for item in items:
            label = labels.of(Path(Path(item["image"]).name))
            if "label" not in item and label is not None:
                item["label"] = str(label)
    if section == "test":
        _check_inside(file, paths)
    return items, drawn


def _of_list(file: Path, key: str) -> list[dict[str, Any]]:
    try:
        items = load_decathlon_datalist(str(file), data_list_key=key, base_dir=str(file.parent))
        # what else an item says is not a scan's to say: the pipeline reads settings by such names
        items = [{k: item[k] for k in ("image", "label") if k in item} for item in items]
        for item in items:
            os.fspath(item["image"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file}: {key} must be a list of paths by name, {cause(error)}"
        ) from error
    return items


def _channel(image: Path, pattern: str | None) -> Path:
    """The image of a list, or where nnU-Net's channels are there instead, the one that is meant."""
    found = format_of(image)
    if found is None or image.exists():
        return image
    names = glob.escape(str(image.parent / stem(image)))
    channels = [Path(path) for path in sorted(glob.glob(f"{names}_????{found.suffix}"))]
    if pattern is not None:
        channels = [path for path in channels if fnmatchcase(path.name, pattern)]
    _check_channels(channels)
    return channels[0] if channels else image


def _check_channels(paths: list[Path]) -> None:
    """Refuse several channels of one case, NAME_0000 and NAME_0001."""
    cases = {path.parent / stem(path)[:-5] for path in paths if stem(path)[-5:-4] == "_"}
    if len(cases) < len({path for path in paths if stem(path)[-5:-4] == "_"}):
        raise InputError(
            f"{paths[0].parent}: must hold scans of one contrast, got several channels of one scan,"
            f" such as {paths[0].name}: choose with pattern, as in pattern='*_0000.nii.gz'"
        )


def _check_inside(file: Path, images: list[Path]) -> None:
    """Refuse scans elsewhere: results keep the scans' paths, and would lie elsewhere as well."""
    for image in images:
        if os.pardir in Path(os.path.relpath(image, file.parent)).parts:
            raise InputError(f"{file}: scans to test must lie below its folder, got {image}")
