"""A scan's embeddings in a file: written whole, each slice checked when it is read."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.utils import convert_to_tensor
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.files import atomic_write
from monai_dpmm.transforms.metatensors import DIRECTION, PLACE

__all__ = ["DTYPES", "DamagedError", "Direction", "directions", "read", "read_slice", "write"]

DTYPES = {"float32": torch.float32, "float16": torch.float16}
FORMAT = 2  # part of every file's name; 1 had no checksums
_PARTS = ("image", "place", "label")  # of a slice, what its checksum is of


class DamagedError(ValueError):
    """A file that is not what was written."""


class Direction(NamedTuple):
    """Of a scan's slices along one axis: its number, the slices that are not background only, D."""

    number: int
    slices: list[int]
    features: int


def write(path: Path, items: Sequence[Mapping[str, Any]], dtype: torch.dtype) -> None:
    """Write the embeddings of a scan along one axis or several; whatever fails leaves nothing.

    A safetensors file: of direction n "image_n" (S, h, w, D), "place_n" (S, h, w, 3) float16, and
    "label_n" (S, H, W) bool where there is one; "foreground_n" (S,) tells the slices that are not
    background only, "check_n" (S,) is the CRC-32 of each slice's part of the first three. The
    metadata are one "key", the file's name without suffix and the CRC-32 of these two tables.

    Raises:
        InputError: for embeddings that the dtype cannot hold.
        OSError: where the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for item in items:
        number = item.get(DIRECTION, 0)
        grid = convert_to_tensor(item["image"], track_meta=False)
        kept = grid.to(dtype).contiguous()
        if bool(grid.isfinite().all()) and not bool(kept.isfinite().all()):
            raise InputError(
                f"embedding_dtype must be float32 for this backbone, whose embeddings reach"
                f" {float(grid.abs().max()):.4g}, got float16"
            )
        # transforms of one's own may give none: all patches are in the middle then
        place = item.get(PLACE, torch.full((*grid.shape[:-1], 3), 0.5))
        tensors[f"image_{number}"] = kept
        tensors[f"place_{number}"] = place.half().contiguous()
        if "label" in item:
            label = convert_to_tensor(item["label"], track_meta=False)
            tensors[f"label_{number}"] = (label[:, 0] > 0).contiguous()
        own = [tensors[f"{part}_{number}"] for part in _PARTS if f"{part}_{number}" in tensors]
        tensors[f"foreground_{number}"] = kept.flatten(1).any(1)
        checks = [_checksum(*(tensor[i] for tensor in own)) for i in range(len(kept))]
        tensors[f"check_{number}"] = torch.tensor(checks, dtype=torch.int64)
    metadata = {"key": _key(path, tensors)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:  # save_file would put another file in its place, unlocked
        partial.write_bytes(save(tensors, metadata))


def directions(path: Path) -> list[Direction]:
    """What the file of a scan holds.

    Raises:
        FileNotFoundError: where there is none.
        DamagedError: where it is not whole, or another file's.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = sorted(file.keys())
            tables = {n: file.get_tensor(n) for n in names if n.startswith(("check", "foreground"))}
            if metadata.get("key") != _key(path, tables):
                raise DamagedError("it is of another scan, or its tables are altered")
            return [
                Direction(
                    number,
                    tables[f"foreground_{number}"].nonzero()[:, 0].tolist(),
                    file.get_slice(f"image_{number}").get_shape()[-1],
                )
                for number in sorted(int(n.removeprefix("image_")) for n in names if "image" in n)
            ]
    except (SafetensorError, LookupError) as error:
        raise DamagedError(str(error)) from error


def read_slice(path: Path, direction: int, number: int, *, check: bool) -> tuple[Tensor, Tensor]:
    """A slice's embeddings (h, w, D) and the places of its patches (h, w, 3), float32.

    Raises:
        FileNotFoundError, DamagedError: see `directions`; where it is to be checked, also for a
            slice that is not what was written.
    """
    try:
        with safe_open(path, "pt") as file:
            names = [f"{part}_{direction}" for part in _PARTS]
            there = set(file.keys()) if check else names[:2]
            own = [file.get_slice(name)[number] for name in names if name in there]
            if check and int(file.get_slice(f"check_{direction}")[number]) != _checksum(*own):
                raise DamagedError(f"slice {number} is not what was written")
    except SafetensorError as error:
        raise DamagedError(str(error)) from error
    return own[0].float(), own[1].float()


def read(path: Path) -> list[dict[str, Any]]:
    """All that is kept of a scan: "image", "place", "label" and "direction" of each axis.

    Raises:
        FileNotFoundError, DamagedError: see `read_slice`.
    """
    numbers = [one.number for one in directions(path)]
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    items = []
    for number in numbers:
        own = {
            part: tensors[f"{part}_{number}"] for part in _PARTS if f"{part}_{number}" in tensors
        }
        for index, expected in enumerate(tensors[f"check_{number}"].tolist()):
            if _checksum(*(tensor[index] for tensor in own.values())) != expected:
                raise DamagedError(f"slice {index} is not what was written")
        item = {"image": own["image"].float(), DIRECTION: number, PLACE: own["place"].float()}
        items.append(item | ({"label": own["label"]} if "label" in own else {}))
    return items


def _key(path: Path, tensors: Mapping[str, Tensor]) -> str:
    names = sorted(name for name in tensors if name.startswith(("check", "foreground")))
    return f"{path.stem} {_checksum(*(tensors[name] for name in names)):08x}"


def _checksum(*tensors: Tensor) -> int:
    """CRC-32 of the bytes of tensors, one after another."""
    value = 0
    for tensor in tensors:
        data = tensor.contiguous().reshape(-1).view(torch.uint8)
        value = zlib.crc32(data.numpy().data, value)
    return value
