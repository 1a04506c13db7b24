"""Slices of scans that are embedded one after another, and kept nowhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from ignite import distributed as idist
from torch import Tensor
from torch.utils.data import DistributedSampler

from monai_dpmm.engines.distributed import own_items, own_part, rank, world_size
from monai_dpmm.engines.embedding_store import StoredEmbeddings
from monai_dpmm.errors import InputError
from monai_dpmm.transforms.metatensors import DIRECTION, PLACE

__all__ = ["StreamedBatches"]

_MIXED = 16  # batches of slices that wait, of which a batch is drawn


class StreamedBatches(DistributedSampler):
    """Batches of slices, each a list of {"image": (h, w, D)}, from scans embedded as they come.

    Scans come in random order, and a batch is drawn at random from 16 batches of slices that wait,
    so that slices of several scans are in it; memory holds these and one scan. The order follows
    from seed and epoch alone. All slices of a batch are of one direction, and a pass gives each
    slice once, in as many batches as the stored data set has. Of several processes each embeds
    every n-th scan and gives its part of each batch; where one has no slice left, nothing.

    Args:
        source: of the scans, each of which is embedded once in a pass.
        batch_size: slices in a batch, of all processes together.
        shuffle: whether the order is random.
        seed: of the order.
        key: key of the embeddings.

    Raises:
        InputError: where there are fewer scans than processes, or a pass gives no slice.
    """

    def __init__(
        self,
        source: StoredEmbeddings,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        key: str = "image",
    ) -> None:
        if len(source) < world_size():
            raise InputError(
                f"source must hold a scan for each of {world_size()} processes, got {len(source)}"
            )
        super().__init__(cast(Any, source), num_replicas=1, rank=0, shuffle=shuffle, seed=seed)
        self.source = source
        self.batch_size = batch_size
        self.key = key
        self._sizes: dict[str, int] = {}  # of the last dimension of what a slice holds

    def __len__(self) -> int:
        raise TypeError("how many batches there are is known after a pass")

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        draws = torch.Generator().manual_seed(self.seed + self.epoch)  # of all processes the same
        share = len(own_part(range(self.batch_size), rank(), world_size()))
        slices = self._slices(generator)
        waiting: dict[int, list[dict[str, Any]]] = defaultdict(list)
        there, given = True, False
        while True:
            while there and sum(map(len, waiting.values())) < _MIXED * max(share, 1):
                item = next(slices, None)
                there = item is not None
                if item is not None:
                    waiting[item[DIRECTION]].append(item)
            direction = _direction(waiting, share, there, draws)
            if direction is None:
                break
            given = True
            yield self._drawn(waiting[direction], share, direction, generator)
        if not given:
            raise InputError(
                f"source must hold patches that count, all those of its {len(self.source)} scans"
                " are background or lie under a label"
            )

    def _slices(self, generator: torch.Generator) -> Iterator[dict[str, Any]]:
        """Slices that are not background only of this process's scans."""
        own = list(own_items(range(len(self.source))))
        if self.shuffle:
            own = [own[i] for i in torch.randperm(len(own), generator=generator).tolist()]
        for scan in self.source.streamed(own):
            for part in scan if isinstance(scan, list) else [scan]:
                grid, place = part[self.key], part.get(PLACE)
                for i in grid.flatten(1).any(1).nonzero()[:, 0].tolist():
                    item = {self.key: grid[i].clone()}
                    item |= {} if place is None else {PLACE: place[i].clone()}
                    self._sizes = {name: int(value.shape[-1]) for name, value in item.items()}
                    yield item | {DIRECTION: part.get(DIRECTION, 0)}

    def _drawn(
        self, waiting: list[dict[str, Any]], share: int, direction: int, generator: torch.Generator
    ) -> list[dict[str, Any]]:
        """This process's slices of a batch, taken out of those that wait."""
        count = min(share, len(waiting))
        order = torch.arange(len(waiting))
        if self.shuffle:
            order = torch.randperm(len(waiting), generator=generator)
        own = [waiting[i] for i in order[:count].tolist()]
        for i in sorted(order[:count].tolist(), reverse=True):
            del waiting[i]
        return own or self._nothing(direction)

    def _nothing(self, direction: int) -> list[dict[str, Any]]:
        """A slice without a patch that counts, of a process that has none left."""
        empty = {name: torch.zeros(1, 1, size) for name, size in self._sizes.items()}
        return [{**empty, DIRECTION: direction}]


def _direction(
    waiting: Mapping[int, Sequence[Any]], share: int, there: bool, draws: torch.Generator
) -> int | None:
    """Direction of the next batch, the same in all processes; None where no slice is left.

    One that every process has enough slices of, or has all its slices of, at random by how many
    there are; where there is none, that of the most slices.
    """
    mine = {number: len(items) for number, items in waiting.items() if items}
    own = (mine, max(share, 1), there)
    everyone = cast(list[Any], idist.all_gather(own)) if world_size() > 1 else [own]
    total: dict[int, int] = defaultdict(int)
    for counts, *_ in everyone:
        for number, count in counts.items():
            total[number] += count
    if not total:
        return None
    ready = [
        number
        for number in sorted(total)
        if all(counts.get(number, 0) >= enough or not more for counts, enough, more in everyone)
    ]
    ready = ready or [max(sorted(total), key=lambda number: total[number])]
    weights = torch.tensor([float(total[number]) for number in ready])
    drawn: Tensor = torch.multinomial(weights, 1, generator=draws)
    return ready[int(drawn)]
