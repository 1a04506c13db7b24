"""Scans on disk: which files the sections of a data set hold, in every layout that is known."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from monai.data import load_decathlon_datalist

from monai_dpmm.errors import InputError, cause
from monai_dpmm.files import LAST, json_object
from monai_dpmm.io.formats import named
from monai_dpmm.io.layouts import (
    Group,
    Section,
    child,
    group_items,
    slice_groups,
    split_groups,
)
from monai_dpmm.io.suffixes import IMAGE_SUFFIXES, format_of

__all__ = ["data_root", "datalist", "existing_file", "find_images"]

# Folders that no folder of healthy scans holds: to train on masks or lesions would show nowhere.
_NOT_HEALTHY = {"test", "testing", "ungood", "ground_truth", "label", "labels", "mask", "masks"}


def find_images(folder: str | Path) -> list[Path]:
    """Image files below a folder, sorted; a folder with a DICOM series counts as one image.

    What this package has written there of scans, results and reports, is left out.

    Raises:
        InputError: where the folder is missing, is no folder, or holds no image.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: must be a folder of images, there is no such folder")
    files = _without_results(root, [p for p in root.rglob("*") if p.is_file()])
    images = {p for p in files if format_of(p)}
    images |= {p.parent for p in files if p.suffix.lower() == ".dcm"}
    if not images:
        known = ", ".join(IMAGE_SUFFIXES)
        raise InputError(
            f"{root}: must hold images ({known} or DICOM series), got {len(files)} other files"
        )
    return sorted(images)


def _without_results(root: Path, files: list[Path]) -> list[Path]:
    """The files but hidden ones, those that inference and evaluation have written, and reports.

    What a run that was killed had begun to put in place counts as written.
    """
    end, page, parts = "_findings.json", "report.html", ("figures", "viewers")
    results: defaultdict[Path, list[str]] = defaultdict(list)  # how they begin, by folder
    reports: set[Path] = set()
    for path in files:
        begun = path.name.startswith(LAST)
        folder, name = path.parent, path.name.removeprefix(LAST)
        folder = folder.parent if begun else folder
        if name.endswith(end):
            results[folder].append(f"{name.removesuffix(end)}_")
        old = name == "metrics.json" and any((folder / part).is_dir() for part in parts)
        if old or (name == page and (begun or (folder / "metrics.json").is_file())):
            reports.add(folder)
    return [
        path
        for path in files
        if not path.name.startswith(tuple(results.get(path.parent, ())))
        and not reports.intersection(path.parents)
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]


def datalist(
    dataset_dir: str | Path,
    section: Section,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    labels: bool = False,
) -> list[dict[str, Any]]:
    """Items {"image": path, "label": path where there is one} of a section of a data set.

    Four layouts are understood:

    - `dataset.json`, a Medical Segmentation Decathlon datalist, with the lists "training",
      "validation" and "test" of such items;
    - slices as BMAD and MVTec AD ship them, see `monai_dpmm.io.layouts`: "train" and "val" are the
      healthy ones, "val" is drawn from "train" where there is none, and an item of "test" also
      says whether it is "anomalous"; "patient" is there where the names tell;
    - folders `train`, `val` (healthy scans) and `test/images` with `test/labels` (masks under the
      same file names; an image without one has no label) or just `test`;
    - one folder of healthy scans: `val_fraction` of them, at least one, drawn with `seed`, are
      the validation section, the others the training section; it has no test section.

    For "test" the folder may also be one split of a data set of slices, or a folder of `img` and
    `label`.

    Args:
        dataset_dir: root of the data set, or for "test" one file.
        section: "train", "val" or "test".
        val_fraction: share of validation scans, in (0, 1), where the data set has no such section.
        seed: of the draw.
        labels: every item must have a label, as an evaluation needs it, unless it is known to be
            healthy; a healthy scan's is all 0.

    Raises:
        InputError: where the folder is missing, the section is empty, there are too few scans, a
            label is missing, the results of two scans to test would have one name, or
            `dataset.json` is broken or has scans to test that lie elsewhere.
        ValueError: for an unknown section or a fraction outside (0, 1).
    """
    if section not in ("train", "val", "test"):
        raise InputError(f"section must be one of train, val, test, got {section!r}")
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction must lie in (0, 1), got {val_fraction}")
    items = _section_items(Path(dataset_dir).expanduser(), section, val_fraction, seed)
    if section == "test":
        _check_names(items)
    if labels and (
        unlabelled := [i["image"] for i in items if "label" not in i and i.get("anomalous", True)]
    ):
        raise InputError(
            f"{unlabelled[0]}: must have a mask of its lesions (all 0 for a healthy scan) in the"
            f" folder labels beside images, {len(unlabelled)} of {len(items)} images have none"
        )
    return items


def _check_names(items: list[dict[str, Any]]) -> None:
    """Refuse scans of one name in one folder, whose results would replace each other."""
    first: dict[Path, Path] = {}
    for path in (Path(item["image"]) for item in items):
        file = Path(named(str(path)))
        name = file.with_name(file.name.removesuffix(".gz")).with_suffix("")
        if first.setdefault(name, path) != path:
            raise InputError(
                f"{path}: must have another name than {first[name].name} beside it, their results"
                f" would both be named {name.name}"
            )


