"""One mixture from data that stay apart: moments of several sites, and models of several sites.

Moments are sums over patches, so under the same parameters those of disjoint data add up to those
of their union, exactly, whatever the covariance. Sites that send their moments for every step in
the place of images therefore fit the very mixture that one site with all the data would fit (plain
EM, schedule "none", is one step for each pass over all data). Under other parameters a component
is another component, and the sum means nothing: a file of moments says whose they are.

Mixtures that were fitted apart have no components in common. `merged` gives the mixture whose
density is the average of theirs, weighted by how many patches each has seen: exact as a density,
but not what a fit to all the data would have found.

Moments and models are no images, yet not anonymous: a component that holds a single patch is that
patch's embedding.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.files import load_tensors, save_tensors
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.em import Moments, accumulated

_AVERAGES = {"average_weight", "average_first", "covariance.second"}
_BY_COMPONENT = _AVERAGES | {
    *("offsets", "log_weights", "places.counts"),
    *("covariance.variance", "covariance.cholesky", "covariance.concentration"),
}

__all__ = ["load_moments", "merged", "pooled_moments", "save_moments"]


def pooled_moments(mixture: DPMM, batches: Iterable[Tensor]) -> Moments:
    """Moments of all patches of a pass over batches (N, D), under the mixture as it is.

    Raises:
        ValueError: where there is no batch.
    """
    moments = map(mixture.e_step, batches)
    first = next(moments, None)
    if first is None:
        raise InputError("batches must hold at least one batch, got none")
    return reduce(accumulated, moments, first)


def save_moments(moments: Moments, path: str | Path, mixture: DPMM) -> None:
    """Write the moments and the identity of the parameters that they were taken under.

    The file holds tensors and a string only, and is replaced atomically.

    Raises:
        ValueError: where a patch was NaN or infinite.
    """
    if not bool(torch.isfinite(moments.log_likelihood)):
        raise InputError("moments must be of finite patches, one was NaN or infinite")
    tensors = {name: part.cpu() for name, part in moments._asdict().items()}
    save_tensors(tensors | {"parameters": _identity(mixture)}, Path(path))


def load_moments(path: str | Path, mixture: DPMM) -> Moments:
    """Moments of a file, to be added to others' and given to `mixture.m_step`.

    Raises:
        ValueError: where the file is none of moments, or they were taken under other parameters.
    """
    content = load_tensors(path, mixture.offsets.device)
    if not isinstance(content, dict) or set(content) != {*Moments._fields, "parameters"}:
        raise InputError(f"{path}: must be a file of moments")
    if content.pop("parameters") != _identity(mixture):
        raise InputError(
            f"{path}: must hold moments of this mixture as it is now, got those of other parameters"
        )
    return Moments(**content)


def merged(mixtures: Sequence[DPMM], patches: Sequence[int]) -> DPMM:
    """Mixture of all surviving components, its density the patch-weighted mean of the densities.

    Its truncation K is the number of components that it holds, heaviest first. The moving averages
    come along, so EM can go on; `steps` add up. What thresholds were calibrated has to be
    calibrated again.

    Args:
        mixtures: fitted, of one dimension and covariance; nothing in them is changed.
        patches: how many patches each was fitted on.

    Raises:
        ValueError: where the mixtures do not go together.
        RuntimeError: where one of them is not fitted.
    """
    _check_together(mixtures, patches)
    shares = torch.tensor(patches, dtype=torch.float64) / sum(patches)
    device = mixtures[0].offsets.device
    parts = [
        _part(m.to(device), mixtures[0].origin, share)
        for m, share in zip(map(copy.deepcopy, mixtures), shares.tolist(), strict=True)
    ]
    state = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = state["log_weights"].argsort(descending=True)
    state["log_weights"] -= state["log_weights"].logsumexp(0)
    result = copy.deepcopy(mixtures[0])
    result.components = len(order)
    for name, value in state.items():
        owner = result.get_submodule(name.rpartition(".")[0])
        owner.register_buffer(name.rpartition(".")[2], value[order])
    result.steps.copy_(torch.stack([m.steps.to(device) for m in mixtures]).sum())
    alphas = torch.stack([m.concentration.to(device) for m in mixtures])
    result.concentration.copy_((alphas * shares.to(device)).sum())
    result.prune()
    return result


def _part(mixture: DPMM, origin: Tensor, share: float) -> dict[str, Tensor]:
    """Surviving components, about another origin and with their share of the weight: (K', ...)."""
    keep, shift = mixture.surviving, mixture.origin - origin
    weight = mixture.average_weight.to(shift.dtype)
    mixture.covariance.recentre(mixture.average_first, weight, shift)
    mixture.average_first += weight[:, None] * shift
    mixture.offsets += shift
    mixture.log_weights += math.log(share)
    buffers = {name: value for name, value in mixture.state_dict().items() if name in _BY_COMPONENT}
    for name in _AVERAGES & set(buffers):
        buffers[name] *= share
    return {name: value[keep] for name, value in buffers.items()}


def _check_together(mixtures: Sequence[DPMM], patches: Sequence[int]) -> None:
    if not mixtures or len(mixtures) != len(patches):
        raise InputError(
            "mixtures and patches must be as many, at least one,"
            f" got {len(mixtures)} and {len(patches)}"
        )
    if min(patches) < 1:
        raise InputError(f"patches must be at least 1 each, got {list(patches)}")
    kinds = {(type(m.covariance).__name__, m.features, m.offsets.dtype) for m in mixtures}
    if len(kinds) > 1:
        raise InputError(
            "mixtures must be of one covariance, dimension and precision, got "
            + ", ".join(
                f"{kind} with {features} features in {dtype}"
                for kind, features, dtype in sorted(kinds, key=str)
            )
        )
    grids = {None if m.places is None else m.places.grid for m in mixtures}
    if len(grids) > 1:
        raise InputError(f"mixtures must have one place_grid, got {sorted(map(str, grids))}")
    if not all(m.fitted for m in mixtures):
        raise RuntimeError("DPMM is not fitted: only fitted mixtures can be merged")


def _identity(mixture: DPMM) -> str:
    """SHA-256 of the state that an E-step depends on, and of how many steps it has taken."""
    digest = hashlib.sha256()
    for name, value in sorted(mixture.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()
