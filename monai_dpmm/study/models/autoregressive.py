"""A patch expected from its neighbours: a masked convolution over the embeddings of a slice.

After Erdil, Schulthess, Konukoglu and Tombak (arXiv 2603.02974): dilated masked convolutions over
frozen embeddings, a Gaussian head, and as the score of a patch its negative log-likelihood given
the patches before it, in raster order. Where the mixture asks whether a patch is normal anywhere,
this asks whether it is normal here, beside what is there. Letters: S slices, (h, w) patch grid, D
features, C hidden channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.checks import check_at_least_one
from monai_dpmm.study.models.normality import NormalityModel, patches_of

__all__ = ["AutoregressiveModel", "AutoregressiveNetwork", "MaskedConv2d"]

_CHUNK = 16  # slices
_LOWEST_LOG_VARIANCE = -6.0  # of features whose variance is 1
_CLIP = 1.0  # norm of a step's gradient


class MaskedConv2d(nn.Conv2d):
    """Convolution that sees cells above, and to the left in its row: (S, C, h, w) -> the same grid.

    Args:
        channels: of input and output.
        size: of the kernel, odd.
        dilation: distance of the kernel's cells.
        centre: whether a cell sees itself, as all layers but the first may.
    """

    mask: Tensor

    def __init__(self, channels: int, size: int, *, dilation: int = 1, centre: bool) -> None:
        padding = dilation * (size // 2)
        super().__init__(channels, channels, size, padding=padding, dilation=dilation)
        before = torch.arange(size * size).view(size, size) < size * size // 2 + centre
        self.register_buffer("mask", before.to(self.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same grid."""
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class AutoregressiveNetwork(nn.Module):
    """Mean and log-variance of each patch given those before it: (S, h, w, D) -> twice the same.

    A linear map of each cell to C channels, one masked convolution that leaves the cell itself out,
    and residual blocks of dilated ones. Features are standardised by the training patches; cells
    without a patch are 0, and a further channel says which they are. With dilations 1, 2 and 4 a
    cell sees 9 cells to the left and above, and to the right 2 in the row above, 3 in the next.

    Args:
        features: D.
        channels: C.
        dilations: of the blocks, one each.

    Attributes:
        mean, deviation: buffers (D,), of the training patches.
        lowest: buffer, the score that none is below, 0-d.
    """

    mean: Tensor
    deviation: Tensor
    lowest: Tensor

    def __init__(self, features: int, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(features + 1, channels, 1)
        self.before = MaskedConv2d(channels, 5, centre=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.GELU(), MaskedConv2d(channels, 3, dilation=dilation, centre=True)),
                *(nn.GELU(), nn.Conv2d(channels, channels, 1)),
            )
            for dilation in dilations
        )
        self.last = nn.Sequential(nn.GELU(), nn.Conv2d(channels, 2 * features, 1))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.register_buffer("lowest", torch.zeros(()))

    def forward(self, slices: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the standardised patches: (S, h, w, D) -> (S, h, w, D) x 2."""
        there = slices.any(-1, keepdim=True)
        known = torch.cat([self._standardised(slices) * there, there.to(slices)], -1)
        x = self.before(self.first(known.movedim(-1, 1)))
        for block in self.blocks:
            x = x + block(x)
        mean, log_variance = self.last(x).movedim(1, -1).chunk(2, -1)
        return mean, log_variance.clamp(_LOWEST_LOG_VARIANCE, -_LOWEST_LOG_VARIANCE)

    def surprise(self, slices: Tensor) -> Tensor:
        """Negative log-likelihood of each patch given those before it: (S, h, w, D) -> (S, h, w).

        Nats a feature, of the standardised features.
        """
        mean, log_variance = self(slices)
        squares = (self._standardised(slices) - mean).square() * (-log_variance).exp()
        return 0.5 * (squares + log_variance + math.log(2 * math.pi)).mean(-1)

    def _standardised(self, slices: Tensor) -> Tensor:
        return (slices - self.mean) / self.deviation


class AutoregressiveModel(NormalityModel):
    """An `AutoregressiveNetwork` trained on healthy slices by Adam, its best epoch kept.

    The size is for a CPU: a tenth of a million weights beside those to and from the features.

    Args:
        features: D.
        channels: C.
        dilations: of the network's blocks.
        epochs: at least 1; that of the highest likelihood of the slices held out is kept.
        batch_size: slices.
        learning_rate: of Adam at the start; it falls to 0 by a cosine.
        seed: of the weights and the order of the slices.
    """

    module: AutoregressiveNetwork

    def __init__(
        self,
        features: int,
        *,
        channels: int = 64,
        dilations: Sequence[int] = (1, 2, 4),
        epochs: int = 15,
        batch_size: int = 8,
        learning_rate: float = 2e-3,
        seed: int = 0,
    ) -> None:
        for name, value in (
            *(("features", features), ("channels", channels)),
            *(("epochs", epochs), ("batch_size", batch_size)),
        ):
            check_at_least_one(name, value)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            self.module = AutoregressiveNetwork(features, channels, dilations)
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed
        self.learning_rate = learning_rate
        self.fitted = False

    @property
    def prototypes(self) -> int:
        """None: it has weights instead."""
        return 0

    def fit(self, slices: Sequence[Tensor], held_out: Sequence[Tensor]) -> None:
        """Train all epochs, and go back to the best."""
        patches = patches_of(slices)
        if not bool(patches.isfinite().all()):
            raise InputError("slices must be finite, got NaN or infinite values")
        self.module.mean.copy_(patches.mean(0))
        self.module.deviation.copy_(patches.std(0).clamp_min(1e-6))
        optimizer = torch.optim.Adam(self.module.parameters(), self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        best, state = math.inf, {}
        for epoch in range(self.epochs):
            for batch in self._batches(slices, epoch):
                there = batch.any(-1)
                optimizer.zero_grad()
                self.module.surprise(batch)[there].mean().backward()
                nn.utils.clip_grad_norm_(self.module.parameters(), _CLIP)
                optimizer.step()
            schedule.step()
            surprises = torch.cat([x.flatten() for x in self._surprises(held_out)])
            if float(surprises.mean()) < best:
                best = float(surprises.mean())
                self.module.lowest.copy_(surprises.min())
                state = {name: x.clone() for name, x in self.module.state_dict().items()}
        self.module.load_state_dict(state)
        self.fitted = True

    def score(self, slices: Tensor, kind: Any = "surprise", places: Tensor | None = None) -> Tensor:
        """Surprise of each patch: (S, h, w, D) -> (S, h, w), on the CPU.

        None is below the lowest of the slices held out, which is what background gets.

        Raises:
            ValueError: for another kind of score.
            RuntimeError: before `fit`.
        """
        if kind != "surprise":
            raise InputError(f"kind must be surprise for a masked convolution, got {kind!r}")
        if not self.fitted:
            raise RuntimeError("AutoregressiveModel is not fitted: call fit")
        lowest = float(self.module.lowest)
        result = torch.full(slices.shape[:-1], lowest)
        there = slices.any(-1)
        result[there] = torch.cat(list(self._surprises(slices))).clamp_min(lowest)
        return result

    def _surprises(self, slices: Sequence[Tensor] | Tensor) -> Iterator[Tensor]:
        """Surprise of the patches that are there, a chunk of slices of one grid at a time: (n,)."""
        for batch in _of_one_grid(slices, _CHUNK):
            yield _surprise(self.module, batch.to(self.device))[batch.any(-1)].cpu()

    def _batches(self, slices: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
        """Slices (s, h, w, D) in random order."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        for batch in torch.randperm(len(slices), generator=generator).split(self.batch_size):
            for part in _of_one_grid([slices[i] for i in batch], self.batch_size):
                yield part.to(self.device)


@torch.no_grad()
def _surprise(network: AutoregressiveNetwork, slices: Tensor) -> Tensor:
    return network.surprise(slices)


def _of_one_grid(slices: Sequence[Tensor] | Tensor, size: int) -> Iterator[Tensor]:
    """Slices in their order, at most so many at a time, and only those of one patch grid."""
    for start in range(0, len(slices), size):
        for _, part in groupby(slices[start : start + size], lambda grid: grid.shape):
            yield torch.stack(list(part))
