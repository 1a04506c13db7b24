"""Embeddings of scans on disk, each made once, for all that trains on them or compares them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.data import Dataset
from monai.engines import PrepareBatch
from monai.transforms import Compose
from monai.utils import convert_to_tensor, ensure_tuple
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from monai_dpmm.engines.distributed import interleaved, is_main_process, own_items
from monai_dpmm.engines.fingerprint import fingerprint, scan_content
from monai_dpmm.errors import FileError
from monai_dpmm.files import atomic_write
from monai_dpmm.transforms.dictionary import EmbedPatchesd
from monai_dpmm.transforms.labels import IgnoreLabelledPatchesd
from monai_dpmm.transforms.metatensors import DIRECTION, PLACE

__all__ = ["PrepareEmbedded", "StoredEmbeddings", "StoredSlices"]

_LOGGER = logging.getLogger(__name__)


class _Direction(NamedTuple):
    """Of a scan's slices along one axis: its number, the slices that are not background only, D."""

    number: int
    slices: list[int]
    features: int


class StoredSlices(Sequence[Tensor]):
    """Slices (h, w, D) of many scans that are not background only, float32, read when asked for.

    Args:
        paths: files of the scans, see `StoredEmbeddings`.
        directions: of each scan.
        unit_norm: scale the embeddings to unit norm.
    """

    def __init__(
        self, paths: Sequence[Path], directions: Sequence[Sequence[_Direction]], *, unit_norm: bool
    ) -> None:
        self.paths = list(paths)
        self.unit_norm = unit_norm
        self.features = {one.features for scan in directions for one in scan}
        rows = [
            torch.tensor([(scan, one.number, i) for i in one.slices], dtype=torch.int32).view(-1, 3)
            for scan, each in enumerate(directions)
            for one in each
        ]
        self._index = torch.cat(rows) if rows else torch.empty(0, 3, dtype=torch.int32)

    @property
    def directions(self) -> Tensor:
        """Direction of each slice: (n,) int64."""
        return self._index[:, 1].long()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Any) -> Any:
        return self.item(index)["image"]

    def item(self, index: int) -> dict[str, Any]:
        """A slice's "image" (h, w, D), the "place" of its patches (h, w, 3), its "direction"."""
        scan, direction, number = self._index[index].tolist()
        with safe_open(self.paths[scan], "pt") as file:
            grid = file.get_slice(f"image_{direction}")[number].float()
            place = file.get_slice(f"place_{direction}")[number].float()
        image = F.normalize(grid, dim=-1) if self.unit_norm else grid
        return {"image": image, PLACE: place, DIRECTION: direction}


