"""Whole scans whose embeddings come from the store of training, where they are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines import PrepareBatch
from monai.transforms import Compose, ResampleToMatchd

from monai_dpmm.engines.embedding_store import StoredEmbeddings
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.transforms.dictionary import (
    EmbedPatchesd,
    ExtractSlicesd,
    LoadVolumed,
    NormalizeSlicesd,
)
from monai_dpmm.transforms.labels import IgnoreLabelledPatchesd

__all__ = ["PrepareEmbedded", "numbered_scans", "scan_embedding"]


class PrepareEmbedded(PrepareBatch):
    """MONAI's batch for an evaluator whose inferer takes embeddings, see `AnomalyInferer`.

    Args:
        embeddings: of the scans; a batch is of one, and says its number at "scan" (see
            `numbered_scans`).
        make: embed and keep what is not there yet; otherwise the inferer runs the backbone then,
            as it does where a batch says no number.
    """

    def __init__(self, embeddings: StoredEmbeddings, *, make: bool = True) -> None:
        self.embeddings = embeddings
        self.make = make

    def __call__(
        self,
        batchdata: Any,
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Image, label if one was loaded, no arguments, and the scan's embeddings by name."""
        image, label = (
            value.to(device, non_blocking=non_blocking) if isinstance(value, torch.Tensor) else None
            for value in (batchdata["image"], batchdata.get("label"))  # which may be a path
        )
        return image, label, (), {"embeddings": self._embeddings(batchdata.get("scan"))}

    def _embeddings(self, scan: Any) -> Any:
        if scan is None:
            return None
        (number,) = scan.tolist()
        if not self.make and not self.embeddings.path(number).is_file():
            return None
        item = self.embeddings[number]
        return item if isinstance(item, list) else [item]


def numbered_scans(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items of a data set, each with its number at "scan"."""
    return [{**item, "scan": number} for number, item in enumerate(items)]


def scan_embedding(
    preprocessing: Compose,
    detector: AnomalyDetector,
    axis: int | Sequence[int],
    batch_size: int = 8,
    spacing_mm: float = 0.0,
) -> Compose:
    """Steps by which training embeds the slices of a scan, for a detector that is trained.

    They are those of the config train.json, so that `StoredEmbeddings` names its files alike.

    Args:
        preprocessing: from paths to volumes.
        detector: whose backbone embeds, on the device where it is.
        axis: see `ExtractSlicesd`.
        batch_size: slices at the backbone at once.
        spacing_mm: see `ExtractSlices`.
    """
    backbone = detector.backbone
    steps = [
        preprocessing,
        LoadVolumed("label", allow_constant=True, allow_missing_keys=True),
        ResampleToMatchd(
            "label", "image", mode="nearest", padding_mode="zeros", allow_missing_keys=True
        ),
        ExtractSlicesd(["image", "label"], axis, spacing_mm=spacing_mm, allow_missing_keys=True),
        NormalizeSlicesd("image", detector.image_size, detector.patch_size, percentiles=None),
        EmbedPatchesd(
            "image",
            backbone,
            batch_size,
            ignore_background=detector.ignore_background,
            patch_grid=detector.patch_grid,
        ),
        IgnoreLabelledPatchesd(),
    ]
    return Compose(Compose(steps).flatten().transforms)
