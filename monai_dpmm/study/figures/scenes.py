"""A trained model on the scans of a data set, one at a time, as figures show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from monai.utils import convert_to_tensor
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes, apply_orientation, axcodes2ornt, ornt_transform
from torch import Tensor

from monai_dpmm.engines.embedding_store import with_label
from monai_dpmm.engines.inferer import AnomalyInferer
from monai_dpmm.io.label_loading import LoadLabeld
from monai_dpmm.io.layouts import IMAGE_SUFFIXES
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.network.geometry import extract_slices
from monai_dpmm.network.weights import load_weights
from monai_dpmm.report.display import Scan, displayed_slice
from monai_dpmm.transforms.dictionary import ExtractSlicesd

__all__ = ["Frame", "Scene", "Scenes", "SlicePatches"]


class Frame:
    """How a scan that the model sees lies in the world.

    Args:
        affine: of the volume as the model sees it.
        ndim: 3, or 2 for a picture.
        axis: that slices are taken along.
    """

    def __init__(self, affine: np.ndarray, ndim: int, axis: int) -> None:
        codes = aff2axcodes(affine)[:ndim]
        self._transform = ornt_transform(axcodes2ornt(codes), axcodes2ornt("RAS"[:ndim]))
        self.model_axis = axis
        sizes = voxel_sizes(affine)[:ndim]
        order = self._transform[:, 0].argsort().astype(int)
        self.picture = ndim == 2
        self.axis = 2 if self.picture else int(self._transform[axis, 0])
        self.spacing = tuple(sizes[order].tolist()) + (1.0,) * self.picture

    def canonical(self, volume: np.ndarray) -> np.ndarray:
        """Volume with axes towards Right, Anterior, Superior; a picture's likewise."""
        return apply_orientation(volume, self._transform)

    def upright(self, plane: np.ndarray) -> np.ndarray:
        """Slice of the model, or a part of it, as the screen shows it: (H, W) -> (H', W')."""
        if self.picture:
            return self.canonical(plane).T
        volume = self.canonical(np.expand_dims(plane, self.model_axis))
        return displayed_slice(volume, self.axis, 0)


class SlicePatches(NamedTuple):
    """Patches of one slice: pixels (H, W) in [0, 1], scores (h, w), components (h, w), -1 none."""

    pixels: np.ndarray
    scores: np.ndarray
    components: np.ndarray


class Scene(NamedTuple):
    """A scan under the model."""

    name: str
    scan: Scan


class Scenes:
    """The scans of a data set under a trained model.

    Args:
        parser: of the configs train and evaluate, with the model's own settings between them.

    Raises:
        InputError: where there is no trained model.
    """

    def __init__(self, parser: ConfigParser) -> None:
        self.parser = parser
        model = f"{parser.get_parsed_content('ckpt_dir')}/model.pt"
        network = load_weights(parser.get_parsed_content("network_def"), model)
        device = parser.get_parsed_content("device")
        self.network: AnomalyDetector = network.to(device).eval()
        self.device = device
        self.inferer: AnomalyInferer = parser.get_parsed_content("validate#inferer")
        transforms = parser.get_parsed_content("embedding").flatten().transforms
        loading = list(takewhile(lambda t: not isinstance(t, ExtractSlicesd), transforms))
        label = LoadLabeld(rule=parser.get_parsed_content("label_rule"))
        self.loading = Compose(loading)
        self._labelled = Compose(with_label(loading, label))

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> Iterator[Scene]:
        """Scenes of items of `monai_dpmm.datalist`, one in memory at a time.

        They have a label where the item has one or is known to be healthy.
        """
        for item in items:
            known = "label" in item or item.get("anomalous") is False
            data: Any = (self._labelled if known else self.loading)(dict(item))
            image, frame = self._image(data)
            pred = self.inferer(image[None].to(self.device), self.network)[0].cpu().numpy()
            arrays = {"image": image[0].numpy(), "anomaly": pred[0], "components": pred[1]}
            if "label" in data:
                arrays["label"] = convert_to_tensor(data["label"], track_meta=False)[0].numpy() > 0
            arrays = {key: frame.canonical(array) for key, array in arrays.items()}
            scan = Scan.of(**arrays, axis=frame.axis, spacing=frame.spacing)
            yield Scene(_stem(item["image"]), scan)

    @torch.no_grad()
    def patches(
        self, items: Sequence[Mapping[str, str]], slices: int
    ) -> Iterator[tuple[Frame, Iterator[SlicePatches]]]:
        """Frame and the patches of about so many slices, evenly taken, of each scan."""
        for item in items:
            image, frame = self._image(self.loading(dict(item)))
            planes = extract_slices(image, frame.model_axis)
            chosen = planes[:: max(1, len(planes) // slices)]
            yield frame, self._patches(chosen)

    def _image(self, data: Mapping[str, Any]) -> tuple[Tensor, Frame]:
        image = data["image"]
        frame = Frame(np.asarray(image.affine), image.ndim - 1, self.inferer.axes[0])
        return convert_to_tensor(image, track_meta=False), frame

    def _patches(self, planes: Tensor) -> Iterator[SlicePatches]:
        for batch in planes.split(self.inferer.sw_batch_size):
            embeddings = self.network.embed(batch.to(self.device))
            scores = self.network.patch_scores(embeddings).cpu().numpy()
            components = self.network.patch_components(embeddings).cpu().numpy()
            yield from map(SlicePatches, batch[:, 0].numpy(), scores, components)


def _stem(path: str) -> str:
    """File name without the suffixes of an image."""
    name = Path(path).name
    suffix = max((s for s in IMAGE_SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(suffix)]
