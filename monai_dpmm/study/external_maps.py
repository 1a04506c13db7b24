"""Anomaly maps that any tool saved, one file an image: found, read and laid over their images.

A map is named like its image. It is an array of NumPy (.npy, .npz with one array), a TIFF picture
or a NIfTI volume. Axes: an array of a PNG, JPEG, TIFF or BMP image is (row, column), as pictures
are; of any other image (X, Y, Z), as nibabel and MONAI have it. A TIFF is always (row, column). A
NIfTI is as MONAI's SaveImage writes it. Axes of length 1 do not matter.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_dpmm.errors import InputError, cause
from monai_dpmm.io.nifti import read_nifti, same_grid
from monai_dpmm.io.suffixes import IMAGE_SUFFIXES, is_picture

__all__ = ["MAP_SUFFIXES", "find_maps", "laid_over", "load_map", "matched_maps"]

MAP_SUFFIXES = (".npy", ".npz", ".tif", ".tiff", ".nii", ".nii.gz")
_SHOWN = 3


def find_maps(folder: str | Path, postfix: str = "") -> list[Path]:
    """Map files below a folder, sorted.

    Args:
        folder: searched with its subfolders.
        postfix: what the names of maps end with, as "_anomaly"; other files are left alone.

    Raises:
        InputError: where the folder is missing or holds no map.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: must be a folder of anomaly maps, there is no such folder")
    endings = tuple(postfix.lower() + suffix for suffix in MAP_SUFFIXES)
    files = (p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
    maps = sorted(p for p in files if p.name.lower().endswith(endings))
    if not maps:
        raise InputError(
            f"{root}: must hold anomaly maps (NAME{postfix} and one of"
            f" {', '.join(MAP_SUFFIXES)}), got none"
        )
    return maps


def matched_maps(
    images: Sequence[str | Path],
    folder: str | Path,
    postfix: str = "",
    others: Sequence[str | Path] = (),
) -> list[Path]:
    """The map of each image, by name; by the path below the common folder if names repeat.

    Args:
        images: paths of the images.
        folder: of the maps.
        postfix: see `find_maps`.
        others: images whose maps may be there as well.

    Raises:
        InputError: where an image has no map or several, or a map no image.
    """
    paths = [Path(image) for image in (*images, *others)]
    root = Path(folder).expanduser()
    maps = find_maps(root, postfix)
    names = [_stem(path, IMAGE_SUFFIXES) for path in paths]
    stems = [_stem(path, MAP_SUFFIXES).removesuffix(postfix) for path in maps]
    if len(set(names)) < len(names):
        top = Path(os.path.commonpath([path.parent for path in paths]))
        names = [str(p.parent.relative_to(top) / n) for p, n in zip(paths, names, strict=True)]
        stems = [str(p.parent.relative_to(root) / s) for p, s in zip(maps, stems, strict=True)]
    _require_none(
        root, "hold a map for each image, none is there for", {*names[: len(images)]} - {*stems}
    )
    _require_none(root, "hold no map without an image, got", set(stems) - set(names))
    _require_none(root, "hold one map an image, several are there for", _repeated(stems))
    by_name = dict(zip(stems, maps, strict=True))
    return [by_name[name] for name in names[: len(images)]]


def load_map(path: Path, picture: bool = False) -> tuple[NDArray[np.float32], Tensor | None]:
    """Scores of a map file on MONAI's axes, float32, and its affine where it has one.

    Args:
        path: of the file.
        picture: whether the image is one, so that an array's first axis are its rows.

    Raises:
        InputError: for a file that cannot be read as one array of numbers.
    """
    suffix = next(s for s in reversed(MAP_SUFFIXES) if path.name.lower().endswith(s))
    try:
        if suffix in (".nii", ".nii.gz"):
            return _nifti(path)
        array = _tiff(path) if suffix.startswith(".tif") else _numpy(path)
        if array.dtype.kind not in "fiub":
            raise InputError(f"numbers of type {array.dtype}")
    except Exception as error:  # the readers raise whatever their libraries raise
        raise InputError(f"{path}: must be a readable anomaly map, got {cause(error)}") from error
    rows_first = picture or suffix.startswith(".tif")
    array = np.squeeze(array) if rows_first else array
    return (array.T if rows_first else array).astype(np.float32), None


def laid_over(path: Path, image: str | Path, label: Tensor) -> Tensor:
    """Map of an image on the grid of its label, float32: label (1, spatial...) -> the same shape.

    Raises:
        InputError: where the map has another shape, or a NIfTI file another affine, than the label.
    """
    picture = is_picture(image)
    array, affine = load_map(path, picture)
    wanted = tuple(label.shape[1:])
    if [n for n in array.shape if n > 1] != [n for n in wanted if n > 1]:
        order = " (width, height)" if picture else ""
        raise InputError(f"{path}: must have the label's shape {wanted}{order}, got {array.shape}")
    other = getattr(label, "affine", None)
    if (
        affine is not None
        and other is not None
        and not picture
        and not same_grid(other, affine, wanted)
    ):
        raise InputError(f"{path}: must lie on the label's grid, got another affine")
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(label.shape)


def _stem(path: Path, suffixes: Sequence[str]) -> str:
    """Name of a file without the longest suffix that it has, of a folder its name."""
    found = [s for s in suffixes if path.name.lower().endswith(s)]
    return path.name[: len(path.name) - max(map(len, found), default=0)]


def _require_none(root: Path, rule: str, names: set[str]) -> None:
    if names:
        shown = ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        raise InputError(f"{root}: must {rule} {shown} ({len(names)} in all)")


def _repeated(names: Sequence[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}


def _numpy(path: Path) -> NDArray[np.generic]:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        if len(loaded.files) != 1:
            raise InputError(f"arrays {', '.join(loaded.files)} where one is needed")
        return loaded[loaded.files[0]]


def _tiff(path: Path) -> NDArray[np.generic]:
    from PIL import Image

    with Image.open(path) as image:
        if getattr(image, "n_frames", 1) != 1:
            raise InputError(f"{image.n_frames} pages where one is needed")
        return np.asarray(image)


def _nifti(path: Path) -> tuple[NDArray[np.float32], Tensor]:
    nifti = read_nifti(path)
    return nifti.array.astype(np.float32), torch.as_tensor(nifti.affine)
