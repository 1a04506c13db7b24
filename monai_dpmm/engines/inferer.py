"""Volume in, anomaly volume out: the detector applied to the slices of a volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.network.geometry import resize_maps, resize_slices, slice_axes
from monai_dpmm.transforms.metatensors import errors_name_the_file, plain, square_shapes
from monai_dpmm.transforms.operating_point import THRESHOLDS

__all__ = ["AnomalyInferer"]


class AnomalyInferer(SliceInferer):
    """Anomaly volume of a volume, slice by slice: (B, C, X, Y, Z) -> (B, 1, X, Y, Z), float32.

    MONAI's `SliceInferer` over whole slices: at most `batch_size` of them are at the network at
    once, so memory does not grow with the number of slices. A 2D batch (B, C, H, W) goes to the
    network `batch_size` images at a time. Metadata of a MetaTensor is kept; a detector's thresholds
    by rate are added to it as "thresholds", so that they travel with the volume: a labelling server
    loads the network itself, and hands it to the inferer only.

    Where the affine of a MetaTensor says that a slice's pixels are longer than wide, the network
    sees it on square pixels, and its maps are brought back to the slice's own.

    Along several axes, the volume is scored once for each, and the scores of a voxel are averaged.
    The detector should know slices of all these axes (see `ExtractSlicesd`). Its thresholds are
    those of single patches, which averages exceed less often: `VolumeCalibration` finds thresholds
    of the fused volume.

    Args:
        axis: spatial axis that the slices are taken along, 0, 1 or 2, or several of them.
        batch_size: slices at the network at once.
        component_map: also return the component map as channel 1, see `AnomalyDetector.maps`:
            (B, 2, X, Y, Z). Of several axes it is that of the first.

    Raises:
        ValueError: for an axis out of range or an input of other dimensions.
    """

    def __init__(
        self,
        axis: int | Sequence[int] = 2,
        batch_size: int = 8,
        *,
        component_map: bool = False,
    ) -> None:
        self.axes = slice_axes(axis)
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        super().__init__(roi_size=(-1, -1), sw_batch_size=batch_size, overlap=0.0)
        self.component_map = component_map

    @torch.no_grad()
    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Anomaly volume (with component map, if asked for) of a batch of volumes or images.

        Args:
            inputs: (B, C, X, Y, Z) or (B, C, H, W), in [0, 1].
            network: slices (S, C, H, W) -> maps (S, 1, H, W); an `AnomalyDetector` where the
                component map is asked for.
            *args: handed to the network.
            **kwargs: handed to the network.

        Raises:
            InputError: for pixels of a slice that are more than 8 times as long as wide.
        """
        call = network.maps if self.component_map else network  # type: ignore[attr-defined]
        if inputs.ndim not in (4, 5):
            raise InputError(
                f"inputs must be (B, C, X, Y, Z) or (B, C, H, W), got shape {tuple(inputs.shape)}"
            )
        first, *others = self.axes if inputs.ndim == 5 else (None,)
        with errors_name_the_file(inputs):
            result = self._scored(inputs, first, call, *args, **kwargs)
            if others:
                anomaly = result[:, :1]
                for axis in others:
                    anomaly = anomaly + self._scored(inputs, axis, network, *args, **kwargs)
                result = torch.cat([anomaly / len(self.axes), result[:, 1:]], dim=1)
        return _like(result, inputs, network)

    def _scored(
        self, inputs: Tensor, axis: int | None, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Maps of the slices along one axis, stacked, or of images (None)."""
        shapes = square_shapes(inputs, axis)
        scans = plain(inputs).split(len(inputs) if len(set(shapes)) == 1 else 1)
        parts = [
            self._stacked(scan, axis, _on_square_pixels(call, shape), args, kwargs)
            for scan, shape in zip(scans, shapes, strict=False)  # one shape may be that of many
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _stacked(
        self,
        scans: Tensor,
        axis: int | None,
        call: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Tensor:
        if axis is None:
            parts = [call(part, *args, **kwargs) for part in scans.split(self.sw_batch_size)]
            return torch.cat([torch.as_tensor(part) for part in parts])
        self.spatial_dim = axis
        return cast(Tensor, super().__call__(scans, call, *args, **kwargs))


def _on_square_pixels(call: Callable[..., Any], shape: tuple[int, int]) -> Callable[..., Any]:
    """The network on slices that are resized to this shape, with maps of the slices' own."""

    def resized(slices: Tensor, *args: Any, **kwargs: Any) -> Any:
        own = (int(slices.shape[2]), int(slices.shape[3]))
        if own == shape:
            return call(slices, *args, **kwargs)
        maps = call(resize_slices(slices, shape), *args, **kwargs)
        return resize_maps(torch.as_tensor(maps), own)

    return resized


def _like(result: Tensor, inputs: Tensor, network: Any) -> Tensor:
    """The result with the metadata of its inputs and the thresholds of the network."""
    if not isinstance(inputs, MetaTensor):
        return result
    like = MetaTensor(result)
    like.copy_meta_from(inputs)
    like.is_batch = inputs.is_batch
    # what the inputs say of thresholds goes: a file's header may hold anything
    like.meta = {key: value for key, value in like.meta.items() if key != THRESHOLDS}
    found = getattr(network, "thresholds_by_rate", None)
    if found is not None:
        each = {rate: [value] * len(inputs) for rate, value in found.items()}
        like.meta[THRESHOLDS] = each if like.is_batch else found
    return like
