"""Embeddings of scans to batches of patches: which slices, which patches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from monai_dpmm.engines.distributed import exchanged, own_items, own_part, rank, world_size
from monai_dpmm.engines.embedding_store import StoredEmbeddings, StoredSlices
from monai_dpmm.engines.prefetching import prefetched
from monai_dpmm.engines.streaming import StreamedBatches
from monai_dpmm.errors import InputError
from monai_dpmm.transforms.metatensors import DIRECTION, PLACE

__all__ = ["SliceDataLoader", "SliceDataset", "collate_patches"]


class SliceDataset(Dataset[dict[str, Any]]):
    """Slices of all scans as one data set: item i is {"image": embeddings (h, w, D)}.

    Where the source has them, an item also holds the "place" of each patch (h, w, 3) and the
    "direction" of the slice, the number of its axis (see `ExtractSlicesd`).

    Training draws its batches over the slices of all scans (paper: 12 images a batch), while
    MONAI's datasets have one item a scan. The backbone runs at most once for each scan, here, and
    never in an epoch. Slices that are background only (see `embed_patches`) are left out.

    `StoredEmbeddings` are read from their files slice by slice, so that memory does not grow with
    the number of scans; of several processes each embeds its share. Embeddings of any other source
    are taken once and kept in memory: of several processes each takes its share and gets the
    others', so that all of them hold the slices that one process would hold.

    Args:
        source: `StoredEmbeddings`, or any data set of dictionaries with the embeddings (S, h, w, D)
            of a scan at `key`. An item may be a list of such dictionaries, one for each axis (see
            `ExtractSlicesd`).
        key: key of the embeddings.

    Raises:
        InputError: where there is no scan.
        ValueError: where no slice is left, or scans differ in their number of features.
    """

    def __init__(self, source: Sequence[Mapping[str, Any]], key: str = "image") -> None:
        if len(source) == 0:
            raise InputError(
                "data to train on and data to validate on must hold at least one scan each, got"
                " none (MONAI Label hands over images with a final label only, and sets one of"
                " three aside to validate on)"
            )
        self.source = source
        self.key = key
        self.slices: StoredSlices | list[Tensor] = (
            source.slices() if isinstance(source, StoredEmbeddings) else _in_memory(source, key)
        )
        if len(self.slices) == 0:
            raise InputError(
                f"source must hold patches that count, all those of its {len(source)} scans are"
                " background or lie under a label"
            )
        if isinstance(self.slices, StoredSlices):
            dims = self.slices.features
        else:
            dims = {int(packed.shape[-1]) - _EXTRA for packed in self.slices}
        if len(dims) != 1:
            raise InputError(f"source must hold slices of one embedding size, got {sorted(dims)}")

    @property
    def directions(self) -> Tensor:
        """Direction of each slice: (n,) int64."""
        if isinstance(self.slices, StoredSlices):
            return self.slices.directions
        return torch.tensor([int(packed[..., 0].max()) for packed in self.slices])

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):  # a batch of `_Batches`
            return [self[i] for i in index]
        if isinstance(self.slices, StoredSlices):
            item = self.slices.item(index)
            return {self.key: item.pop("image"), **item}
        return _unpacked(self.slices[index], self.key)


class SliceDataLoader(DataLoader[dict[str, Any]]):
    """Batches of patches from the slices of all scans: {"image": (N, D)}, see `SliceDataset`.

    A batch also has their "place" (N, 3), where the data set has it, and their "direction": all
    are of one, and batches of several directions take turns at random. The order of a shuffled
    epoch follows from `seed` and the epoch's number alone, which MONAI's engines set, so that a
    resumed training sees the batches that it would have seen. Of several processes each gets its
    part of every batch, which may be empty in the last one.

    `StoredEmbeddings` that are not kept are embedded again in every pass, see `StreamedBatches`.

    Args:
        dataset: data set of scans, see `SliceDataset`.
        batch_size: slices in a batch, of all processes together.
        shuffle: draw the slices of all scans in random order.
        seed: of the order.
        **kwargs: further arguments of `torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        dataset: Sequence[Mapping[str, Any]],
        batch_size: int = 12,
        *,
        shuffle: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if isinstance(dataset, StoredEmbeddings) and not dataset.keep:
            streamed: Any = StreamedBatches(dataset, batch_size, shuffle=shuffle, seed=seed)
            # what the sampler gives is the batch itself
            super().__init__(_Same(), None, sampler=streamed, collate_fn=collate_patches, **kwargs)
            return
        slices = SliceDataset(dataset)
        batches: Any = _Batches(slices.directions, batch_size, shuffle=shuffle, seed=seed)
        collate = partial(_collate_part, rank=rank(), processes=world_size())
        super().__init__(slices, None, sampler=batches, collate_fn=collate, **kwargs)

    def __iter__(self) -> Any:
        """Batches of an epoch; where scans are kept, the next is read while one is used."""
        batches = super().__iter__()
        if not isinstance(self.sampler, _Batches):  # the backbone runs here, which is no reading
            return batches
        return prefetched(lambda _: next(batches), range(len(self)))

    def of_direction(self, number: int) -> Iterator[dict[str, Any]]:
        """The batches of one direction; those of others are not read where scans are kept."""
        if not isinstance(self.sampler, _Batches):
            yield from (batch for batch in self if batch[DIRECTION] == number)
            return
        slices: Any = self.dataset
        for indices in self.sampler:
            if int(self.sampler.directions[indices[0]]) == number:
                yield self.collate_fn(slices[indices])


class _Same(Dataset[Any]):
    """A data set whose item at an index is the index."""

    def __getitem__(self, index: Any) -> Any:
        return index


class _Batches(DistributedSampler):
    """Indices of the slices of each batch, all of one direction."""

    def __init__(self, directions: Tensor, batch_size: int, *, shuffle: bool, seed: int) -> None:
        super().__init__(cast(Any, directions), num_replicas=1, rank=0, shuffle=shuffle, seed=seed)
        self.directions = directions
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Any]:
        order = torch.tensor(list(super().__iter__()))
        each = [order[self.directions[order] == one] for one in self.directions.unique()]
        batches = [batch for own in each for batch in own.split(self.batch_size)]
        if self.shuffle and len(each) > 1:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            turns = torch.randperm(len(batches), generator=generator).tolist()
            batches = [batches[i] for i in turns]
        return iter([batch.tolist() for batch in batches])

    def __len__(self) -> int:
        counts = self.directions.unique(return_counts=True)[1].tolist()
        return sum(-(-count // self.batch_size) for count in counts)


def collate_patches(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Patches of several slices, whatever their grids: items (h, w, D) -> {key: (N, D)}.

    Background patches, which are zero vectors, are left out, with their places. The direction is
    that of the first slice.
    """
    tensors = [key for key in items[0] if key != DIRECTION]
    patches = {key: torch.cat([item[key].flatten(0, -2) for item in items]) for key in tensors}
    there = next(value for key, value in patches.items() if key != PLACE).any(dim=1)
    batch: dict[str, Any] = {key: value[there] for key, value in patches.items()}
    return batch | {key: items[0][key] for key in items[0] if key == DIRECTION}


def _collate_part(items: Sequence[Mapping[str, Any]], rank: int, processes: int) -> dict[str, Any]:
    """Patches of a process's part of a batch; none, of the right shape, where that is empty."""
    own = own_part(items, rank, processes)
    if own:
        return collate_patches(own)
    whole = collate_patches(items[:1])
    return {key: value if key == DIRECTION else value[:0] for key, value in whole.items()}


_EXTRA = 4  # channels before the embedding: direction, and place, NaN where it is not known


def _in_memory(source: Sequence[Mapping[str, Any]], key: str) -> list[Tensor]:
    """Slices (h, w, 4 + D) of all scans that are not background only."""
    own = [_packed(source[i], key) for i in own_items(range(len(source)))]
    return [one for scan in exchanged(own) for one in scan if one[..., _EXTRA:].any()]


def _packed(item: Any, key: str) -> Tensor:
    """Slices (S, h, w, 4 + D) of a scan; along several axes, zeros bring all to one grid."""
    parts = []
    for one in item if isinstance(item, list) else [item]:
        embeddings = convert_to_tensor(one[key], track_meta=False)
        place = one.get(PLACE, embeddings.new_full((1, 1, 1, 3), float("nan")))
        extra = (*embeddings.shape[:-1], 3)
        direction = embeddings.new_full(embeddings.shape[:-1], one.get(DIRECTION, 0))
        packed = (direction[..., None], place.to(embeddings).expand(extra), embeddings)
        parts.append(torch.cat(packed, dim=-1))
    height, width = (max(part.shape[side] for part in parts) for side in (1, 2))
    return torch.cat(
        [F.pad(p, (0, 0, 0, width - p.shape[2], 0, height - p.shape[1])) for p in parts]
    )


def _unpacked(packed: Tensor, key: str) -> dict[str, Any]:
    place = packed[..., 1:_EXTRA]
    item = {key: packed[..., _EXTRA:], DIRECTION: int(packed[..., 0].max())}
    return item if bool(place.isnan().any()) else item | {PLACE: place}