def data_root(dataset_dir: str | Path) -> str:
    """Folder that results keep their relative paths from: the data set's, or a single scan's."""
    root = Path(dataset_dir).expanduser()
    is_scan = root.is_file() or any(p.suffix.lower() == ".dcm" for p in root.glob("*"))
    return str(root.absolute().parent if is_scan else root)


def existing_file(path: str | Path) -> str:
    """The path, of a file that must be there, such as a trained model.

    Raises:
        InputError: where it is not.
    """
    if not Path(path).expanduser().is_file():
        raise InputError(f"{path}: must exist, there is no such file (train a model first)")
    return str(Path(path).expanduser())


def _section_items(
    root: Path, section: Section, val_fraction: float, seed: int
) -> list[dict[str, Any]]:
    if section == "test" and root.is_file():
        return [{"image": str(root)}]
    if not root.is_dir():
        missing = "a file is none" if root.exists() else "there is no such file or folder"
        raise InputError(f"{root}: must be a data set's folder, {missing}")
    if (root / "dataset.json").is_file():
        return _decathlon_items(root / "dataset.json", section)
    if groups := slice_groups(root):
        return _slice_items(root, groups, section, val_fraction, seed)
    if section == "test":
        return _test_items(root)
    if (root / "train").is_dir() and (root / "val").is_dir():
        return _healthy_items(root / section)
    items = _healthy_items(root / "train" if (root / "train").is_dir() else root)
    return _drawn(root, items, section, val_fraction, seed)


def _decathlon_items(file: Path, section: Section) -> list[dict[str, str]]:
    key = {"train": "training", "val": "validation", "test": "test"}[section]
    try:
        lists = json_object(file)
    except ValueError as error:
        raise InputError(f"{file}: must be JSON with lists by name, {error}") from error
    if not lists.get(key):
        found = ", ".join(name for name, value in lists.items() if isinstance(value, list))
        raise InputError(f"{file}: must have a list {key!r} that is not empty, got lists {found}")
    try:
        items = load_decathlon_datalist(str(file), data_list_key=key, base_dir=str(file.parent))
        paths = [os.fspath(item["image"]) for item in items]
        # what else an item says is not a scan's to say: the pipeline reads settings by such names
        items = [{k: item[k] for k in ("image", "label") if k in item} for item in items]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file}: {key} must be a list of paths by name, {cause(error)}"
        ) from error
    if section == "test":
        _check_inside(file, paths)
    return items


def _check_inside(file: Path, images: list[str]) -> None:
    """Refuse scans elsewhere: results keep the scans' paths, and would lie elsewhere as well."""
    for image in images:
        if os.pardir in Path(os.path.relpath(image, file.parent)).parts:
            raise InputError(f"{file}: scans to test must lie below its folder, got {image}")


def _slice_items(
    root: Path, groups: dict[Section, list[Group]], section: Section, fraction: float, seed: int
) -> list[dict[str, Any]]:
    """Items of a data set of slices; only "test" holds anomalous ones."""
    if section == "test":
        items = group_items(groups["test"])
    else:
        healthy = {name: [g for g in groups[name] if not g.anomalous] for name in ("train", "val")}
        chosen = group_items(healthy[section] if healthy["val"] else healthy["train"])
        if not healthy["val"]:
            chosen = _drawn(root, chosen, section, fraction, seed)
        items = [{k: v for k, v in item.items() if k in ("image", "patient")} for item in chosen]
    if not items:
        raise InputError(f"{root}: must have images in its split {section!r}, got none")
    return items


def _test_items(root: Path) -> list[dict[str, Any]]:
    folder = child(root, "test", "testing") or root
    for split in (root, folder):
        if items := group_items(split_groups(split) or []):
            return items
    images = child(folder, "images", "img") or folder
    labels = child(folder, "labels", "label")
    items = []
    for path in find_images(images):
        label = None if labels is None else labels / path.relative_to(images)
        found = label is not None and label.exists()
        items.append({"image": str(path)} | ({"label": str(label)} if found else {}))
    return items


def _healthy_items(folder: Path) -> list[dict[str, Any]]:
    """Scans below a folder that is said to hold healthy ones only."""
    images = find_images(folder)
    parts = {part for path in images for part in path.relative_to(folder).parent.parts}
    if odd := sorted(part for part in parts if part.lower() in _NOT_HEALTHY):
        raise InputError(
            f"{folder}: must hold healthy scans only, or be a data set in one of the layouts of"
            f" monai_dpmm.datalist, got a folder named {odd[0]}"
        )
    return [{"image": str(path)} for path in images]


def _drawn(
    root: Path, items: list[dict[str, Any]], section: Section, val_fraction: float, seed: int
) -> list[dict[str, Any]]:
    """A share of the items for validation, or the others; all of a patient are in one of them."""
    patients = sorted({item.get("patient", item["image"]) for item in items})
    if len(patients) < 2:
        raise InputError(
            f"{root}: must hold at least 2 healthy scans, one to train on and one to validate on,"
            f" got {len(patients)}"
        )
    shuffled = random.Random(seed).sample(patients, len(patients))
    count = min(max(1, round(val_fraction * len(patients))), len(patients) - 1)
    chosen = set(shuffled[:count] if section == "val" else shuffled[count:])
    return [item for item in items if item.get("patient", item["image"]) in chosen]
