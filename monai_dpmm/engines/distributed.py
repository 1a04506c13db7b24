"""Several processes, one model: how moments, patches and results are brought together.

On `ignite.distributed`, which does the single process's thing where there is no process group, so
nothing else asks how many processes there are. Processes share the work of each batch: the
concatenation of their parts, in the order of their ranks, is the batch that one process would see.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any, TypeVar, cast

import ignite.distributed as idist
import torch
from monai.utils import evenly_divisible_all_gather
from torch import Tensor, nn

from monai_dpmm.mixture.em import Moments

__all__ = [
    "all_reduced",
    "broadcast_buffers",
    "close_process_group",
    "exchanged",
    "gathered",
    "interleaved",
    "is_main_process",
    "local_device",
    "open_process_group",
    "own_items",
    "own_part",
    "rank",
    "world_size",
]

_Item = TypeVar("_Item")
_MISSING = object()


def local_device() -> torch.device:
    """Device of this process of a `torchrun`: its own CUDA device, or the CPU where there is none.

    Raises:
        RuntimeError: outside torchrun, or where there are more processes than CUDA devices.
    """
    local_rank = os.environ.get("LOCAL_RANK")
    if local_rank is None:
        raise RuntimeError("LOCAL_RANK must be set: start several processes with torchrun")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if int(local_rank) >= torch.cuda.device_count():
        raise RuntimeError(
            f"nproc_per_node must be at most the {torch.cuda.device_count()} CUDA devices of this"
            f" machine, got a process with LOCAL_RANK={local_rank}"
        )
    return torch.device("cuda", int(local_rank))


def open_process_group(device: torch.device, *, timeout_minutes: float = 120) -> None:
    """Join the processes of this torchrun: by NCCL on CUDA, by Gloo on the CPU.

    All but the main process log warnings and errors only from here on.

    Args:
        device: of this process, see `local_device`.
        timeout_minutes: how long to wait for the others, who may still be embedding their scans. A
            process that ends is noticed at once by torchrun, which then ends the others.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    idist.initialize(backend, timeout=timedelta(minutes=timeout_minutes))
    if not is_main_process():
        logging.disable(logging.INFO)


def close_process_group() -> None:
    """Leave the process group, if there is one."""
    idist.finalize()


def rank() -> int:
    """Number of this process, from 0."""
    return idist.get_rank()


def world_size() -> int:
    """Number of processes."""
    return idist.get_world_size()


def is_main_process() -> bool:
    """Whether this process is the one that writes files and the screen."""
    return rank() == 0


def own_part(items: Sequence[_Item], rank: int, processes: int) -> Sequence[_Item]:
    """Contiguous part of a batch's items for a process; parts differ by one item at most."""
    part = torch.arange(len(items)).tensor_split(processes)[rank].tolist()
    return items[part[0] : part[-1] + 1] if part else items[:0]


def own_items(items: Sequence[_Item]) -> Sequence[_Item]:
    """Every n-th item, n the number of processes, from this one's rank on; see `interleaved`."""
    return items[rank() :: world_size()]


def interleaved(own: Sequence[_Item]) -> list[_Item]:
    """All processes' items in the order that they had before `own_items`."""
    everyone = cast(list[Any], idist.all_gather(list(own)))
    items = chain.from_iterable(zip_longest(*everyone, fillvalue=_MISSING))
    return [item for item in items if item is not _MISSING]


def all_reduced(moments: Moments) -> Moments:
    """Moments of all processes' patches, in the storage of this process's."""
    if world_size() == 1:
        return moments
    small = torch.cat([moments.weight, torch.stack([moments.count, moments.log_likelihood])])
    small, first, second = (
        cast(Tensor, idist.all_reduce(part)) if part.numel() > 0 else part
        for part in (small, moments.first, moments.second)
    )
    return Moments(small[:-2], first, second, small[-2], small[-1])


def gathered(x: Tensor) -> Tensor:
    """Concatenation of all processes' tensors, in order of rank: (n, ...) -> (N, ...)."""
    return evenly_divisible_all_gather(x, concat=True)


def exchanged(own: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of `own_items` of all processes, in their first order, each sent once."""
    total = int(cast(float, idist.all_reduce(len(own))))
    return [_broadcast(own, i) for i in range(total)]


def broadcast_buffers(module: nn.Module) -> None:
    """Give every process the buffers of rank 0, so that rounding never lets models drift apart."""
    for buffer in module.buffers():
        buffer.copy_(cast(Tensor, idist.broadcast(buffer, src=0)))


def _broadcast(own: Sequence[Tensor], index: int) -> Tensor:
    """Item `index` of all processes' items, from the process that has it."""
    place, source = divmod(index, world_size())
    tensor = own[place] if rank() == source else None
    return cast(Tensor, idist.broadcast(tensor, src=source, safe_mode=True)).cpu()
