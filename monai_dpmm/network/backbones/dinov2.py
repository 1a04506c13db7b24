"""What is particular to DINO's vision transformers: patch tokens, positions, official files.

The networks wrap models of `transformers`; nothing here imports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_dpmm.errors import InputError
from monai_dpmm.files import load_tensors

HEAD_DIM = 64
POSITION_OFFSET = 0.1

__all__ = ["HEAD_DIM", "Dinov2", "Dinov3", "position_map", "read_checkpoint"]


class _Transformer(nn.Module):
    """Patch tokens of the last block, after the final LayerNorm: (B, 3, H, W) -> (B, D, h, w)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        # Only training reads it, and not every checkpoint has it.
        model.embeddings.mask_token = None
        self.patch_size = int(model.config.patch_size)
        self.embedding_dim = int(model.config.hidden_size)


class Dinov2(_Transformer):
    """Patch tokens of DINOv2, with or without registers, by the official positional rule.

    Args:
        model: DINOv2 of `transformers`.
        blocks: numbers of the blocks whose tokens are taken, from 1, each after the final
            LayerNorm; None is the last. Tokens of several blocks are scaled to unit norm, so that
            none outweighs another, and concatenated in the order given.

    Raises:
        ValueError: for blocks that the model does not have, none, or one that comes twice.
    """

    def __init__(self, model: Any, blocks: Sequence[int] | None = None) -> None:
        super().__init__(model)
        depth = int(model.config.num_hidden_layers)
        self.blocks = (depth,) if blocks is None else tuple(blocks)
        if len(set(self.blocks) & {*range(1, depth + 1)}) < max(1, len(self.blocks)):
            raise InputError(f"blocks must be different numbers from 1 to {depth}, got {blocks}")
        self.embedding_dim *= len(self.blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Patch tokens: (B, 3, H, W) -> (B, D, h, w)."""
        embeddings = self.model.embeddings
        registers = getattr(embeddings, "register_tokens", None)
        table = embeddings.position_embeddings
        patches = embeddings.patch_embeddings.projection(images)
        positions = position_map(table, *patches.shape[2:], registers=registers is not None)
        first = embeddings.cls_token + table[:, :1]
        if registers is not None:
            first = torch.cat([first, registers], dim=1)
        tokens = torch.cat(
            [first.expand(images.shape[0], -1, -1), (patches + positions).flatten(2).mT], dim=1
        )
        taken = {}
        for number, block in enumerate(self.model.encoder.layer[: max(self.blocks)], 1):
            tokens = block(tokens)
            if not isinstance(tokens, Tensor):  # a tuple in older releases of transformers
                tokens = tokens[0]
            if number in self.blocks:
                patch_tokens = self.model.layernorm(tokens)[:, first.shape[1] :]
                taken[number] = patch_tokens.mT.reshape(patches.shape)
        if len(taken) == 1:
            return taken[self.blocks[0]]
        return torch.cat([F.normalize(taken[number], dim=1) for number in self.blocks], dim=1)


class Dinov3(_Transformer):
    """Patch tokens of DINOv3, whose positions are rotations and fit any grid."""

    def forward(self, images: Tensor) -> Tensor:
        """Patch tokens: (B, 3, H, W) -> (B, D, h, w)."""
        first = 1 + self.model.config.num_register_tokens
        tokens = self.model(images).last_hidden_state[:, first:]
        height, width = images.shape[2] // self.patch_size, images.shape[3] // self.patch_size
        return tokens.mT.unflatten(2, (height, width))


def position_map(table: Tensor, height: int, width: int, *, registers: bool) -> Tensor:
    """Positional embeddings of an (h, w) patch grid: (1, 1 + M * M, D) -> (1, D, h, w).

    The rule that the weights were published with. Without registers the M x M table is read
    bicubically (a = -0.75, border repeated) at the scale factors (h + 0.1) / M and (w + 0.1) / M;
    with registers at h / M and w / M, antialiased. The trained grid gets the table itself. A trace
    made at one size is right at another: nothing depends on h or w as Python numbers.

    Args:
        table: embeddings of the class token, then of the trained grid, row by row.
        height: rows h of the patch grid.
        width: columns w of the patch grid.
        registers: whether the checkpoint has register tokens.
    """
    side = math.isqrt(table.shape[1] - 1)
    grid = table[:, 1:].float().transpose(1, 2).unflatten(2, (side, side))
    if registers:
        spread = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True)
        return spread.to(table.dtype)
    rows = torch.arange(height, device=table.device)
    columns = torch.arange(width, device=table.device)
    h, w = rows[-1] + 1, columns[-1] + 1
    offset = torch.where((h == side) & (w == side), 0.0, POSITION_OFFSET)
    vertical = _bicubic_matrix(rows, (h + offset) / side, side)
    horizontal = _bicubic_matrix(columns, (w + offset) / side, side)
    return (vertical @ grid @ horizontal.T).to(table.dtype)


def _bicubic_matrix(index: Tensor, scale: Tensor, side: int) -> Tensor:
    """Weights of the M samples of an axis at n outputs, each row sums to one: (n,) -> (n, M)."""
    centre = (index + 0.5) / scale - 0.5
    taps = torch.arange(-2, side + 2, device=index.device)
    t = (centre[:, None] - taps).abs()
    near = (1.25 * t - 2.25) * t * t + 1
    far = ((-0.75 * t + 3.75) * t - 6) * t + 3
    weights = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    return weights @ F.one_hot(taps.clamp(0, side - 1), side).to(weights.dtype)


def read_checkpoint(path: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Model type, config and weights of an official DINOv2 file, for `transformers`.

    The config is read off the shapes; the weights have the names that files on the hub have.

    Raises:
        ValueError: for a file that is broken or no DINOv2 checkpoint.
    """
    state = load_tensors(path)
    try:
        family, settings = _settings(state)
        return family, settings, _hub_layout(state)
    except (ValueError, IndexError, RuntimeError) as error:  # of shapes that none has
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path} is not an official DINOv2 checkpoint: {reason}") from error


