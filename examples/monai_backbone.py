"""A MONAI network as the backbone: our transforms in a plain Compose, its features in our mixture.

    python examples/monai_backbone.py demo/data/demo

MONAI downloads the network's ImageNet weights; `--weights FILE` takes them, or your own, from a
file instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from monai.data import CacheDataset
from monai.networks.nets import EfficientNetBNFeatures
from monai.transforms import Compose, Orientationd
from torch import Tensor, nn

from monai_dpmm import (
    DPMM,
    AnomalyDetector,
    AnomalyInferer,
    EmbedPatchesd,
    ExtractSlicesd,
    LoadLabeld,
    LoadVolumed,
    NormalizeSlicesd,
    RescaleIntensityd,
    SliceDataLoader,
    datalist,
    load_weights,
)

IMAGE_SIZE = 160  # pixels of a slice's shorter side, as the network sees it


class Backbone(nn.Module):
    """Fourth level of a MONAI EfficientNet: (B, 3, H, W) -> (B, 112, H / 16, W / 16)."""

    patch_size = 16  # H and W are made multiples of it
    embedding_dim = 112

    def __init__(self, network: EfficientNetBNFeatures) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Features of images on ImageNet's scale."""
        return self.network(images)[3]


def main() -> None:
    """Train on healthy scans and print how the lesions of other scans score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, help="with train, val, test/images and test/labels")
    parser.add_argument("--weights", type=Path, help="state dict of the network")
    args = parser.parse_args()

    network = EfficientNetBNFeatures("efficientnet-b0", pretrained=args.weights is None)
    if args.weights is not None:
        load_weights(network, args.weights)
    backbone = Backbone(network).eval()

    load = Compose(
        [
            LoadVolumed("image"),
            Orientationd("image", axcodes="PLI", labels=None),
            RescaleIntensityd("image"),
        ]
    )
    embed = Compose(
        [
            load,
            ExtractSlicesd("image", step=2),  # (1, X, Y, Z) -> (S, 1, H, W)
            NormalizeSlicesd("image", IMAGE_SIZE, backbone.patch_size, percentiles=None),
            EmbedPatchesd("image", backbone, ignore_background=True),  # (S, h, w, D)
        ]
    )
    healthy = CacheDataset(datalist(args.dataset, "train"), embed, progress=False)
    loader = SliceDataLoader(healthy, batch_size=12, shuffle=True)

    mixture = DPMM(
        backbone.embedding_dim,
        components=100,
        initialization="k-means++",
        variance_floor=1e-3,  # of a convolutional network; the default is for DINOv2
    )
    for _ in range(10):
        for batch in loader:
            patches = batch["image"]  # (N, D)
            if not mixture.fitted:
                mixture.initialize(patches)
            mixture.step(patches)

    detector = AnomalyDetector(backbone, mixture, image_size=IMAGE_SIZE, ignore_background=True)
    inferer = AnomalyInferer(axis=2)
    labelled = Compose([load, LoadLabeld(), Orientationd("label", axcodes="PLI", labels=None)])
    for item in datalist(args.dataset, "test", labels=True):
        scan = labelled(item)
        anomaly = inferer(scan["image"][None], detector)[0]  # (1, X, Y, Z), on the scan's grid
        head, lesion = scan["image"] > 0, scan["label"] > 0
        inside, outside = anomaly[lesion].mean(), anomaly[head & ~lesion].mean()
        # of a healthy scan the first number is nan
        print(f"{Path(item['image']).name}: {inside:.3f} in lesions, {outside:.3f} elsewhere")


if __name__ == "__main__":
    main()
