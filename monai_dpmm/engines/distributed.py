"""Several processes, one model: how moments, patches and results are brought together.

Everything here does the single process's thing where there is no process group, so nothing else
asks how many processes there are. Processes share the work of each batch: the concatenation of
their parts, in the order of their ranks, is the batch that one process would see.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist
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
_MAX_DIMS = 8


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
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    if not is_main_process():
        logging.disable(logging.INFO)


def close_process_group() -> None:
    """Leave the process group, if there is one."""
    if _is_distributed():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _is_distributed() else 1


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
    if not _is_distributed():
        return list(own)
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, list(own))
    items = chain.from_iterable(zip_longest(*everyone, fillvalue=_MISSING))
    return [item for item in items if item is not _MISSING]


def all_reduced(moments: Moments) -> Moments:
    """Moments of all processes' patches, in the storage of this process's."""
    if not _is_distributed():
        return moments
    small = torch.cat([moments.weight, torch.stack([moments.count, moments.log_likelihood])])
    for part in (small, moments.first, moments.second):
        if part.numel() > 0:
            dist.all_reduce(part)
    return moments._replace(weight=small[:-2], count=small[-2], log_likelihood=small[-1])


def gathered(x: Tensor) -> Tensor:
    """Concatenation of all processes' tensors, in order of rank: (n, ...) -> (N, ...)."""
    if not _is_distributed():
        return x
    length = torch.tensor([len(x)], device=_device())
    lengths = [torch.zeros_like(length) for _ in range(world_size())]
    dist.all_gather(lengths, length)
    longest = max(int(n) for n in lengths)
    padded = x.new_zeros(longest, *x.shape[1:], device=_device())
    padded[: len(x)] = x
    everyone = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(everyone, padded)
    parts = [part[: int(n)] for part, n in zip(everyone, lengths, strict=True)]
    return torch.cat(parts).to(x.device)


def exchanged(own: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of `own_items` of all processes, in their first order, each sent once; float32."""
    if not _is_distributed():
        return list(own)
    total = torch.tensor(len(own), device=_device())
    dist.all_reduce(total)
    return [_broadcast(own, i) for i in range(int(total))]


def broadcast_buffers(module: nn.Module) -> None:
    """Give every process the buffers of rank 0, so that rounding never lets models drift apart."""
    if _is_distributed():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def _broadcast(own: Sequence[Tensor], index: int) -> Tensor:
    """Item `index` of all processes' items, from the process that has it."""
    source, place = index % world_size(), index // world_size()
    header = torch.zeros(_MAX_DIMS, dtype=torch.int64, device=_device())
    if rank() == source:
        header[: own[place].ndim] = torch.tensor(own[place].shape)
    dist.broadcast(header, src=source)
    shape = [int(n) for n in header if n > 0]
    tensor = torch.empty(shape, device=_device())
    if rank() == source:
        tensor.copy_(own[place])
    dist.broadcast(tensor, src=source)
    return tensor.cpu()


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device() -> torch.device:
    """Where the process group's tensors live."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
