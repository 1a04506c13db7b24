"""A network of the Hugging Face hub as the backbone, its patches in the scikit-learn estimator.

    python examples/transformers_backbone.py demo/data/demo --weights facebook/convnext-tiny-224

Any convolutional network of `transformers` will do (ConvNeXt, ResNet, RegNet, MobileNet), by its
name on the hub or as a folder, which needs no internet. For DINOv2 and its kin see `load_backbone`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.transforms import Compose, Orientationd, SaveImage
from torch import Tensor, nn
from transformers import AutoModel

from monai_dpmm import (
    AnomalyDetector,
    AnomalyInferer,
    DirichletProcessMixture,
    EmbedPatchesd,
    ExtractSlicesd,
    LoadVolumed,
    NormalizeSlicesd,
    RescaleIntensityd,
    datalist,
)

IMAGE_SIZE = 224  # pixels of a slice's shorter side, as the network sees it


class Backbone(nn.Module):
    """Last stage but one of a model: (B, 3, H, W) -> (B, D, h, w)."""

    patch_size = 32  # H and W are made multiples of it

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.network = AutoModel.from_pretrained(weights)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images on ImageNet's scale."""
        return self.network(images, output_hidden_states=True).hidden_states[-2]


def main() -> None:
    """Fit the estimator to healthy scans, print its scores and save heat maps of other scans."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, help="with train, val and test scans")
    parser.add_argument("--weights", default="facebook/convnext-tiny-224", help="name or folder")
    parser.add_argument("--output", type=Path, default="output", help="folder of the heat maps")
    args = parser.parse_args()

    backbone = Backbone(args.weights).eval()
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
            EmbedPatchesd("image", backbone),  # (S, h, w, D), unit norm
        ]
    )
    healthy = [embed(item)["image"].flatten(0, 2) for item in datalist(args.dataset, "train")]
    estimator = DirichletProcessMixture(
        components=100, initialization="k-means++", max_epochs=10, random_state=0
    )
    estimator.fit(torch.cat(healthy).numpy())
    print(f"{estimator.history_[-1]['components']} prototypes of {len(healthy)} healthy scans")

    # Patches of other scans, as an array, or whole volumes: the fitted mixture is a torch module.
    detector = AnomalyDetector(backbone, estimator.mixture_, image_size=IMAGE_SIZE)
    inferer, save = AnomalyInferer(axis=2), SaveImage(args.output, "anomaly", resample=True)
    for item in datalist(args.dataset, "test"):
        patches = embed(item)["image"].flatten(0, 2).numpy()
        highest = estimator.anomaly_score(patches).max()
        print(f"{Path(item['image']).name}: highest score of a patch {highest:.3f}")
        save(inferer(load(item)["image"][None], detector)[0])


if __name__ == "__main__":
    main()