_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_BLOCK_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}


def _settings(state: Any) -> tuple[str, dict[str, Any]]:
    """Family and config of an official checkpoint, by its shapes.

    Raises:
        ValueError: where it is no DINOv2 checkpoint, saying why.
    """
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InputError("it is not a dictionary of tensors")
    required = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
    if missing := [key for key in required if key not in state]:
        raise InputError(f"it has no {', '.join(missing)}")
    features, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    positions = state["pos_embed"].shape[1] - 1
    side = math.isqrt(positions)
    if features % HEAD_DIM or side * side != positions:
        raise InputError(
            f"its {features} features must be a multiple of {HEAD_DIM} and its {positions} "
            "positions a square"
        )
    settings = {
        "hidden_size": features,
        "num_hidden_layers": sum(key.endswith(".attn.qkv.weight") for key in state),
        "num_attention_heads": features // HEAD_DIM,
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "use_swiglu_ffn": "blocks.0.mlp.w12.weight" in state,
    }
    if "register_tokens" not in state:
        return "dinov2", settings
    settings["num_register_tokens"] = state["register_tokens"].shape[1]
    return "dinov2_with_registers", settings


def _hub_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an official checkpoint under the names that files on the hub have.

    `transformers` renames its modules from release to release, and goes on reading these.

    Raises:
        ValueError: for a weight that no DINOv2 checkpoint has.
    """
    converted = {}
    for key, value in state.items():
        stem = key.removesuffix(".weight").removesuffix(".bias")
        kind = key[len(stem) :]
        if stem in _NAMES:
            converted[_NAMES[stem] + kind] = value
            continue
        _, _, block = stem.partition("blocks.")
        number, _, part = block.partition(".")
        prefix = f"encoder.layer.{number}."
        if part == "attn.qkv":
            for role, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                converted[f"{prefix}attention.attention.{role}{kind}"] = third.clone()
        elif part in _BLOCK_NAMES:
            converted[prefix + _BLOCK_NAMES[part] + kind] = value
        else:
            raise InputError(f"it has an unknown weight {key}")
    return converted
