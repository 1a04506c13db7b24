"""Weights of the components that depend on where in the body a patch is.

A dark patch is a ventricle in the middle of a head and a lesion elsewhere. So all places share the
prototypes, and every place b has weights of its own, π_b ~ DP(β, π): a hierarchical Dirichlet
process (Teh et al., JASA 101, 2006). Letters: n patches of a chunk, K components, G bins, u the
place of a patch, in [0, 1]^d of its own body's box.

    w_b(u): multilinear weights of a regular grid of bins, Σ_b w_b(u) = 1
    n_bk = Σ_n w_b(u_n) r_nk,    π_bk = (n_bk + β π_k) / (n_b + β),    π_k(u) = Σ_b w_b(u) π_bk
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.precision import is_traced

__all__ = ["Places"]


class Places(nn.Module):
    """Soft counts n_bk of K components in the G bins of a grid, and the weights that follow.

    Counts are sums over patches: those of batches, processes and sites add up. They belong to the
    components as they were when they were taken, so they are taken anew after further EM steps.
    Without counts every place has the weights π_k.

    Args:
        components: K.
        grid: bins along each of two or three axes.

    Attributes:
        counts: buffer (K, G).
        strength: buffer, β in patches, 0-d: how many patches the weights π_k count for in a bin.
        scale: buffer, λ, 0-d: what log π_k(u) counts for in a score that is no log-likelihood.
        used: buffer, bool, 0-d: whether a detector asks where a patch is; False until decided.
    """

    counts: Tensor
    strength: Tensor
    scale: Tensor
    used: Tensor

    def __init__(self, components: int, grid: Sequence[int]) -> None:
        super().__init__()
        if len(grid) not in (2, 3) or min(grid) < 1:
            raise InputError(f"place_grid must be two or three numbers from 1 on, got {grid}")
        self.grid = tuple(int(side) for side in grid)
        self.register_buffer("counts", torch.zeros(components, self.bins))
        self.register_buffer("strength", torch.tensor(30.0))
        self.register_buffer("scale", torch.tensor(0.02))
        self.register_buffer("used", torch.tensor(False))

    @property
    def bins(self) -> int:
        """G."""
        return math.prod(self.grid)

    def corners(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Bins about each place, and their weights w_b(u): (n, d) -> (n, 2^d) int64, (n, 2^d).

        Weights are linear between the centres of neighbouring bins; beyond the outermost centres
        they are constant. The weights of a place sum to 1.
        """
        bins = torch.zeros_like(u[:, :1], dtype=torch.int64)
        weights = torch.ones_like(u[:, :1])
        for side, t in zip(self.grid, u.unbind(1), strict=True):
            t = (t * side - 0.5).clamp(0, side - 1)
            low = t.floor()
            pair = torch.stack([low, low + 1], 1).long().clamp_max(side - 1)
            share = torch.stack([1 - (t - low), t - low], 1)
            bins = (bins[:, :, None] * side + pair[:, None]).flatten(1)
            weights = (weights[:, :, None] * share[:, None]).flatten(1)
        return bins, weights

    def counted(self, u: Tensor, r: Tensor) -> Tensor:
        """Soft counts of patches by their responsibilities: (n, d), (n, K) -> (K, G).

        Sums over the patches of each bin, in the order of the patches: no (n, G) is made.
        """
        bins, weights = self.corners(u)
        order = bins.flatten().argsort(stable=True)
        first = torch.searchsorted(
            bins.flatten()[order], torch.arange(self.bins, device=bins.device)
        )
        patches = order // bins.shape[1]
        shares = weights.to(r.dtype).flatten()[order]
        return F.embedding_bag(patches, r, first, per_sample_weights=shares, mode="sum").T

    def table(self, log_weights: Tensor) -> Tensor:
        """Weights π_bk, posterior means given the counts: log π_k (K,) -> (G, K), float64."""
        counts, beta = self.counts.T.double(), self.strength.double()
        return (counts + beta * log_weights.exp()) / (counts.sum(1, keepdim=True) + beta)

    def log_weights(self, table: Tensor, u: Tensor) -> Tensor:
        """Log-weights log π_k(u) of rows π_bk: (G, K), (n, d) -> (n, K)."""
        bins, weights = self.corners(u)
        shares = weights.to(table.dtype)
        if is_traced():  # whose graph embedding_bag's checks of sizes would tie to one number n
            corners = zip(bins.unbind(1), shares.unbind(1), strict=True)
            return torch.stack([table[b] * w[:, None] for b, w in corners]).sum(0).log()
        return F.embedding_bag(bins, table, per_sample_weights=shares, mode="sum").log()
