"""Layouts of data sets of slices, recognised by their folders: BMAD and MVTec AD, as shipped.

BMAD (Bao et al., CVPR Workshops 2024): below a split, `good` and `Ungood` hold `img` and `label`
(BraTS2021), or `img` and `label` hold `good` and `Ungood` (liver), or `test` and `test_label` do
(RESC). MVTec AD: `test` holds `good` and a folder for each defect, `ground_truth` their masks.
Upper and lower case do not matter, `val`, `valid` and `validation` are one, and a data set may lie
in a folder within the one that is given, whatever else is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from monai_dpmm.errors import InputError
from monai_dpmm.io.suffixes import format_of, stem

__all__ = [
    "Group",
    "Section",
    "child",
    "group_items",
    "patient_of",
    "slice_groups",
    "split_groups",
]

Section = Literal["train", "val", "test"]
_SPLITS: dict[Section, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_HEALTHY = "good"
_ANOMALOUS = "ungood"
_MODALITIES = "flair|t1|t1c|t1ce|t1gd|t2|pd|dwi|ct|oct"
_SLICE = re.compile(rf"(?P<patient>.*?\d.*?)(?:[_-](?:{_MODALITIES}))?[_-](?:slice[_-]?)?\d+", re.I)


class Group(NamedTuple):
    """Images of one split and class.

    Attributes:
        images: their folder.
        masks: the folder of their masks, None where there is none.
        anomalous: whether they show something anomalous.
        ending: what a mask's name has after the image's, before the suffix.
    """

    images: Path
    masks: Path | None
    anomalous: bool
    ending: str = ""


def slice_groups(root: Path) -> dict[Section, list[Group]] | None:
    """Groups of each split of a data set of slices, healthy ones first; None for other layouts.

    A data set is one of slices if its training split holds the folder `good`.

    Raises:
        InputError: where a folder holds several data sets of slices.
    """
    root = _unwrapped(root)
    splits = {name: child(root, *names) for name, names in _SPLITS.items()}
    if splits["train"] is None or not _training_groups(splits["train"]):
        return None
    truth = child(root, "ground_truth")
    groups: dict[Section, list[Group]] = {"train": _training_groups(splits["train"])}
    for name in ("val", "test"):
        split = splits[name]
        found = [] if split is None else _mvtec(split, truth) if truth else _bmad(split)
        groups[name] = _healthy_first(found)
    return groups


def split_groups(split: Path) -> list[Group] | None:
    """Groups of one split, as a folder of its own, healthy ones first; None for other folders.

    A folder is a split of slices if its classes are `good`, `Ungood` or both, in one of BMAD's
    layouts.
    """
    classes = {path.name.lower() for path, _ in _classes(_images_of(split) or split)}
    known = bool(classes) and classes <= {_HEALTHY, _ANOMALOUS}
    return _healthy_first(_bmad(split)) if known else None


def group_items(groups: Sequence[Group]) -> list[dict[str, object]]:
    """Items of groups: "image", "label" where there is a mask, "anomalous", "patient" if known."""
    items: list[dict[str, object]] = []
    for group in groups:
        masks = {stem(path): path for path in images_in(group.masks)}
        for path in images_in(group.images):
            item: dict[str, object] = {"image": str(path), "anomalous": group.anomalous}
            mask = masks.get(stem(path) + group.ending) or masks.get(stem(path))
            patient = patient_of(path)
            items.append(
                item
                | ({"label": str(mask)} if mask else {})
                | ({"patient": patient} if patient else {})
            )
    return items


def patient_of(path: Path) -> str | None:
    """Patient in the name of a slice: what precedes its number and modality; None if unknown.

    "BraTS2021_00012_flair_60.png" is of patient "BraTS2021_00012". A name that does not end in a
    number, or has no other number before it, does not tell.
    """
    found = _SLICE.fullmatch(stem(path))
    return found["patient"] if found else None


def images_in(folder: Path | None) -> list[Path]:
    """Image files in a folder, not below it, sorted; none in no folder."""
    if folder is None:
        return []
    files = (path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    return sorted(path for path in files if format_of(path))


def _unwrapped(root: Path) -> Path:
    """The folder with the splits: the root, or the folder in it that holds a data set of slices."""
    if child(root, *_SPLITS["train"]):
        return root
    trains = [child(path, *_SPLITS["train"]) for path in sorted(root.iterdir()) if path.is_dir()]
    found = [train.parent for train in trains if train is not None and _training_groups(train)]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{root}: must hold one data set, got {len(found)}: {names}")
    return found[0] if found else root


def child(folder: Path, *names: str) -> Path | None:
    """The subfolder of one of these names, in lower or upper case; None where there is none."""
    children = sorted(path for path in folder.iterdir() if path.is_dir())
    return next((path for path in children if path.name.lower() in names), None)


def _training_groups(split: Path) -> list[Group]:
    folder = split if child(split, _HEALTHY) else child(split, "train", "img") or split
    good = child(folder, _HEALTHY)
    return [] if good is None else [Group(child(good, "img") or good, None, False)]


def _bmad(split: Path) -> list[Group]:
    """Groups of a split, whichever of BMAD's layouts it has."""
    images = _images_of(split)
    if images is None:
        return [
            Group(child(folder, "img") or folder, child(folder, "label"), anomalous)
            for folder, anomalous in _classes(split)
        ]
    masks = child(split, "label", f"{images.name.lower()}_label")
    return [
        Group(folder, child(masks, folder.name.lower()) if masks else None, anomalous)
        for folder, anomalous in _classes(images)
    ]


def _images_of(split: Path) -> Path | None:
    """The folder of all images of a split, None where each class has its own."""
    return child(split, "img", *_SPLITS["val"], *_SPLITS["test"])


def _mvtec(split: Path, truth: Path) -> list[Group]:
    return [
        Group(folder, child(truth, folder.name.lower()), anomalous, "_mask")
        for folder, anomalous in _classes(split)
    ]


def _healthy_first(groups: Sequence[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: (group.anomalous, group.images))


def _classes(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Folders of classes, and whether they are anomalous."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name[0] != ".":
            yield path, path.name.lower() != _HEALTHY
