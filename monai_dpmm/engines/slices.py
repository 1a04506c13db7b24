"""Embeddings of scans to batches of patches: which slices, which patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from monai_dpmm.engines.distributed import exchanged, own_items, own_part, rank, world_size
from monai_dpmm.engines.embedding_store import StoredEmbeddings, StoredSlices
from monai_dpmm.errors import InputError

__all__ = ["SliceDataLoader", "SliceDataset", "collate_patches"]


class SliceDataset(Dataset[dict[str, Tensor]]):
    """Slices of all scans as one data set: item i is {"image": embeddings (h, w, D)}.

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
            dims = {int(grid.shape[-1]) for grid in self.slices}
        if len(dims) != 1:
            raise InputError(f"source must hold slices of one embedding size, got {sorted(dims)}")

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {self.key: self.slices[index]}


class SliceDataLoader(DataLoader[dict[str, Tensor]]):
    """Batches of patches {key: (N, D)} from the slices of all scans, see `SliceDataset`.

    The order of a shuffled epoch follows from `seed` and the epoch's number alone, which MONAI's
    engines set, so that a resumed training sees the batches that it would have seen. Of several
    processes each gets its part of every batch, which may be empty in the last one.

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
        slices = SliceDataset(dataset)
        sampler: Any = None
        if shuffle:
            sampler = DistributedSampler(slices, num_replicas=1, rank=0, seed=seed)
        collate = partial(_collate_part, rank=rank(), processes=world_size())
        super().__init__(slices, batch_size, sampler=sampler, collate_fn=collate, **kwargs)


def collate_patches(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Patches of several slices, whatever their grids: items (h, w, D) -> {key: (N, D)}.

    Background patches, which are zero vectors, are left out.
    """
    patches = {key: torch.cat([item[key].flatten(0, -2) for item in items]) for key in items[0]}
    return {key: value[value.any(dim=1)] for key, value in patches.items()}


def _collate_part(
    items: Sequence[Mapping[str, Tensor]], rank: int, processes: int
) -> dict[str, Tensor]:
    """Patches of a process's part of a batch; none, of the right shape, where that is empty."""
    own = own_part(items, rank, processes)
    if own:
        return collate_patches(own)
    return {key: value[:0] for key, value in collate_patches(items[:1]).items()}


def _in_memory(source: Sequence[Mapping[str, Any]], key: str) -> list[Tensor]:
    """Slices of all scans that are not background only."""
    own = [_embeddings(source[i], key) for i in own_items(range(len(source)))]
    return [patches for scan in exchanged(own) for patches in scan if patches.any()]


def _embeddings(item: Any, key: str) -> Tensor:
    """Embeddings (S, h, w, D) of a scan; along several axes, zeros bring all to one grid."""
    items = item if isinstance(item, list) else [item]
    parts = [convert_to_tensor(one[key], track_meta=False) for one in items]
    height, width = (max(part.shape[side] for part in parts) for side in (1, 2))
    return torch.cat(
        [F.pad(p, (0, 0, 0, width - p.shape[2], 0, height - p.shape[1])) for p in parts]
    )
