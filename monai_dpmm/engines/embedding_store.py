"""Embeddings of scans on disk, each made once, for all that trains on them or compares them."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset
from monai.transforms import Compose
from monai.utils import ensure_tuple
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from monai_dpmm.engines import embedding_file
from monai_dpmm.engines.distributed import interleaved, is_main_process, own_items
from monai_dpmm.engines.embedding_file import DTYPES, FORMAT, DamagedError, Direction
from monai_dpmm.engines.file_digests import FileDigests
from monai_dpmm.engines.fingerprint import fingerprint, scan_content
from monai_dpmm.engines.prefetching import prefetched
from monai_dpmm.errors import FileError, InputError
from monai_dpmm.files import sweep
from monai_dpmm.transforms.dictionary import EmbedPatchesd, ExtractSlicesd
from monai_dpmm.transforms.labels import IgnoreLabelledPatchesd
from monai_dpmm.transforms.metatensors import DIRECTION, PLACE

__all__ = ["StoredEmbeddings", "StoredSlices"]

_LOGGER = logging.getLogger(__name__)
_DIGESTS = "digests.json"
_DAY = 86_400
_COUNTED = 10.0  # seconds that the size of the folder is taken to be what it was


class StoredSlices(Sequence[Tensor]):
    """Slices (h, w, D) of many scans that are not background only, float32, read when asked for.

    Args:
        paths: files of the scans, see `StoredEmbeddings`.
        directions: of each scan.
        unit_norm: scale the embeddings to unit norm.
        remake: writes the file of a scan again, by its number; called where it is gone or damaged.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        directions: Sequence[Sequence[Direction]],
        *,
        unit_norm: bool,
        remake: Callable[[int], None],
    ) -> None:
        self.paths = list(paths)
        self.unit_norm = unit_norm
        self.features = {one.features for scan in directions for one in scan}
        self._remake = remake
        rows = [
            torch.tensor([(scan, one.number, i) for i in one.slices], dtype=torch.int32).view(-1, 3)
            for scan, each in enumerate(directions)
            for one in each
        ]
        self._index = torch.cat(rows) if rows else torch.empty(0, 3, dtype=torch.int32)
        self._checked = torch.zeros(len(self._index), dtype=torch.bool)

    @property
    def directions(self) -> Tensor:
        """Direction of each slice: (n,) int64."""
        return self._index[:, 1].long()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Any) -> Any:
        return self.item(index)["image"]

    def item(self, index: int) -> dict[str, Any]:
        """A slice's "image" (h, w, D), the "place" of its patches (h, w, 3), its "direction".

        Its checksum is compared when it is read first.
        """
        scan, direction, number = self._index[index].tolist()
        where = (self.paths[scan], direction, number)
        check = not bool(self._checked[index])
        try:
            grid, place = embedding_file.read_slice(*where, check=check)
        except (DamagedError, FileNotFoundError) as error:
            _LOGGER.warning("%s is damaged and made again (%s)", self.paths[scan], error)
            self._remake(scan)
            grid, place = embedding_file.read_slice(*where, check=True)
        self._checked[index] = True
        image = F.normalize(grid, dim=-1) if self.unit_norm else grid
        return {"image": image, PLACE: place, DIRECTION: direction}


