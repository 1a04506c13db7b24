"""Volume in, anomaly volume out: the detector applied to the slices of a volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.network.geometry import (
    extract_slices,
    patch_places,
    resize_maps,
    resize_slices,
    slice_axes,
    stack_slices,
)
from monai_dpmm.network.postprocessing import interpolated, levelled
from monai_dpmm.transforms.foreground import body_box, warn_if_all_foreground
from monai_dpmm.transforms.metatensors import (
    DIRECTION,
    directions,
    errors_name_the_file,
    one_of_batch,
    plain,
    slice_step,
    square_shapes,
)
from monai_dpmm.transforms.operating_point import THRESHOLDS

__all__ = ["AnomalyInferer"]

Maps = Callable[[Tensor, slice], Tensor]  # slices (n, C, H, W), which they are -> (n, M, H, W)


class AnomalyInferer(Inferer):
    """Anomaly volume of a volume, slice by slice: (B, C, X, Y, Z) -> (B, 1, X, Y, Z), float32.

    At most `batch_size` slices are at the network at once, so memory does not grow with their
    number. (MONAI's `SliceInferer` does not tell a network which slices it gets, and so not where
    in the body they are.) Slices of background only, where a detector ignores it, never are. A 2D
    batch (B, C, H, W) is one slice a scan. Metadata of a MetaTensor is kept; a detector's
    thresholds by rate are added to it as "thresholds", so that they travel with the volume: a
    labelling server loads the network itself, and hands it to the inferer only.

    Where the affine of a MetaTensor says that a slice's pixels are longer than wide, the network
    sees it on square pixels, and its maps are brought back to the slice's own.

    Along several axes, the volume is scored once for each that suits it (see `usable_axes`) and
    that the detector was trained on, and the scores of a voxel are averaged, each standardised by
    the detector. Patches are told where in the body they are, where the detector asks. Air, of a
    detector with `mask_foreground`, gets the lowest score of the scan.

    Args:
        axis: spatial axis that the slices are taken along, 0, 1 or 2, or several of them.
        batch_size: slices at the network at once.
        spacing_mm: score slices at most so far apart, see `slice_step`, and interpolate the maps
            between them, see `interpolated`; 0 scores all.
        detector: of the same settings as a network that comes as TorchScript, as MONAI Deploy has
            it, whose graph knows neither directions nor places: the detector gets its state and
            takes its place.
        component_map: also return the component map as channel 1, see `AnomalyDetector.maps`:
            (B, 2, X, Y, Z). Of several axes it is that of the first that suits.

    Raises:
        ValueError: for an axis out of range or an input of other dimensions.
    """

    def __init__(
        self,
        axis: int | Sequence[int] = 2,
        batch_size: int = 8,
        *,
        component_map: bool = False,
        spacing_mm: float = 0.0,
        detector: AnomalyDetector | None = None,
    ) -> None:
        super().__init__()
        self.axes = slice_axes(axis)
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        if not spacing_mm >= 0:
            raise InputError(f"spacing_mm must be at least 0, got {spacing_mm}")
        self.component_map = component_map
        self.spacing_mm = spacing_mm
        self.detector = detector
        self._script: Any = None  # that the detector has its state of

    @torch.no_grad()
    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Any],
        *args: Any,
        embeddings: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Anomaly volume (with component map, if asked for) of a batch of volumes or images.

        Args:
            inputs: (B, C, X, Y, Z) or (B, C, H, W), in [0, 1].
            network: slices (S, C, H, W) -> maps (S, 1, H, W); an `AnomalyDetector` where the
                component map is asked for.
            *args: handed to the network, if it is no detector.
            embeddings: of a detector's patches, of a batch of one scan: what `StoredEmbeddings`
                reads of it, for every direction; the backbone is not run then.
            **kwargs: handed to the network, if it is no detector.

        Raises:
            InputError: for pixels of a slice that are more than 8 times as long as wide.
        """
        if inputs.ndim not in (4, 5):
            raise InputError(
                f"inputs must be (B, C, X, Y, Z) or (B, C, H, W), got shape {tuple(inputs.shape)}"
            )
        network = self._unscripted(network, inputs.device)
        known = [{one.get(DIRECTION, 0): one["image"] for one in embeddings or ()}] * len(inputs)
        with errors_name_the_file(inputs):
            if isinstance(network, AnomalyDetector):
                if inputs.ndim == 4 and not embeddings:  # pictures reach the backbone together
                    parts = self._pictures(inputs, lambda part, _: network.embed(part), None)
                    known = [{0: one[None]} for part in parts for one in part]
                scans = [
                    self._detected(one_of_batch(inputs, index), network, own)
                    for index, own in enumerate(known)
                ]
                return _like(torch.stack(scans), inputs, network)
            call = network.maps if self.component_map else network  # type: ignore[attr-defined]

            def maps(part: Tensor, _: slice) -> Tensor:
                return torch.as_tensor(call(part, *args, **kwargs))

            if inputs.ndim == 4:
                own = (int(inputs.shape[2]), int(inputs.shape[3]))
                found = torch.cat(self._pictures(inputs, maps, own))
            else:
                scans = [one_of_batch(inputs, index) for index in range(len(inputs))]
                found = torch.stack([self._averaged(scan, maps) for scan in scans])
            return _like(found, inputs, network)

    def _unscripted(self, network: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        """The network, or the detector with the state of a TorchScript."""
        script = getattr(network, "predictor", network)  # MONAI Deploy has it in a model of its own
        if self.detector is None or not isinstance(script, torch.jit.ScriptModule):
            return network
        if script is not self._script:
            state, own = script.state_dict(), self.detector.state_dict()
            # a script also has what is derived from its state
            self.detector.load_state_dict({key: state[key] for key in own if key in state})
            self._script = script
        return self.detector.to(device).eval()

    def _pictures(self, inputs: Tensor, maps: Maps, own: tuple[int, int] | None) -> list[Tensor]:
        """What is found of pictures (B, C, H, W), those of one shape in mm together."""
        shapes = square_shapes(inputs)
        groups = plain(inputs).split(len(inputs) if len(set(shapes)) == 1 else 1)
        return [
            self._in_portions(group, shape, maps, own)
            for group, shape in zip(groups, shapes, strict=False)  # one shape may be that of all
        ]

    def _averaged(self, scan: Tensor, maps: Maps) -> Tensor:
        """Maps of a volume, the mean of all directions: (C, X, Y, Z) -> (M, X, Y, Z)."""
        found = [self._stacked(scan, axis, maps) for _, axis in directions(scan, self.axes)]
        anomaly = torch.stack([one[:1] for one in found]).mean(0)
        return torch.cat([anomaly, found[0][1:]])

    def _detected(
        self, scan: Tensor, network: AnomalyDetector, known: Mapping[int, Tensor]
    ) -> Tensor:
        """Maps of a detector, which knows directions and places: (C, ...) -> (1 or 2, ...)."""
        voxels = plain(scan)
        box = body_box(voxels)
        if network.ignore_background:
            warn_if_all_foreground(voxels > 0, scan)
        fitted = [one.fitted for one in network.mixtures]
        trained = [
            (number, axis)
            for number, axis in directions(scan, self.axes)
            if len(fitted) == 1 or fitted[number]
        ]
        if not trained:
            raise InputError(
                f"axis must hold a direction that suits the scan and the network was trained on,"
                f" got {list(self.axes)} for a scan of {' x '.join(map(str, voxels.shape[1:]))}"
                " voxels"
            )
        air = (voxels == 0).all(0) & network.mask_foreground
        maps: Tensor | None = None
        for number, axis in trained:
            step = slice_step(scan, axis, self.spacing_mm)
            one = self._stacked(
                scan, axis, _placed(network, voxels, number, axis, box, step, known.get(number))
            )
            there = (one[1] > 0) & ~air
            if network.level_slices and voxels.ndim == 4 and bool(there.any()):
                one[0] = levelled(one[0], there, axis)
            if maps is None:
                maps = one
            else:
                maps[0] += one[0]
        assert maps is not None
        maps[0] /= len(trained)
        if bool(air.any()) and not bool(air.all()):
            maps[0] = maps[0].masked_fill(air, float(maps[0][~air].min()))
            maps[1] = maps[1].masked_fill(air, 0)
        return maps if self.component_map else maps[:1]

    def _stacked(self, scan: Tensor, axis: int, maps: Maps) -> Tensor:
        """Maps of the slices along an axis, stacked: (C, ...) -> (M, ...)."""
        volume = scan.ndim == 4
        shape = square_shapes(scan[None], axis if volume else None)[0]
        step = slice_step(scan, axis, self.spacing_mm)
        slices = extract_slices(plain(scan), axis)
        own = (int(slices.shape[2]), int(slices.shape[3]))
        scored = self._in_portions(slices[::step], shape, maps, own)
        stacked = interpolated(scored, step, len(slices))
        return stack_slices(stacked, axis) if volume else stacked[0]

    def _in_portions(
        self, slices: Tensor, shape: tuple[int, int], maps: Maps, own: tuple[int, int] | None
    ) -> Tensor:
        """What is found of slices on square pixels, brought to their own shape, if it is given."""
        parts = []
        for start in range(0, len(slices), self.batch_size):
            part = slices[start : start + self.batch_size]
            found = maps(resize_slices(part, shape), slice(start, start + len(part)))
            parts.append(found if own in (None, shape) else resize_maps(found, own))
        return torch.cat(parts)


def _placed(
    network: AnomalyDetector,
    voxels: Tensor,
    direction: int,
    axis: int,
    box: Tensor,
    step: int,
    known: Tensor | None,
) -> Maps:
    """Maps of slices in one direction, each patch at its place; of embeddings where they are known.

    Args:
        network: what scores the patches.
        voxels: the whole scan.
        direction: number of the axis.
        axis: that the slices are taken along.
        box: see `body_box`.
        step: of the slices that are scored.
        known: embeddings of these (s, h, w, D).
    """
    places: dict[tuple[int, int], Tensor] = {}  # of these slices, by patch grid

    def maps(slices: Tensor, which: slice) -> Tensor:
        if known is not None:
            embeddings = known[which].to(slices.device)
        elif network.ignore_background and not bool(slices.any()):
            return _nothing(network, slices, direction)
        else:
            embeddings = network.embed(slices)
        grid = (int(embeddings.shape[1]), int(embeddings.shape[2]))
        if grid not in places:
            places[grid] = patch_places(tuple(voxels.shape[1:]), grid, axis, box)[::step]
        here = places[grid][which].to(embeddings.device)
        return network.maps_of(embeddings, slices.shape[-2:], direction, here)

    return maps


def _nothing(network: AnomalyDetector, slices: Tensor, direction: int) -> Tensor:
    """Maps of slices that are all background: (S, C, H, W) -> (S, 2, H, W)."""
    features = network.mixtures[0].features
    background = slices.new_zeros(len(slices), 1, 1, features)
    return network.maps_of(background, slices.shape[-2:], direction)


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
