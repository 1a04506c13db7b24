"""Data sets of slices as they are shipped: the layouts of BMAD and MVTec AD, told by their folders.

BMAD (Bao et al., CVPR Workshops 2024): below a split, `good` and `Ungood` hold `img` and `label`
(BraTS2021), or `img` and `label` hold `good` and `Ungood` (liver), or `test` and `test_label` do
(RESC). MVTec AD: `test` holds `good` and a folder for each defect, `ground_truth` their masks.
Upper and lower case do not matter, `val`, `valid` and `validation` are one, and a data set may lie
in a folder within the one that is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["IMAGE_SUFFIXES", "Group", "Section", "group_items", "patient_of", "slice_groups"]

IMAGE_SUFFIXES = (
    *(".nii", ".nii.gz", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd"),
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"),
)
Section = Literal["train", "val", "test"]
_SPLITS: dict[Section, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_HEALTHY = "good"
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
    """
    root = _unwrapped(root)
    splits = {name: _child(root, *names) for name, names in _SPLITS.items()}
    if splits["train"] is None or not _training_groups(splits["train"]):
        return None
    truth = _child(root, "ground_truth")
    groups: dict[Section, list[Group]] = {"train": _training_groups(splits["train"])}
    for name in ("val", "test"):
        split = splits[name]
        found = [] if split is None else _mvtec(split, truth) if truth else _bmad(split)
        groups[name] = sorted(found, key=lambda group: (group.anomalous, group.images))
    return groups


def group_items(groups: Sequence[Group]) -> list[dict[str, object]]:
    """Items of groups: "image", "label" where there is a mask, "anomalous", "patient" if known."""
    items: list[dict[str, object]] = []
    for group in groups:
        masks = {stem(path): path for path in images_in(group.masks)}
        for path in images_in(group.images):
            item: dict[str, object] = {"image": str(path), "anomalous": group.anomalous}
            mask, patient = masks.get(stem(path) + group.ending), patient_of(path)
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
    return sorted(path for path in files if path.name.lower().endswith(IMAGE_SUFFIXES))


def stem(path: Path) -> str:
    """Name of an image file without its suffix."""
    ending = max((s for s in IMAGE_SUFFIXES if path.name.lower().endswith(s)), key=len, default="")
    return path.name[: len(path.name) - len(ending)]


def _unwrapped(root: Path) -> Path:
    """The folder with the splits: the root, or the only folder in it."""
    if _child(root, *_SPLITS["train"]):
        return root
    folders = [path for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
    return folders[0] if len(folders) == 1 else root


def _child(folder: Path, *names: str) -> Path | None:
    """The subfolder of one of these names, in lower or upper case."""
    children = sorted(path for path in folder.iterdir() if path.is_dir())
    return next((path for path in children if path.name.lower() in names), None)


def _training_groups(split: Path) -> list[Group]:
    folder = split if _child(split, _HEALTHY) else _child(split, "train", "img") or split
    good = _child(folder, _HEALTHY)
    return [] if good is None else [Group(_child(good, "img") or good, None, False)]


def _bmad(split: Path) -> list[Group]:
    """Groups of a split, whichever of BMAD's layouts it has."""
    images = _child(split, "img", *_SPLITS["val"], *_SPLITS["test"])
    if images is None:
        return [
            Group(_child(folder, "img") or folder, _child(folder, "label"), anomalous)
            for folder, anomalous in _classes(split)
        ]
    masks = _child(split, "label", f"{images.name.lower()}_label")
    return [
        Group(folder, _child(masks, folder.name.lower()) if masks else None, anomalous)
        for folder, anomalous in _classes(images)
    ]


def _mvtec(split: Path, truth: Path) -> list[Group]:
    return [
        Group(folder, _child(truth, folder.name.lower()), anomalous, "_mask")
        for folder, anomalous in _classes(split)
    ]


def _classes(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Folders of classes, and whether they are anomalous."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name[0] != ".":
            yield path, path.name.lower() != _HEALTHY