class StoredEmbeddings(Dataset):
    """MONAI's Dataset of embeddings, kept in a folder: item i is {"image": (S, h, w, D)}.

    Each scan is embedded once, and never again by a later run: its file is named after the bytes
    of the scan and of its label, the transforms and the backbone's weights, so that what has
    changed is embedded anew. Files are safetensors, which hold no code and are mapped into memory,
    one a scan with a tensor for each direction (see `ExtractSlicesd`); what is torn, or altered in
    a single bit, is made again when it is read. Several processes may write into one folder. Where
    nothing but `IgnoreLabelledPatchesd` follows `EmbedPatchesd`, embeddings are kept as the
    backbone gives them and scaled when read.

    Args:
        data: dictionaries of paths.
        transform: from paths to embeddings ("image"), and slices of a label where that is kept.
        cache_dir: the folder, made where it does not exist. It holds patient data.
        dtype: "float32", or "float16" of half the size; what is read is float32.
        limit_gb: what the folder may hold at most, 10^9 bytes; as much as the disk if None.
        keep: whether anything is kept; otherwise items are embedded whenever they are read, and
            `SliceDataLoader` trains on them as they come.

    Raises:
        InputError: for another dtype; on writing, for embeddings that float16 cannot hold, and for
            a scan that has changed since its file was named.
        OSError: on writing, beyond the limit or on a full disk.
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Any,
        cache_dir: str | Path,
        *,
        dtype: str = "float32",
        limit_gb: float | None = None,
        keep: bool = True,
    ) -> None:
        if dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        steps = Compose(ensure_tuple(transform)).flatten().transforms
        kept, self.unit_norm = _as_embedded(steps)
        super().__init__(data, Compose(kept))
        first = next((i for i, s in enumerate(kept) if isinstance(s, ExtractSlicesd)), 0)
        self.loading, self.slicing = Compose(kept[:first]), Compose(kept[first:])
        self.cache_dir = Path(cache_dir).expanduser()
        self.dtype = DTYPES[dtype]
        self.limit_gb = limit_gb
        self.keep = keep
        self._steps = fingerprint(FORMAT, dtype, kept)
        self._digests = FileDigests(self.cache_dir / _DIGESTS)
        self._paths: dict[int, Path] = {}
        self._size, self._size_at = 0, -_COUNTED

    def path(self, index: int) -> Path:
        """File of a scan's embeddings."""
        if index not in self._paths:
            self._paths[index] = self._path_now(index, self._digests)
        return self._paths[index]

    def embed(self) -> list[list[Direction]]:
        """Embed what is not there yet, of several processes each its share; what all scans hold."""
        sweep(self.cache_dir)
        own = list(own_items(range(len(self))))
        found = {index: _directions(self.path(index)) for index in own}
        missing = [index for index, directions in found.items() if directions is None]
        hidden = not missing or not is_main_process() or "TQDM_DISABLE" in os.environ
        loaded = prefetched(self._loaded, missing)
        for index in tqdm(missing, "Embedding", disable=hidden or None):  # None: in a pipe
            self._write(index, next(loaded))
            found[index] = _directions(self.path(index))
        self._digests.save()
        paths = interleaved([self.path(index) for index in own])
        self._paths = dict(enumerate(paths))
        return interleaved([found[index] or [] for index in own])

    def slices(self, *, unit_norm: bool | None = None) -> StoredSlices:
        """Slices of all scans, see `StoredSlices`; scaled as the transform has it if None."""
        directions = self.embed()
        scaled = self.unit_norm if unit_norm is None else unit_norm
        paths = list(self._paths.values())
        return StoredSlices(paths, directions, unit_norm=scaled, remake=self._write)

    def read(self, index: int) -> Any:
        """A scan's embeddings as they are kept, with the "place" of each patch (S, h, w, 3).

        And slices of its label (S, H, W), bool, if it has one. Of several directions a list, each
        with its number as "direction".
        """
        try:
            items = embedding_file.read(self.path(index))
        except (DamagedError, FileNotFoundError) as error:
            if isinstance(error, DamagedError):
                _LOGGER.warning("%s is damaged and made again (%s)", self.path(index), error)
            self._write(index)
            items = embedding_file.read(self.path(index))
        return items[0] if len(items) == 1 else items

    def streamed(self, indices: Sequence[int]) -> Iterator[Any]:
        """The items of scans, embedded one after another; nothing is read or kept."""
        yield from (self._scaled(self.slicing(one)) for one in prefetched(self._loaded, indices))

    def _transform(self, index: int) -> Any:
        return self._scaled(self.read(index) if self.keep else self.slicing(self._loaded(index)))

    def _scaled(self, items: Any) -> Any:
        if self.unit_norm:
            for item in items if isinstance(items, list) else [items]:
                item["image"] = F.normalize(item["image"], dim=-1)
        return items

    def _loaded(self, index: int) -> Any:
        """What the transforms before `ExtractSlicesd` make of a scan."""
        return self.loading(copy.copy(self.data[index]))

    def _path_now(self, index: int, digests: FileDigests) -> Path:
        key = fingerprint(self._steps, scan_content(self.data[index], digests))
        return self.cache_dir / f"{key}.safetensors"

    def _write(self, index: int, loaded: Any = None) -> None:
        """Embed a scan, loaded here if it is not; its file is there when it is complete."""
        path = self.path(index)
        result = self.slicing(self._loaded(index) if loaded is None else loaded)
        items = result if isinstance(result, list) else [result]
        if self._path_now(index, self._digests) != path:
            raise InputError(f"{self.data[index]}: must stay as it is during a run, it has changed")
        self._require_room(path, sum(item["image"].numel() for item in items))
        embedding_file.write(path, items, self.dtype)

    def _require_room(self, path: Path, numbers: int) -> None:
        if self.limit_gb is None:
            return
        if time.monotonic() - self._size_at >= _COUNTED:
            files = os.scandir(self.cache_dir) if self.cache_dir.is_dir() else ()
            self._size = sum(file.stat().st_size for file in files if file.is_file())
            self._size_at = time.monotonic()
        self._size += numbers * self.dtype.itemsize
        if self._size > 1e9 * self.limit_gb:
            raise FileError(
                f"{path.parent}: must stay within embedding_limit_gb={self.limit_gb:g}; clear it"
                " (monai-dpmm embeddings), allow more, or train with keep_embeddings=false"
            )


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


def _directions(path: Path) -> list[Direction] | None:
    """What a scan's file holds, None where there is none, or none that is whole."""
    try:
        found = embedding_file.directions(path)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        _LOGGER.warning("%s is damaged and made again (%s)", path, error)
        return None
    _mark_used(path)
    return found


def _mark_used(path: Path) -> None:
    """Set the time of a file, which tells `monai-dpmm embeddings` the day it was used last."""
    try:
        if time.time() - path.stat().st_mtime > _DAY:
            os.utime(path)
    except OSError:  # somebody else's folder, which may be read all the same
        _LOGGER.debug("%s is read-only", path)
