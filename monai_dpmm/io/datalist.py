"""Scans on disk: which files the sections of a data set hold, in every layout that is known."""

from __future__ import annotations

import random
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from monai_dpmm.errors import InputError
from monai_dpmm.io.decathlon import listed_items
from monai_dpmm.io.dicom_files import scan_files
from monai_dpmm.io.formats import named
from monai_dpmm.io.layouts import (
    Group,
    Section,
    child,
    group_items,
    slice_groups,
    split_groups,
)
from monai_dpmm.io.names import Labels, contrasts, is_ill, is_mask, mixed_contrasts, subject
from monai_dpmm.io.suffixes import format_of, stem
from monai_dpmm.io.survey import (
    Survey,
    find_images,
    left_out_line,
    matching,
    survey,
    tell_once,
    without,
)

__all__ = ["data_root", "datalist", "existing_file", "find_images", "healthy_scans"]

_TEST = {"test", "testing"}  # folders that no folder of healthy scans holds
_IMAGES = ("images", "img", "imgs", "scans")
_LABELS = (
    *("labels", "label", "masks", "mask", "segmentations", "segmentation", "seg", "gt"),
    "ground_truth",
)
_NOT_RAW = {"derivatives", "sourcedata", "code", "stimuli"}  # of BIDS


def datalist(
    dataset_dir: str | Path,
    section: Section,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    labels: bool = False,
    pattern: str | None = None,
) -> list[dict[str, Any]]:
    """Items {"image": path, "label": path where there is one} of a section of a data set.

    These layouts are understood:

    - `dataset.json` of the Medical Segmentation Decathlon or of nnU-Net, see
      `monai_dpmm.io.decathlon`;
    - slices as BMAD and MVTec AD ship them, see `monai_dpmm.io.layouts`: "train" and "val" are the
      healthy ones, "val" is drawn from "train" where there is none, and an item of "test" also
      says whether it is "anomalous"; "patient" is there where the names tell;
    - folders `train`, `val` (healthy scans) and `test/images` with `test/labels` (masks under the
      same file names or their variants, see `Labels.of`; an image without one has no label) or
      just `test`, where masks may lie beside their images, as in BraTS;
    - one folder of healthy scans, BIDS among them: `val_fraction` of the patients, at least one,
      drawn with `seed`, are the validation section, the others the training section; it has no test
      section.

    For "test" the folder may also be one split of a data set of slices, or a folder of `img` and
    `label`. Healthy scans are those whose names do not say otherwise, see `healthy_scans`; what was
    left out is logged.

    Args:
        dataset_dir: root of the data set, or for "test" one file.
        section: "train", "val" or "test".
        val_fraction: share of validation scans, in (0, 1), where the data set has no such section.
        seed: of the draw.
        labels: every item must have a label, as an evaluation needs it, unless it is known to be
            healthy; a healthy scan's is all 0.
        pattern: of the names of scans, or of their paths where it has a "/", such as
            `*_T1w.nii.gz`; None for all.

    Raises:
        InputError: where the folder is missing, the section is empty, there are too few scans, a
            label is missing, the results of two scans to test would have one name, scans to train
            on or to evaluate are of several contrasts, or `dataset.json` is broken or has scans to
            test that lie elsewhere.
        ValueError: for an unknown section or a fraction outside (0, 1).
    """
    if section not in ("train", "val", "test"):
        raise InputError(f"section must be one of train, val, test, got {section!r}")
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction must lie in (0, 1), got {val_fraction}")
    root = Path(dataset_dir).expanduser()
    items = _section_items(root, section, val_fraction, seed, pattern)
    if section == "test":
        _check_names(items)
    if labels:
        if pattern is None:
            _check_contrasts(root, [Path(item["image"]) for item in items])
        _check_labels(items)
    return items


def _check_labels(items: list[dict[str, Any]]) -> None:
    """Refuse images without a label, unless they are known to be healthy."""
    missing = [i["image"] for i in items if "label" not in i and i.get("anomalous", True)]
    if missing:
        raise InputError(
            f"{missing[0]}: must have a mask of its lesions (all 0 for a healthy scan) in the"
            " folder labels or masks beside images, under the image's name or that with _seg, _mask"
            f" or _label, {len(missing)} of {len(items)} images have none"
        )