class StoredEmbeddings(Dataset):
    """MONAI's Dataset of embeddings, kept in a folder: item i is {"image": (S, h, w, D)}.

    Each scan is embedded once, and never again by a later run: its file is named after the bytes
    of the scan and of its label, the transforms and the backbone's weights, so that what has
    changed is embedded anew. Files are safetensors, which hold no code and are mapped into memory,
    one a scan with a tensor for each direction (see `ExtractSlicesd`); what is not whole is made
    again. Several processes may write into one folder. Where nothing but `IgnoreLabelledPatchesd`
    follows `EmbedPatchesd`, embeddings are kept as the backbone gives them and scaled when read.

    Args:
        data: dictionaries of paths.
        transform: from paths to embeddings ("image"), and slices of a label where that is kept.
        cache_dir: the folder, made where it does not exist. It holds patient data.
    """

    def __init__(self, data: Sequence[Any], transform: Any, cache_dir: str | Path) -> None:
        steps = Compose(ensure_tuple(transform)).flatten().transforms
        kept, self.unit_norm = _as_embedded(steps)
        super().__init__(data, Compose(kept))
        self.cache_dir = Path(cache_dir).expanduser()
        self._steps = fingerprint(kept)
        self._paths: dict[int, Path] = {}

    def path(self, index: int) -> Path:
        """File of a scan's embeddings."""
        if index not in self._paths:
            key = fingerprint(self._steps, scan_content(self.data[index]))
            self._paths[index] = self.cache_dir / f"{key}.safetensors"
        return self._paths[index]

    def embed(self) -> list[list[_Direction]]:
        """Embed what is not there yet, of several processes each its share; what all scans hold."""
        own = list(own_items(range(len(self))))
        found = {index: _directions(self.path(index)) for index in own}
        missing = [index for index, directions in found.items() if directions is None]
        for index in tqdm(missing, "Embedding", disable=not missing or not is_main_process()):
            self._write(index)
            found[index] = _directions(self.path(index))
        paths = interleaved([self.path(index) for index in own])
        self._paths = dict(enumerate(paths))
        return interleaved([found[index] or [] for index in own])

    def slices(self, *, unit_norm: bool | None = None) -> StoredSlices:
        """Slices of all scans, see `StoredSlices`; scaled as the transform has it if None."""
        directions = self.embed()
        scaled = self.unit_norm if unit_norm is None else unit_norm
        return StoredSlices(list(self._paths.values()), directions, unit_norm=scaled)

    def read(self, index: int) -> Any:
        """A scan's embeddings as they are kept, with the "place" of each patch (S, h, w, 3).

        And slices of its label (S, H, W), bool, if it has one. Of several directions a list, each
        with its number as "direction".
        """
        if (directions := _directions(self.path(index))) is None:
            self._write(index)
            directions = _directions(self.path(index)) or []
        with safe_open(self.path(index), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        items: list[dict[str, Any]] = []
        for number, *_ in directions:
            item = {"image": tensors[f"image_{number}"].float(), DIRECTION: number}
            item[PLACE] = tensors[f"place_{number}"].float()
            if f"label_{number}" in tensors:
                item["label"] = tensors[f"label_{number}"]
            items.append(item)
        return items[0] if len(items) == 1 else items

    def _transform(self, index: int) -> Any:
        read = self.read(index)
        if self.unit_norm:
            for item in read if isinstance(read, list) else [read]:
                item["image"] = F.normalize(item["image"], dim=-1)
        return read

    def _write(self, index: int) -> None:
        """Embed a scan; its file is there when it is complete."""
        result: Any = self.transform(copy.copy(self.data[index]))
        tensors = {}
        for item in result if isinstance(result, list) else [result]:
            direction = item.get(DIRECTION, 0)
            grid = convert_to_tensor(item["image"], track_meta=False).contiguous()
            tensors[f"image_{direction}"] = grid
            tensors[f"foreground_{direction}"] = grid.flatten(1).any(1)
            # transforms of one's own may give none: all patches are in the middle then
            place = item.get(PLACE, torch.full((*grid.shape[:-1], 3), 0.5))
            tensors[f"place_{direction}"] = place.half().contiguous()
            if "label" in item:
                label = convert_to_tensor(item["label"], track_meta=False)
                tensors[f"label_{direction}"] = (label[:, 0] > 0).contiguous()
        path = self.path(index)
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            try:
                save_file(tensors, partial, {"key": path.stem})
            except SafetensorError as error:
                raise FileError(f"{path}: could not be written, {error}") from error


class PrepareEmbedded(PrepareBatch):
    """MONAI's batch for an evaluator whose inferer takes embeddings, see `AnomalyInferer`.

    Args:
        embeddings: of the scans; a batch is of one, and says its number at "scan".
    """

    def __init__(self, embeddings: StoredEmbeddings) -> None:
        self.embeddings = embeddings

    def __call__(
        self,
        batchdata: Any,
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Image, no label, no arguments, and the scan's embeddings by name."""
        (number,) = batchdata["scan"].tolist()
        item = self.embeddings[number]
        image = batchdata["image"].to(device, non_blocking=non_blocking)
        return image, None, (), {"embeddings": item if isinstance(item, list) else [item]}


def _as_embedded(steps: Sequence[Any]) -> tuple[list[Any], bool]:
    """The steps with embeddings as the backbone gives them, and whether to scale them later.

    Only where that commutes with what follows; otherwise the steps as they are.
    """
    places = [i for i, step in enumerate(steps) if isinstance(step, EmbedPatchesd)]
    after = steps[places[-1] + 1 :] if places else ()
    if len(places) != 1 or not all(isinstance(step, IgnoreLabelledPatchesd) for step in after):
        return list(steps), False
    (place,) = places
    embed = copy.copy(steps[place])
    embed.transform = copy.copy(embed.transform)
    unit_norm = embed.transform.options["unit_norm"]
    embed.transform.options = embed.transform.options | {"unit_norm": False}
    return [*steps[:place], embed, *after], unit_norm


def _directions(path: Path) -> list[_Direction] | None:
    """What a scan's file holds, None where there is none, or none that is whole."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != path.stem:
                return None
            names = [name for name in file.keys() if name.startswith("image_")]  # noqa: SIM118
            return [
                _Direction(
                    number,
                    file.get_tensor(f"foreground_{number}").nonzero()[:, 0].tolist(),
                    file.get_slice(f"image_{number}").get_shape()[-1],
                )
                for number in sorted(int(name.removeprefix("image_")) for name in names)
            ]
    except FileNotFoundError:
        return None
    except SafetensorError as error:
        _LOGGER.warning("%s is damaged and made again (%s)", path, error)
        return None
