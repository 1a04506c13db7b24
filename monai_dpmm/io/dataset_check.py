"""What a data set holds, split by split, and whatever is wrong with it, before hours are spent."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from monai_dpmm.errors import InputError
from monai_dpmm.io.datalist import datalist
from monai_dpmm.io.layouts import Section, group_items, images_in, slice_groups
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.io.names import contrasts
from monai_dpmm.io.outliers import ScanNumbers, numbers_of
from monai_dpmm.io.suffixes import format_of, is_picture, stem

__all__ = ["DatasetCheck", "SplitCheck", "check_dataset"]

_SHOWN = 5  # files of one irregularity
_LEVELS = 16  # more values than a mask's labels have


class SplitCheck(NamedTuple):
    """What a split holds.

    Attributes:
        images: how many.
        healthy: those known to be.
        anomalous: those known to be, by their folder or their mask.
        masks: how many.
        sizes: how many images of each size.
    """

    images: int
    healthy: int
    anomalous: int
    masks: int
    sizes: dict[tuple[int, ...], int]


class DatasetCheck(NamedTuple):
    """What a data set holds, which `str` shows.

    Attributes:
        splits: by name.
        problems: irregularities, one line each.
        kinds: how many scans have which suffix and contrast.
        numbers: of each volume that could be read, by its path, see `scan_outliers`.
    """

    splits: dict[str, SplitCheck]
    problems: list[str]
    kinds: dict[str, int]
    numbers: dict[str, ScanNumbers]

    def __str__(self) -> str:
        head = f"{'split':8}{'images':>8}{'healthy':>9}{'anomalous':>11}{'masks':>7}  sizes"
        lines = [head, *(_row(name, split) for name, split in self.splits.items())]
        if "test" not in self.splits:
            lines.append("no test split: scans to train on, none to measure with")
        lines.append(f"kinds: {', '.join(f'{k} ({n})' for k, n in self.kinds.items())}")
        found = [f"  {problem}" for problem in self.problems] or ["  none"]
        return "\n".join([*lines, "", f"irregularities: {len(self.problems)}", *found])


def check_dataset(
    dataset_dir: str | Path, *, val_fraction: float = 0.2, pattern: str | None = None
) -> DatasetCheck:
    """Read every file of a data set, see `monai_dpmm.io.datalist.datalist` for its layouts.

    Irregular are: images that `LoadVolume` cannot use (damaged, of one value) and masks that cannot
    be read; masks of another size than their image, of many grey levels, of no image, all 0 where
    the image is anomalous or not where it is healthy; pictures in colour among grey ones; anomalous
    images without a mask, and images of which nothing is known in a test split; a patient in two
    splits; and the same content in two splits. A folder of healthy scans has no test split, which
    is none.

    Args:
        dataset_dir: see `datalist`.
        val_fraction: likewise.
        pattern: likewise.

    Raises:
        InputError: where there is no data set, or no healthy image to train on.
    """
    root = Path(dataset_dir).expanduser()
    healthy: tuple[Section, ...] = ("train", "val")
    drawn = {"val_fraction": val_fraction, "pattern": pattern}
    items = {name: datalist(root, name, **drawn) for name in healthy}
    with suppress(InputError):
        items["test"] = datalist(root, "test", pattern=pattern)
    if _same_scans(items):  # a folder of healthy scans, all of which an inference would take
        del items["test"]
    if groups := slice_groups(root):
        items["val"] = group_items(groups["val"]) or items["val"]
    numbers: dict[str, ScanNumbers] = {}
    splits, problems = {}, []
    for name, of_split in items.items():
        splits[name], found = _checked(name, of_split, numbers)
        problems += found
    problems += [*_extra_masks(root), *_shared_patients(items), *_shared_content(items)]
    kinds = Counter(_kind(Path(item["image"])) for of in items.values() for item in of)
    return DatasetCheck(splits, problems, dict(kinds.most_common()), numbers)


def _kind(image: Path) -> str:
    """Suffix and contrast of an image, by its name."""
    found, contrast = format_of(image), contrasts([image])
    return " ".join(["DICOM" if found is None else found.suffix, *contrast])


def _same_scans(items: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    """Whether the scans to test are those to train on and to validate with."""
    scans = {name: {item["image"] for item in of} for name, of in items.items()}
    return scans.get("test") == scans["train"] | scans["val"]


def _row(name: str, split: SplitCheck) -> str:
    sizes = Counter(split.sizes).most_common(3)
    shown = ", ".join(f"{'x'.join(map(str, size))} ({count})" for size, count in sizes)
    more = f" and {len(split.sizes) - 3} more" if len(split.sizes) > 3 else ""
    numbers = f"{split.images:8}{split.healthy:9}{split.anomalous:11}{split.masks:7}"
    return f"{name:8}{numbers}  {shown}{more}"


def _checked(
    name: str, items: Sequence[Mapping[str, Any]], numbers: dict[str, ScanNumbers]
) -> tuple[SplitCheck, list[str]]:
    """A split, and what is wrong with its files; the numbers of its volumes are added."""
    sizes: Counter[tuple[int, ...]] = Counter()
    counts: Counter[str] = Counter()
    problems: defaultdict[str, list[str]] = defaultdict(list)
    load, load_mask = LoadVolume(), LoadVolume(allow_constant=True)
    colours, many = [], f"{name}: masks of many grey levels, all above 0 are lesion"
    for item in tqdm(items, desc=name, disable=None):
        try:
            image = load(item["image"])
            channels, *sides = image.shape
            size = tuple(sides)
            if not is_picture(item["image"]):
                numbers[item["image"]] = numbers_of(image, item["image"])
            lesion, levels = _lesion(item, size, load_mask)
        except ValueError as error:
            problems[str(error)].append(str(item["image"]))
            continue
        sizes[size] += 1
        if channels > 1:
            colours.append(str(item["image"]))
        if levels > _LEVELS:
            problems[f"{many} (lesion_label=255 takes the highest)"].append(str(item["label"]))
        anomalous = lesion if item.get("anomalous") is None else item["anomalous"]
        anomalous = False if name != "test" and anomalous is None else anomalous
        counts[{True: "anomalous", False: "healthy", None: "unknown"}[anomalous]] += 1
        counts["masks"] += "label" in item
        for problem in _mask_problems(name, item, lesion, anomalous):
            problems[problem].append(str(item["image"]))
    if 0 < len(colours) < sizes.total():
        problems[f"{name}: pictures in colour among grey ones"] = colours
    split = SplitCheck(
        len(items), counts["healthy"], counts["anomalous"], counts["masks"], dict(sizes)
    )
    return split, [_line(problem, files) for problem, files in problems.items()]


def _mask_problems(
    name: str, item: Mapping[str, Any], lesion: bool | None, anomalous: bool | None
) -> Iterator[str]:
    if lesion is None and anomalous:
        yield f"{name}: anomalous images without a mask"
    elif anomalous is None:
        yield f"{name}: images without a mask, of which nothing is known"
    if item.get("anomalous") is True and lesion is False:
        yield f"{name}: anomalous images with an empty mask"
    if item.get("anomalous") is False and lesion:
        yield f"{name}: healthy images with a mask that is not empty"


def _line(problem: str, files: Sequence[str]) -> str:
    """An irregularity with the files that show it."""
    if any(file in problem for file in files):
        return problem
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return f"{problem}: {len(files)} ({', '.join(files[:_SHOWN])}{more})"


def _lesion(
    item: Mapping[str, Any], size: tuple[int, ...], load: LoadVolume
) -> tuple[bool | None, int]:
    """Whether a mask holds a lesion, None without a mask, and how many values it has."""
    if "label" not in item:
        return None, 0
    mask = load(item["label"])
    if tuple(mask.shape[1:]) != size:
        raise InputError(
            f"{item['label']}: must have the size {size} of {item['image']},"
            f" got {tuple(mask.shape[1:])}"
        )
    plain = mask.as_tensor()
    return bool((plain > 0).any()), len(plain.unique())


def _extra_masks(root: Path) -> Iterator[str]:
    """Masks of no image, of a data set of slices or one of volumes."""
    groups = slice_groups(root) or {}
    folders = [(g.images, g.masks, g.ending) for of in groups.values() for g in of]
    if not groups and (root / "test/labels").is_dir() and (root / "test/images").is_dir():
        folders = [(root / "test/images", root / "test/labels", "")]
    for images, masks, ending in folders:
        known = {stem(path) + ending for path in images_in(images)}
        extra = [str(path) for path in images_in(masks) if stem(path) not in known]
        if extra:
            yield _line("masks without an image", extra)


def _shared_patients(items: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Patients in two splits."""
    for (one, ours), (other, theirs) in _pairs(items):
        shared = {item["patient"] for item in ours if "patient" in item}
        shared &= {item["patient"] for item in theirs if "patient" in item}
        if shared:
            yield _line(f"patients in both {one} and {other}", sorted(shared))


def _shared_content(items: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Images whose file has the same content in two splits."""
    by_size: defaultdict[int, list[Path]] = defaultdict(list)
    files = {name: [Path(item["image"]) for item in of] for name, of in items.items()}
    for path in (path for paths in files.values() for path in paths if path.is_file()):
        by_size[path.stat().st_size].append(path)
    digests = {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for paths in by_size.values()
        if len(paths) > 1
        for path in paths
    }
    for (one, ours), (other, theirs) in _pairs(files):
        known = {digests[path] for path in ours if path in digests}
        shared = [str(path) for path in theirs if digests.get(path) in known]
        if shared:
            yield _line(f"files of the same content in {one} and {other}", shared)


def _pairs(splits: Mapping[str, Any]) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    listed = [*splits.items()]
    for number, first in enumerate(listed):
        for second in listed[number + 1 :]:
            yield first, second
