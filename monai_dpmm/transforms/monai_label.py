"""What a labelling server asks of the inference workflow, and what it answers.

MONAI Label runs a bundle's transforms on one dictionary that also holds the request: what its user
chose in the options of the viewer. The data of a run without a server hold no request, and the
defaults count.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends
from torch import Tensor

from monai_dpmm.errors import InputError
from monai_dpmm.io.suffixes import WRITTEN_SUFFIXES
from monai_dpmm.network.thresholds import DEFAULT_RATES
from monai_dpmm.transforms.metatensors import like, plain
from monai_dpmm.transforms.operating_point import THRESHOLDS

__all__ = [
    "AnswerRequestd",
    "ReadRequestd",
    "anomaly_levels",
    "rate_choices",
]

Output = Literal["mask", "levels", "heatmap"]
DEFAULT = "default"  # of the rates: the configured operating point


def rate_choices(false_positive_rate: float | None) -> list[str]:
    """Calibrated false-positive rates for a menu of choices, the default one first.

    Text, because the menus of 3D Slicer hold nothing else. Where no rate is configured, the first
    is "default": the operating point that is.
    """
    others = [f"{rate:g}" for rate in DEFAULT_RATES if rate != false_positive_rate]
    return [DEFAULT if false_positive_rate is None else f"{false_positive_rate:g}", *others]


class ReadRequestd(MapTransform):
    """Data with the request's choices checked and typed: "output" and "false_positive_rate".

    A request gives a choice as text, or as the whole menu where its user made none: then the first
    entry counts. What the request does not name stays away, and so does a rate of "default".

    It is a `MapTransform`, since MONAI Deploy looks at the first transform to tell whether data are
    a dictionary.

    Raises:
        ValueError: for an output that is not "mask", "levels" or "heatmap", or a rate that is no
            number.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self) -> None:
        super().__init__(("output", "false_positive_rate"), allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the choices in place."""
        result = dict(data)
        if "output" in result:
            result["output"] = _output(_chosen(result["output"]))
        chosen = _chosen(result.pop("false_positive_rate", DEFAULT))
        if chosen != DEFAULT:
            result["false_positive_rate"] = _rate(chosen)
        return result


class AnswerRequestd(Transform):
    """Data with what a labelling server sends: the volume at "pred", the numbers at "result".

    The volume is the mask (uint8, 1 is anomaly), which viewers of labels can show. Where the
    request's "output" is "levels", it is a label map of all calibrated operating points, see
    `anomaly_levels`. Where that is "heatmap", it is the anomaly scores, sent as float32 whatever
    type the client asked for: as integers they would all be 0. It is written in the scan's own
    format, or as NIfTI where that is none to write to, such as a DICOM series. "result" is a
    dictionary for JSON.

    Args:
        mask_key: key of the mask.
        anomaly_key: key of the anomaly scores.
        result_keys: keys of numbers, lists and dictionaries that "result" is made of, under the
            same names.
        inferred: key of what `AnomalyInferer` returned, whose thresholds make levels.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self,
        mask_key: Hashable = "pred_mask",
        anomaly_key: Hashable = "pred_anomaly",
        result_keys: tuple[str, ...] | list[str] = ("score",),
        *,
        inferred: Hashable = "pred",
    ) -> None:
        self.mask_key = mask_key
        self.anomaly_key = anomaly_key
        self.inferred = inferred
        self.result_keys = tuple(result_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data with the answer."""
        output = data.get("output", "mask")
        heatmap = output == "heatmap"
        found = data[self.anomaly_key if output != "mask" else self.mask_key]
        answer = {
            **data,
            "pred": self._levels(data) if output == "levels" else found,
            "result": {key: data[key] for key in self.result_keys},
        }
        if heatmap:
            answer["result_dtype"] = "float32"
        suffix = _suffix(data)
        if suffix is not None:
            answer["result_extension"] = suffix
        return answer

    def _levels(self, data: Mapping[Hashable, Any]) -> Tensor:
        """Label map of the anomaly map, by the thresholds of the first map that carries some."""
        maps = [data[key] for key in (self.anomaly_key, self.inferred) if key in data]
        carried = [one.meta.get(THRESHOLDS) for one in maps if isinstance(one, MetaTensor)]
        return anomaly_levels(maps[0], next(filter(None, carried), {}))


def anomaly_levels(anomaly: Tensor, thresholds: Mapping[str, float]) -> Tensor:
    """Label map of an anomaly map's calibrated operating points, the same shape, uint8.

    0 is below all thresholds, 1 above that of the highest rate of false positives only, and so on
    to the number of rates above all: the segments of a viewer, which lie within each other.

    Args:
        anomaly: map.
        thresholds: by rate.

    Raises:
        InputError: where there are none, or the network was not calibrated.
    """
    if not thresholds or not all(map(math.isfinite, thresholds.values())):
        raise InputError(f"the anomaly map must carry calibrated thresholds, got {thresholds}")
    scores = plain(anomaly)
    levels = torch.zeros(scores.shape, dtype=torch.uint8, device=scores.device)
    for threshold in thresholds.values():
        levels += (scores > threshold).to(levels)
    return like(levels, anomaly)


def _chosen(value: Any) -> Any:
    """A choice, or the first of a menu."""
    return value[0] if isinstance(value, (list, tuple)) else value


def _output(value: Any) -> Output:
    if value not in get_args(Output):
        raise InputError(f"output must be one of {', '.join(get_args(Output))}, got {value!r}")
    return value


def _rate(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"false_positive_rate must be a number, got {value!r}") from None


def _suffix(data: Mapping[Hashable, Any]) -> str | None:
    """Suffix to write a served scan's result with, None where the request or the scan gives it."""
    path = data.get("image_path")
    if path is None or data.get("result_extension"):
        return None
    known = Path(path).is_file() and str(path).lower().endswith(WRITTEN_SUFFIXES)
    return None if known else ".nii.gz"
