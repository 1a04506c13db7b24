"""One fitted model on the test scans: its quality as the paper measures it, time and memory."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_dpmm.engines.embedding_store import LabelledScan
from monai_dpmm.metrics.anomaly_metrics import pixel_metrics
from monai_dpmm.metrics.score_histogram import ScoreHistogram
from monai_dpmm.network.geometry import upsample_scores
from monai_dpmm.network.thresholds import image_score, thresholds_at
from monai_dpmm.study.models.baselines import NormalityModel

__all__ = ["RATES", "Cost", "cost", "quality"]

RATES = (0.1, 0.05, 0.01)
_CALLS = 3
_PEAK, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Cost(NamedTuple):
    """Time of scoring a slice, and the highest memory that it needs, model included."""

    milliseconds: float
    megabytes: float


def quality(
    model: NormalityModel, kind: str, held_out: Sequence[Tensor], tests: Iterable[LabelledScan]
) -> dict[str, Any]:
    """Metrics of a model by one of its scores.

    Over all pixels of the test slices, at the size of their masks: "auroc" and "aupr" (Table 1),
    each with "_error", what the histogram of the pixels can have cost, "best_dice", and "dice" at
    the rates `RATES` by thresholds of the healthy patches held out (Table 2). "image_auroc" is that
    of slices with a lesion against those without, scored by the mean of their highest 1 % of
    patches. "images" lists the slices with a lesion: "scan", "slice", and their own "auroc" and
    "aupr".
    """
    rates = torch.tensor(RATES, dtype=torch.float64)
    thresholds = thresholds_at(_healthy_scores(model, kind, held_out), rates)
    pool, images = ScoreHistogram(), []
    overlaps = torch.zeros(2, len(RATES), dtype=torch.int64)
    levels: list[tuple[float, bool]] = []
    for scan in tests:
        scores = model.score(scan.embeddings, kind)
        maps = upsample_scores(scores, scan.masks.shape[1:])[:, 0]
        pool.update(maps, scan.masks)
        overlaps += _overlaps(maps, scan.masks, thresholds)
        lesions = scan.masks.flatten(1).any(1)
        levels += [(float(image_score(s)), bool(m)) for s, m in zip(scores, lesions, strict=True)]
        for i in lesions.nonzero()[:, 0].tolist():
            metrics = pixel_metrics(maps[i].flatten(), scan.masks[i].flatten())
            images.append({"scan": scan.name, "slice": i, **metrics})
    auroc, aupr = pool.auroc(), pool.aupr()
    image_scores, image_labels = (torch.tensor(column) for column in zip(*levels, strict=True))
    return {
        **{"auroc": auroc.value, "auroc_error": auroc.error},
        **{"aupr": aupr.value, "aupr_error": aupr.error, "best_dice": pool.best_dice().value},
        "dice": (overlaps[0] / overlaps[1]).tolist(),
        "image_auroc": pixel_metrics(image_scores, image_labels)["auroc"],
        "images": images,
    }


def cost(model: NormalityModel, kind: str, slices: Sequence[Tensor]) -> Cost:
    """Time and memory of scoring slices (h, w, D) one at a time; the backbone is not in it.

    Time is the median over the slices of each one's fastest of three calls. Memory is that of the
    model's buffers and the highest above them while a slice is scored: on a CPU of all that the
    process holds (Linux only, else NaN), on a GPU of its tensors.
    """
    batches = [grid[None] for grid in slices]
    model.score(batches[0], kind)
    seconds = [min(_seconds(model, kind, batch) for _ in range(_CALLS)) for batch in batches]
    buffers = sum(b.numel() * b.element_size() for b in model.module.buffers())
    fullest = max(batches, key=lambda batch: int(batch.any(-1).sum()))
    above = _peak(lambda: model.score(fullest, kind), model.module)
    return Cost(1000 * statistics.median(seconds), (buffers + above) / 1e6)


def _seconds(model: NormalityModel, kind: str, slices: Tensor) -> float:
    start = time.perf_counter()
    model.score(slices, kind)
    return time.perf_counter() - start


def _healthy_scores(model: NormalityModel, kind: str, slices: Sequence[Tensor]) -> Tensor:
    """Scores of all patches that are not background: (N,)."""
    return torch.cat([model.score(grid[None], kind)[0][grid.any(-1)] for grid in slices])


def _overlaps(maps: Tensor, masks: Tensor, thresholds: Tensor) -> Tensor:
    """Twice the overlap of mask and lesions, and the sum of both, at each threshold: (2, R)."""
    found = [maps > threshold for threshold in thresholds]
    hits = torch.stack([2 * (f & masks).sum() for f in found])
    return torch.stack([hits, torch.stack([f.sum() + masks.sum() for f in found])])


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
