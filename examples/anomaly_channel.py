"""The anomaly map as a further input channel of a MONAI U-Net that learns from a few labels.

Half of the labelled scans train the network, the other half measure it, with the channel and
without. The model of normality comes as a bundle:

    python -m monai_dpmm bundle brain_mri_anomaly_dpmm -f demo
    python examples/anomaly_channel.py brain_mri_anomaly_dpmm demo/data/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from monai.bundle import load_bundle_config
from monai.data import DataLoader, Dataset
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    ConcatItemsd,
    CopyItemsd,
    Lambdad,
    RandCropByPosNegLabeld,
    RandFlipd,
    ResampleToMatchd,
)
from monai.utils import set_determinism
from torch import Tensor
from torch.optim import Adam

from monai_dpmm import AnomalyInferer, LoadLabeld, datalist

PATCH = (32, 32, 32)


def main() -> None:
    """Train a U-Net twice and print the mean Dice of the scans that it has not seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="folder of a trained bundle")
    parser.add_argument("dataset", type=Path, help="with test/images and test/labels")
    parser.add_argument("--epochs", type=int, default=100)
    args = parser.parse_args()

    bundle = load_bundle_config(str(args.bundle), "inference.json")
    bundle["bundle_root"] = str(args.bundle)
    detector, preprocessing = map(bundle.get_parsed_content, ("network_def", "preprocessing"))
    inferer = AnomalyInferer(bundle["slice_axis"], spacing_mm=bundle["slice_spacing_mm"])

    def anomaly(scan: Tensor) -> Tensor:
        """Scores of a scan's voxels, 1 at the threshold for 1 % false positives."""
        return inferer(scan[None], detector)[0] / detector.threshold(0.01)

    load = Compose(
        [
            preprocessing,
            LoadLabeld(),
            ResampleToMatchd("label", key_dst="image", mode="nearest"),
            CopyItemsd("image", names="anomaly"),
            Lambdad("anomaly", anomaly),
            ConcatItemsd(["image", "anomaly"], "both"),  # (2, X, Y, Z)
        ]
    )
    scans = [load(item) for item in datalist(args.dataset, "test", labels=True)]
    for key, channels in {"image": 1, "both": 2}.items():
        set_determinism(0)
        network = UNet(3, channels, 2, channels=(16, 32, 64), strides=(2, 2), num_res_units=1)
        train(network, scans[::2], key, args.epochs)
        print(f"{key}: mean Dice {mean_dice(network, scans[1::2], key):.3f}")


def train(network: UNet, scans: list[dict[str, Any]], key: str, epochs: int) -> None:
    """Train a network on patches of the scans, half of them around lesions."""
    crops = Compose(
        [
            RandCropByPosNegLabeld([key, "label"], "label", PATCH, num_samples=4),
            RandFlipd([key, "label"], prob=0.5, spatial_axis=0),
        ]
    )
    loader = DataLoader(Dataset(scans, crops), batch_size=2, shuffle=True)
    loss, optimizer = DiceCELoss(to_onehot_y=True, softmax=True), Adam(network.parameters(), 1e-2)
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss(network(batch[key]), batch["label"]).backward()
            optimizer.step()


@torch.no_grad()
def mean_dice(network: UNet, scans: list[dict[str, Any]], key: str) -> float:
    """Mean Dice of the lesions of the scans."""
    dice = DiceMetric(include_background=False)
    for scan in scans:
        logits = sliding_window_inference(scan[key][None], PATCH, 4, network.eval(), overlap=0.5)
        dice(logits.argmax(1, keepdim=True), scan["label"][None])
    return dice.aggregate().item()


if __name__ == "__main__":
    main()
