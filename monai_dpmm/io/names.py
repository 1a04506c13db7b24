"""What the name of a file or folder says: a mask, something ill, a contrast, whose label it is."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from monai_dpmm.io.suffixes import stem

__all__ = ["Labels", "contrasts", "is_ill", "is_mask", "mixed_contrasts", "subject"]

_MASKS = {
    *("seg", "segs", "segm", "dseg", "probseg", "aseg", "aparc", "segmentation", "segmentations"),
    *("mask", "masks", "label", "labels", "lbl", "roi", "rois", "truth", "groundtruth", "gt"),
    *("annotation", "annotations", "contour", "contours"),
}
_ILL = {
    *("abnormal", "anomaly", "anomalies", "anomalous", "ungood", "lesion", "lesions", "defect"),
    *("tumor", "tumors", "tumour", "tumours", "cancer", "carcinoma", "malignant", "glioma"),
    *("glioblastoma", "meningioma", "metastasis", "metastases", "stroke", "infarct", "defects"),
    *("hemorrhage", "haemorrhage", "disease", "diseased", "pathology", "pathologic"),
    *("pathological", "sick"),
}
_NOT, _FREE = {"no", "non", "not", "without"}, {"free", "negative"}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_CONTRASTS = {
    *("t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t1post", "t2", "t2w", "t2f", "t2star", "flair"),
    *("pd", "pdw", "dwi", "adc", "swi", "bold", "asl", "epi", "mra", "tof", "uni", "inv1", "inv2"),
    *("t1map", "t2map", "ct", "pet", "mprage", "ir", "sbref", "b0", "fa", "md"),
}
_CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net's
_ENDINGS = ("", "_seg", "_mask", "_label", "-seg", "-mask", "-label", "_dseg", "_gt", "_roi")


def is_mask(name: str) -> bool:
    """Whether a name says that it is a mask or a label map, or a folder of them."""
    return any(word in _MASKS for word in _words(name))


def is_ill(name: str) -> bool:
    """Whether a name says that what it holds is not healthy; "tumor_free" does not."""
    words = ["", *_words(name), ""]
    return any(
        word in _ILL and before not in _NOT and after not in _FREE
        for before, word, after in zip(words, words[1:], words[2:], strict=False)
    )


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _split(name: str) -> tuple[str, str]:
    """What names a scan but for its contrast, and that; the latter is empty where none is told."""
    parts = re.split(r"([^A-Za-z0-9]+)", name)
    for at in range(len(parts) - 1, -1, -1):
        if parts[at].lower() in _CONTRASTS:
            return "".join(parts[: max(at - 1, 0)] + parts[at + 1 :]), parts[at].lower()
    return name, ""


def contrasts(images: Iterable[Path]) -> Counter[str]:
    """How many images there are of each contrast that their names tell."""
    return Counter(kind for image in images if (kind := _split(stem(image))[1]))


def mixed_contrasts(images: Iterable[Path]) -> bool:
    """Whether there are several contrasts of one scan."""
    kinds: defaultdict[tuple[Path, str], set[str]] = defaultdict(set)
    for image in images:
        rest, kind = _split(stem(image))
        kinds[image.parent, rest].add(kind)
    return any(len(one - {""}) > 1 for one in kinds.values())


def subject(image: Path) -> str | None:
    """Subject by BIDS, "sub-01", of whom there may be several sessions; None if unknown."""
    found = re.search(r"(?:^|/)(sub-[A-Za-z0-9]+)(?=[_/])", image.as_posix())
    return found[1] if found else None


class Labels:
    """Labels by the names of their images.

    Args:
        paths: of labels, or of images and labels that lie beside each other.
        root: their folder.
    """

    def __init__(self, paths: Iterable[Path], root: Path) -> None:
        self._by_name: dict[tuple[Path, str], Path] = {}
        for path in paths:
            place = path.relative_to(root)
            for name in (place.name, stem(place)):
                self._by_name.setdefault((place.parent, name), path)

    def of(self, image: Path, *, beside: bool = False) -> Path | None:
        """The label of an image at a path below its folder: of its name, or one of its variants.

        Its name without a contrast or nnU-Net's channel will do as well, with an ending of masks
        ("_seg", "_mask", ...), and any suffix of images. Beside images there must be an ending.
        """
        own = stem(image)
        names = dict.fromkeys((own, _CHANNEL.sub("", own), _split(own)[0]))
        wanted = [f"{name}{ending}" for name in names for ending in _ENDINGS[beside:]]
        if not beside:
            wanted.insert(0, image.name)
        found = (self._by_name.get((image.parent, name)) for name in wanted)
        return next((path for path in found if path is not None), None)
