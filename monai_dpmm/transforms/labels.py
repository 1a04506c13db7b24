"""Patches that an expert has marked as lesions: not healthy, so left out of training."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

import torch
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_tensor
from torch import Tensor
from torch.nn import functional as F

from monai_dpmm.errors import InputError

__all__ = ["IgnoreLabelledPatchesd"]


class IgnoreLabelledPatchesd(Transform):
    """Embeddings without the patches that a label touches: (S, h, w, D) -> (S, h, w, D).

    Such patches become zero vectors, which training leaves out and thresholds do not count (see
    `collate_patches`), so a scan with lesions that were outlined can serve as a healthy one. Items
    without a label stay as they are. The label is removed: it is no longer needed.

    Args:
        key: key of the embeddings, on the patch grid of their slices.
        label_key: key of the label's slices (S, 1, H, W), a lesion wherever they are above 0.

    Raises:
        ValueError: where label and embeddings have different numbers of slices.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, key: Hashable = "image", label_key: Hashable = "label") -> None:
        self.key = key
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the embeddings of unlabelled patches, without the label."""
        result = dict(data)
        label = result.pop(self.label_key, None)
        if label is not None:
            slices = convert_to_tensor(label, track_meta=False)
            result[self.key] = _without(result[self.key], slices)
        return result


def _without(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Embeddings with zeros where a patch's pixels hold a label above 0."""
    slices, height, width = embeddings.shape[:3]
    if labels.shape[0] != slices:
        raise InputError(
            f"label must have as many slices as its image, {slices}, got {labels.shape[0]}"
        )
    marked = F.adaptive_max_pool2d((labels > 0).to(torch.float32), (height, width))
    return embeddings * (marked.amax(dim=1) == 0).unsqueeze(-1)
