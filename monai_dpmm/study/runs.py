"""One fitted model on the test scans: its quality as the paper measures it, time and memory."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_dpmm.metrics.anomaly_metrics import AnomalyMetrics
from monai_dpmm.metrics.image_metrics import Thresholds
from monai_dpmm.network.geometry import upsample_scores
from monai_dpmm.network.thresholds import thresholds_at
from monai_dpmm.study.embedded_dataset import LabelledScan
from monai_dpmm.study.models.normality import NormalityModel
from monai_dpmm.study.refinement import RefinementMetrics

__all__ = ["RATES", "Cost", "cost", "quality"]

RATES = (0.1, 0.05, 0.01)
_CALLS = 3
_UNIT = 1e-3  # of the deviation of healthy patches
_PEAK, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Cost(NamedTuple):
    """Time of scoring a slice, and the highest memory that it needs, model included."""

    milliseconds: float
    megabytes: float


def quality(
    model: NormalityModel,
    kind: str,
    held_out: Iterable[tuple[Tensor, Tensor]],
    tests: Iterable[LabelledScan],
    sigma_mm: float,
) -> dict[str, Any]:
    """Metrics of a model by one of its scores, as `AnomalyMetrics` has them of the test slices.

    Slices are images at the size of their masks. "auroc", "aupr" (Table 1) and "best_dice" are of
    all pixels together, "binning_error" is what their histogram can have cost; "dice" is that at
    the rates `RATES`, by thresholds of the healthy patches held out (Table 2). "image_auroc" is
    that of slices with a lesion against those without, scored by the mean of their highest 1 % of
    pixels. "images" lists the slices with a lesion: "scan", "slice", and their own "auroc" and
    "aupr". "steps" is of the body's pixels only, and of maps that are refined, see
    `RefinementMetrics`.

    Scores are counted in thousandths of their deviation over the healthy patches held out, which is
    far below what a method can tell apart, and several times as fast.

    Args:
        model: fitted.
        kind: of its scores.
        held_out: healthy slices and the places of their patches, (h, w, D) and (h, w, 3) each.
        tests: scans with lesions.
        sigma_mm: of the smoothing.
    """
    rates = torch.tensor(RATES, dtype=torch.float64)
    healthy = [
        model.score(grid[None], kind, places[None])[0][grid.any(-1)] for grid, places in held_out
    ]
    scores = torch.cat(healthy)
    metrics = AnomalyMetrics(Thresholds(rates, thresholds_at(scores, rates)))
    unit = _UNIT * float(scores.double().std())
    steps = RefinementMetrics(sigma_mm, unit)
    slices = []
    for scan in tests:
        patches = model.score(scan.embeddings, kind, scan.places)
        maps = upsample_scores(patches, scan.masks.shape[1:])
        steps.add(maps[:, 0], scan)
        maps = (maps / unit).round() * unit
        pairs = zip(maps, scan.masks[:, None], strict=True)
        metrics.update([{"pred": anomaly, "label": label} for anomaly, label in pairs])
        slices += [{"scan": scan.name, "slice": number} for number in range(len(maps))]
    found = metrics.compute()
    pixels = {name: found[f"pixel_{name}"] for name in ("auroc", "aupr", "binning_error")}
    return {
        **pixels,
        "best_dice": found["pixel_best_dice"],
        "dice": [found[f"dice_at_fpr_{rate:.3g}"] for rate in RATES],
        "image_auroc": found["image_auroc"],
        "images": [
            {**place, "auroc": image["auroc"], "aupr": image["aupr"]}
            for place, image in zip(slices, metrics.subjects, strict=True)
            if image["anomalous"]
        ],
        "steps": steps.compute(),
    }


def cost(model: NormalityModel, kind: str, slices: Sequence[tuple[Tensor, Tensor]]) -> Cost:
    """Time and memory of scoring slices (h, w, D) one at a time; the backbone is not in it.

    Time is the median over the slices of each one's fastest of three calls. Memory is that of the
    model's tensors and the highest above them while a slice is scored: on a CPU of all that the
    process holds (Linux only, else NaN), on a GPU of its tensors.

    Args:
        model: fitted.
        kind: of its scores.
        slices: with the places of their patches, (h, w, 3).
    """
    calls = [partial(model.score, grid[None], kind, places[None]) for grid, places in slices]
    calls[0]()
    seconds = [min(_seconds(call) for _ in range(_CALLS)) for call in calls]
    tensors = (*model.module.buffers(), *model.module.parameters())
    buffers = sum(b.numel() * b.element_size() for b in tensors)
    patches = [int(grid.any(-1).sum()) for grid, _ in slices]
    above = _peak(calls[patches.index(max(patches))], model.module)
    return Cost(1000 * statistics.median(seconds), (buffers + above) / 1e6)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _peak(call: Callable[[], object], module: nn.Module) -> float:
    """Highest memory during a call above that before it, bytes; NaN where no one counts it."""
    device = next(module.buffers()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # freed memory that is kept would hide what the call takes of it
    try:
        _RESET.write_text("5")  # the kernel's mark of the highest memory, back to the present
    except OSError:
        return math.nan
    before = _resident("VmRSS")
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    """Bytes of a line of the process's status."""
    lines = _PEAK.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
