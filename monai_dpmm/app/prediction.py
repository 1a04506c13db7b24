"""One scan in memory through a trained bundle, without files and engines."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, SaveImaged
from torch import Tensor

from monai_dpmm.errors import InputError, MissingFileError
from monai_dpmm.io.in_memory import image_in_memory

__all__ = ["Prediction", "predict"]


class Prediction(NamedTuple):
    """What a model says of one scan, volumes on the scan's own grid (X, Y, Z) or (H, W).

    Attributes:
        anomaly: score of each voxel, larger is more anomalous, float32.
        mask: 1 where the score is above the model's threshold, uint8.
        component: number of the nearest prototype, from 1 on; 0 is background.
        score: of the whole scan.
        findings: the mask's connected parts, ranked, and what else NAME_findings.json has; its
            "scan_check" tells of a scan that is unlike the training's.
    """

    anomaly: Tensor
    mask: Tensor
    component: Tensor
    score: float
    findings: dict[str, Any]


def predict(
    scan: np.ndarray[Any, Any] | Tensor | str | Path,
    bundle: str | Path,
    *,
    affine: np.ndarray[Any, Any] | Tensor | None = None,
    device: str | torch.device | None = None,
) -> Prediction:
    """Anomaly map, mask and findings of one scan: (X, Y, Z) or (1, X, Y, Z), (H, W) of a picture.

    The bundle's own configs are run, so the result is that of its inference on a file with these
    voxels. The last bundle that was used stays in memory.

    Args:
        scan: voxels of any scale, see `image_in_memory`; or the path of a scan.
        bundle: folder that `write_bundle` wrote. Its configs are programs: take them from people
            that you trust.
        affine: of an array or tensor: voxel indices to mm in RAS+, (4, 4). Without it, that of a
            MetaTensor, or else voxels of 1 mm in the order right, anterior, superior.
        device: where to compute; the configs' choice if None.

    Raises:
        InputError: for a scan that `LoadVolume` refuses.
        FileNotFoundError: where there is no such bundle.
    """
    folder = Path(bundle).expanduser().absolute()
    config, model = folder / "configs" / "inference.json", folder / "models" / "model.pt"
    for file in (config, model):
        if not file.is_file():
            raise MissingFileError(f"{file}: must exist, there is no such file (write a bundle)")
    if affine is not None:
        if isinstance(scan, str | Path):
            raise InputError("affine must be None for the path of a scan, whose file has one")
        scan = image_in_memory(scan)
        scan.affine = torch.as_tensor(affine, dtype=torch.float64)
    preprocessing, network, inferer, postprocessing, where = _parts(
        config, model.stat().st_mtime_ns, None if device is None else str(device)
    )
    data = preprocessing({"image": scan})
    data["pred"] = inferer(data["image"][None].to(where), network)[0]
    data = postprocessing(data)
    volumes = (data[f"pred_{end}"][0] for end in ("anomaly", "mask", "component"))
    return Prediction(*volumes, float(data["score"]), data["findings"])


@lru_cache(maxsize=1)
def _parts(config: Path, _changed: int, device: str | None) -> tuple[Any, ...]:
    """Preprocessing, network, inferer, postprocessing without savers, and device of a bundle."""
    parser = ConfigParser()
    parser.read_config(config)
    parser["bundle_root"] = str(config.parents[1])
    if device is not None:
        parser["device"] = torch.device(device)
    names = ("preprocessing", "network", "inferer", "postprocessing", "device")
    preprocessing, network, inferer, postprocessing, where = map(parser.get_parsed_content, names)
    kept = [
        step for step in postprocessing.flatten().transforms if not isinstance(step, SaveImaged)
    ]
    return preprocessing, network.eval(), inferer, Compose(kept), where