def _check_contrasts(root: Path, images: list[Path]) -> None:
    """Refuse several contrasts of one scan, and ask which of them is meant."""
    if mixed_contrasts(images):
        kinds = contrasts(images)
        shown = ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))
        raise InputError(
            f"{root}: must hold scans of one contrast, got {shown}: choose with pattern, as in"
            f" pattern='*{kinds.most_common(1)[0][0]}*', where '*' takes all"
        )


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
    is_scan = root.is_file()
    if root.is_dir():
        with suppress(InputError):
            is_scan = bool(scan_files(root))
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
    root: Path, section: Section, val_fraction: float, seed: int, pattern: str | None
) -> list[dict[str, Any]]:
    if section == "test" and root.is_file():
        return [{"image": str(root)}]
    if not root.is_dir():
        missing = "a file is none" if root.exists() else "there is no such file or folder"
        raise InputError(f"{root}: must be a data set's folder, {missing}")
    if (root / "dataset.json").is_file():
        items, drawn = listed_items(root / "dataset.json", section, pattern)
        return _drawn(root, items, section, val_fraction, seed) if drawn else items
    if groups := slice_groups(root):
        items = _slice_items(root, groups, section, val_fraction, seed)
        return [item for item in items if fnmatchcase(Path(item["image"]).name, pattern or "*")]
    if section == "test":
        return _test_items(root, pattern)
    if (root / "train").is_dir() and (root / "val").is_dir():
        return _healthy_items(root / section, pattern)
    folder = root / "train" if (root / "train").is_dir() else root
    return _drawn(root, _healthy_items(folder, pattern), section, val_fraction, seed)


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


def _test_items(root: Path, pattern: str | None) -> list[dict[str, Any]]:
    folder = child(root, "test", "testing") or root
    for split in (root, folder):
        if items := group_items(split_groups(split) or []):
            return items
    images, labels = child(folder, *_IMAGES) or folder, child(folder, *_LABELS)
    found = _raw(survey(images), images)
    beside = labels is None
    masks = [p for p in found.images if is_mask(p.name)] if labels is None else _images(labels)
    of_image = Labels(masks, images if labels is None else labels)
    label = {p: of_image.of(p.relative_to(images), beside=beside) for p in found.images}
    gone = {*label.values()} if beside else {p for p in found.images if labels in p.parents}
    found = without(found, images, "masks of other scans", lambda p: images / p in gone)
    found = matching(found, images, pattern)
    tell_once(images, found.left_out)
    return [_item(path, images, label[path]) for path in found.images]


def _images(folder: Path) -> list[Path]:
    with suppress(InputError):
        return find_images(folder)
    return []


def _item(path: Path, root: Path, label: Path | None = None) -> dict[str, Any]:
    """An item of an image below a folder, with its label and its patient where they are known."""
    patient = subject(path.relative_to(root))
    known = {"label": None if label is None else str(label), "patient": patient}
    return {"image": str(path), **{key: value for key, value in known.items() if value}}


def _raw(found: Survey, root: Path) -> Survey:
    """A survey of a BIDS data set less what was made of its scans."""
    if not (root / "dataset_description.json").is_file():
        return found
    return without(found, root, "files of BIDS derivatives", lambda p: p.parts[0] in _NOT_RAW)


def healthy_scans(folder: Path, pattern: str | None = None) -> Survey:
    """Scans below a folder that is said to hold healthy ones only.

    Left out are masks and what is ill, by the words of their names, unless a pattern chooses the
    names.

    Raises:
        InputError: where none is left, where the name of a folder below says that it holds masks or
            what is ill, unless a pattern chooses paths, and for several contrasts of one scan,
            unless a pattern chooses one.
    """
    found = matching(_raw(survey(folder), folder), folder, pattern)
    parts = {part for path in found.images for part in path.relative_to(folder).parent.parts}
    odd = sorted(p for p in parts if p.lower() in _TEST or is_mask(p) or is_ill(p))
    if odd and "/" not in (pattern or ""):
        raise InputError(
            f"{folder}: must hold healthy scans only, or be a data set in one of the layouts of"
            f" monai_dpmm.datalist, got a folder named {odd[0]}"
        )
    if pattern is None:
        found = without(found, folder, "masks by their names", lambda p: is_mask(_name(p)))
        found = without(found, folder, "scans not healthy by name", lambda p: is_ill(_name(p)))
        if not found.images:
            told = "; ".join(left_out_line(*item, folder) for item in found.left_out.items())
            raise InputError(f"{folder}: must hold healthy scans, got {told}")
        _check_contrasts(folder, found.images)
    return found


def _name(path: Path) -> str:
    """Name without its suffix, of a DICOM series its folder's."""
    return stem(path) if format_of(path) else path.name


def _healthy_items(folder: Path, pattern: str | None) -> list[dict[str, Any]]:
    found = healthy_scans(folder, pattern)
    tell_once(folder, found.left_out)
    return [_item(path, folder) for path in found.images]


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
