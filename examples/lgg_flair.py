"""Kaggle's "LGG MRI Segmentation" as slices of FLAIR, split by patient, in BMAD's layout.

The set (folder `kaggle_3m`, 110 patients of TCGA-LGG, masks by Buda et al., CC BY-NC-SA 4.0) is
downloaded by hand; images must be cited and used as its page says.

    python examples/lgg_flair.py kaggle_3m lgg_flair
    python -m monai_dpmm compare lgg_flair -c examples/lgg_flair.json
    python -m monai_dpmm train lgg_flair -c examples/lgg_flair.json
    python -m monai_dpmm evaluate lgg_flair

Slices without a tumour lie more often high or low in the head, so test_level_matched.csv lists as
many of either kind at each level: `compare` tells healthy slices from others by these as well.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FLAIR = 1  # channel of the three: before contrast, FLAIR, after contrast
DARK = 0.1  # of the patient's 99.5th percentile: what is darker is taken for air
LEVELS = 20  # of the head, in each of which the matched slices are as many of either kind
HEAD = 0.1  # share of a slice that must be brighter, else it shows too little of the head


def main() -> None:
    """Write the slices, and slices.csv with what each is and at which level it lies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="kaggle_3m, as downloaded")
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the split of patients")
    parser.add_argument("--every", type=int, default=1, help="keep every n-th slice")
    args = parser.parse_args()
    args.target.mkdir(parents=True)

    patients = sorted({path.parent for path in args.source.glob("*/*_mask.tif")})
    if len(patients) < 3:
        parser.error(f"{args.source} must hold a folder for each of at least 3 patients")
    rows = []
    for patient, split in splits(patients, args.seed):
        rows += write(patient, args.target, split, args.every)
    test = [row for row in rows if row["split"] == "test"]
    for name, listed in (("slices", rows), ("test_level_matched", matched(test, args.seed))):
        with (args.target / f"{name}.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(listed)
    for split in ("train", "valid", "test"):
        classes = [row["class"] for row in rows if row["split"] == split]
        kinds = ", ".join(f"{classes.count(kind)} {kind}" for kind in ("good", "Ungood"))
        people = len({row["patient"] for row in rows if row["split"] == split})
        print(f"{split}: {people} patients, {kinds}")


def splits(patients: list[Path], seed: int) -> list[tuple[Path, str]]:
    """Each patient with its split: half of them train, 15 % are for validation, the rest tests."""
    shuffled = random.Random(seed).sample(patients, len(patients))
    train, valid = len(patients) // 2, max(1, round(0.15 * len(patients)))
    names = ["train"] * train + ["valid"] * valid
    return [*zip(shuffled, names + ["test"] * (len(patients) - len(names)), strict=True)]


def write(patient: Path, target: Path, split: str, every: int) -> list[dict[str, Any]]:
    """Write the slices of a patient that show enough head; rows of slices.csv.

    A slice is "good" if neither it nor its neighbours have a tumour. Those beside a tumour are left
    out, and of training patients those with one as well.
    """
    numbers = {
        int(found[1]): path
        for path in patient.glob("*_mask.tif")
        if (found := re.fullmatch(r".*_(\d+)_mask", path.stem))
    }
    masks = [np.asarray(Image.open(numbers[n])) > 0 for n in sorted(numbers)]
    images = [flair(numbers[n]) for n in sorted(numbers)]
    tumour = [bool(mask.any()) for mask in masks]
    head = np.stack(images) > DARK * np.percentile(np.stack(images), 99.5)
    rows = []
    for i, number in enumerate(sorted(numbers)):
        near = any(tumour[max(0, i - 1) : i + 2])
        unclear = near and not tumour[i]
        if i % every or unclear or head[i].mean() < HEAD or (near and split == "train"):
            continue
        kind = "Ungood" if near else "good"
        name = f"{patient.name}_{number:03d}.png"
        folder = target / split / kind
        save(images[i], (folder if split == "train" else folder / "img") / name)
        if split != "train":
            save(masks[i].astype(np.uint8) * 255, folder / "label" / name)
        rows.append(
            {
                "file": name,
                "patient": patient.name,
                "split": split,
                "class": kind,
                "rel_level": round(i / max(1, len(masks) - 1), 3),
                "mask_pixels": int(masks[i].sum()),
            }
        )
    return rows


def matched(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Rows of as many good as Ungood slices in each twentieth of the head, drawn by seed."""
    draw, kept = random.Random(seed), []
    for level in range(LEVELS + 1):
        there = [row for row in rows if int(LEVELS * row["rel_level"]) == level]
        kinds = [[row for row in there if row["class"] == kind] for kind in ("good", "Ungood")]
        count = min(map(len, kinds))
        kept += [row for kind in kinds for row in draw.sample(kind, count)]
    return kept


def flair(mask: Path) -> NDArray[np.uint8]:
    """FLAIR slice of a mask: (256, 256)."""
    return np.asarray(Image.open(mask.with_name(mask.name.replace("_mask", ""))))[..., FLAIR]


def save(image: NDArray[np.uint8], path: Path) -> None:
    """Write a grey PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


if __name__ == "__main__":
    main()
