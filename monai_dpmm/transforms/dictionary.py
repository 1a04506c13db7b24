"""Dictionary transforms: `Xd` (also `XD`, `XDict`) takes keys, then the arguments of `X`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, InvertibleTransform, MapTransform, Transform
from monai.utils import TransformBackends, ensure_tuple

from monai_dpmm.errors import InputError
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.network.geometry import patch_places, slice_axes
from monai_dpmm.transforms.array import ImageScore, ThresholdAnomaly
from monai_dpmm.transforms.bias_field import CorrectBiasField
from monai_dpmm.transforms.foreground import MaskForeground
from monai_dpmm.transforms.intensity import RescaleIntensity
from monai_dpmm.transforms.metatensors import DIRECTION, PLACE, SLICED, directions
from monai_dpmm.transforms.slicing import EmbedPatches, ExtractSlices, NormalizeSlices

__all__ = [
    "CorrectBiasFieldd",
    "EmbedPatchesd",
    "ExtractSlicesd",
    "ImageScored",
    "LoadVolumed",
    "MaskForegroundd",
    "NormalizeSlicesd",
    "RescaleIntensityd",
    "ThresholdAnomalyd",
    "every_slice",
]


class _Dictionary(MapTransform):
    """Apply an array transform to each key of a dictionary.

    Args:
        keys: keys of the data to transform.
        *args: positional arguments of the array transform.
        output_keys: where the results go; the keys themselves if None.
        allow_missing_keys: skip keys that a dictionary lacks.
        **kwargs: keyword arguments of the array transform.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    array_transform: type[Transform]

    def __init__(
        self,
        keys: KeysCollection,
        *args: Any,
        output_keys: KeysCollection | None = None,
        allow_missing_keys: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform: Any = self.array_transform(*args, **kwargs)
        self.output_keys = self.keys if output_keys is None else ensure_tuple(output_keys)
        if len(self.output_keys) != len(self.keys):
            raise InputError(
                f"output_keys must be as many as keys, got {self.output_keys} for {self.keys}"
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key, output in self.key_iterator(result, self.output_keys):
            result[output] = self.transform(result[key])
        return result


class LoadVolumed(_Dictionary):
    """Dictionary version of `LoadVolume`: paths, or scans in memory, become scans."""

    array_transform = LoadVolume


class RescaleIntensityd(_Dictionary):
    """Dictionary version of `RescaleIntensity`."""

    array_transform = RescaleIntensity


class ExtractSlicesd(_Dictionary, InvertibleTransform):
    """Dictionary version of `ExtractSlices`.

    Along several axes, for training only, a list of dictionaries, one for each direction that
    suits the scan (see `usable_axes`), with its number at "direction": a `Compose` goes on with
    each of them, as it does with the crops of MONAI's cropping transforms.

    Args:
        keys: keys of the volumes; the first one tells what suits.
        axis: spatial axis that the slices are taken along, or several.
        step: see `ExtractSlices`.
        spacing_mm: see `ExtractSlices`.
        **kwargs: see `LoadVolumed`.
    """

    array_transform = ExtractSlices

    def __init__(
        self,
        keys: KeysCollection,
        axis: int | Sequence[int] = 2,
        step: int = 1,
        spacing_mm: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.axes = slice_axes(axis)
        super().__init__(keys, self.axes[0], step, spacing_mm, **kwargs)

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        """Data with the slices, or a list of such data."""
        if len(self.axes) == 1:
            return super().__call__(data)
        return [
            {**self._along(axis, data), DIRECTION: number}
            for number, axis in directions(data[self.keys[0]], self.axes)
        ]

    def _along(self, axis: int, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        own = self.transform
        result, along = dict(data), ExtractSlices(axis, own.step, own.spacing_mm)
        for key, output in self.key_iterator(result, self.output_keys):
            result[output] = along(result[key])
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Volumes of the slices, under the keys that they were taken from."""
        result = dict(data)
        for key, output in self.key_iterator(result, self.output_keys):
            result[key] = self.transform.inverse(result[output])
        return result


def every_slice(transforms: Compose) -> Compose:
    """The same transforms, flat, without the `step` of `ExtractSlicesd`: with all slices scored."""
    steps = list(transforms.flatten().transforms)
    for index, step in enumerate(steps):
        if isinstance(step, ExtractSlicesd):
            allow, mm = step.allow_missing_keys, step.transform.spacing_mm
            steps[index] = ExtractSlicesd(
                step.keys, step.axes, spacing_mm=mm, allow_missing_keys=allow
            )
    return Compose(steps)


class NormalizeSlicesd(_Dictionary):
    """Dictionary version of `NormalizeSlices`."""

    array_transform = NormalizeSlices


class EmbedPatchesd(_Dictionary):
    """Dictionary version of `EmbedPatches`; the places of the patches go beside their embeddings.

    At "place" is where in the body each patch of the first key is, (S, h, w, 3), see
    `patch_places`, of slices that `ExtractSlices` took of a scan with metadata.
    """

    array_transform = EmbedPatches

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the embeddings."""
        result = super().__call__(data)
        source, embeddings = data.get(self.keys[0]), result.get(self.output_keys[0])
        if isinstance(source, MetaTensor) and embeddings is not None and SLICED in source.meta:
            of = source.meta[SLICED]
            grid = (int(embeddings.shape[1]), int(embeddings.shape[2]))
            places = patch_places(of["shape"], grid, of["axis"], of["box"])
            result[PLACE] = places[:: of["step"]]
        return result


class MaskForegroundd(_Dictionary):
    """Dictionary version of `MaskForeground`."""

    array_transform = MaskForeground


class CorrectBiasFieldd(_Dictionary):
    """Dictionary version of `CorrectBiasField`."""

    array_transform = CorrectBiasField


class ThresholdAnomalyd(_Dictionary):
    """Dictionary version of `ThresholdAnomaly`; their threshold goes beside the masks.

    At "threshold" is a dictionary of it and what it was calibrated for, see `operating_point`. A
    "false_positive_rate" among the data, the choice of a request, counts before the configured
    rate or volume.

    Args:
        keys: keys of the anomaly maps.
        *args: of `ThresholdAnomaly`.
        inferred: key of what `AnomalyInferer` returned, where the maps have lost its metadata, as
            `Invertd` gives them those of the scan; a map that has thresholds needs it not.
        threshold_key: where the threshold goes.
        **kwargs: of `ThresholdAnomaly`, and see `LoadVolumed`.
    """

    array_transform = ThresholdAnomaly

    def __init__(
        self,
        keys: KeysCollection,
        *args: Any,
        inferred: Hashable = "pred",
        threshold_key: Hashable = "threshold",
        **kwargs: Any,
    ) -> None:
        super().__init__(keys, *args, **kwargs)
        self.inferred = inferred
        self.threshold_key = threshold_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the masks and their threshold."""
        result = dict(data)
        for key, output in self.key_iterator(result, self.output_keys):
            maps = (result[key], result.get(self.inferred))
            point = self.transform.operating_point(*maps, rate=result.get("false_positive_rate"))
            result |= {output: self.transform.mask(result[key], point), self.threshold_key: point}
        return result


class ImageScored(_Dictionary):
    """Dictionary version of `ImageScore`.

    Args:
        keys: keys of the anomaly maps.
        *args: of `ImageScore`.
        foreground_key: of a map that is above 0 in the foreground, as the component map; None for
            all pixels.
        **kwargs: see `LoadVolumed`.
    """

    array_transform = ImageScore

    def __init__(
        self,
        keys: KeysCollection,
        *args: Any,
        foreground_key: Hashable | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(keys, *args, **kwargs)
        self.foreground_key = foreground_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the scores."""
        foreground = None if self.foreground_key is None else data[self.foreground_key]
        result = dict(data)
        for key, output in self.key_iterator(result, self.output_keys):
            result[output] = self.transform(result[key], foreground)
        return result
