"""Lesions found and false alarms of whole scans: at thresholds, and as a FROC curve over all.

A lesion is a connected region of the label (26 neighbours of a voxel, 8 of a pixel), an alarm one
of the mask. An alarm finds a lesion where the two overlap at all, or where their intersection over
union reaches what is asked for; an alarm that finds no lesion is a false positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_dpmm.transforms.regions import connected_regions

__all__ = ["Froc", "LesionCounts", "ScanEvents", "froc", "lesion_counts", "scan_events"]

RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)


class LesionCounts(NamedTuple):
    """Lesions of a scan, those of them that its mask finds, and the mask's false positives."""

    found: int
    lesions: int
    false_positives: int


class ScanEvents(NamedTuple):
    """What lowering a threshold changes in a scan, however many voxels it has.

    Attributes:
        peaks: highest score of each lesion, (L,).
        scores: at which the number of false-positive alarms changes, (E,).
        changes: by how much it does when the threshold falls below the score, (E,).
    """

    peaks: Tensor
    scores: Tensor
    changes: Tensor


class Froc(NamedTuple):
    """Corners of a FROC curve: each sensitivity reached, with the fewest false positives for it.

    Attributes:
        thresholds: masks are `score > threshold`, (P,), from high to low.
        false_positives: mean per scan, (P,), ascending.
        sensitivity: share of all lesions found, (P,), ascending.
    """

    thresholds: Tensor
    false_positives: Tensor
    sensitivity: Tensor

    def sensitivity_at(self, false_positives: float) -> float:
        """Highest sensitivity at no more than so many false positives a scan; 0 where none is."""
        reached = self.sensitivity[self.false_positives <= false_positives]
        return float(reached[-1]) if len(reached) else 0.0

    def mean_sensitivity(self) -> float:
        """Mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives a scan, as in LUNA16."""
        return sum(map(self.sensitivity_at, RATES)) / len(RATES)


def lesion_counts(mask: Tensor, lesions: Tensor, iou: float = 0.0) -> LesionCounts:
    """Lesions that a mask finds, and its false positives: (spatial...) bool, int64.

    Args:
        mask: what is called anomalous.
        lesions: number of the lesion of each voxel, see `connected_regions`.
        iou: intersection over union from which on an alarm finds a lesion; 0 for any overlap.
    """
    alarms = connected_regions(mask).flatten()
    lesions = lesions.flatten()
    both = (alarms > 0) & (lesions > 0)
    pairs, overlaps = torch.stack([alarms[both], lesions[both]]).unique(dim=1, return_counts=True)
    sizes = alarms.bincount()[pairs[0]] + lesions.bincount()[pairs[1]]
    hits = pairs[:, overlaps >= iou * (sizes - overlaps)]
    found, true_alarms = len(hits[1].unique()), len(hits[0].unique())
    return LesionCounts(found, int(lesions.max()), int(alarms.max()) - true_alarms)


def scan_events(scores: Tensor, lesions: Tensor, floor: float) -> ScanEvents:
    """Peaks of a scan's lesions and changes of its false positives: (spatial...) float, int64.

    Exact for every threshold from `floor` on. The alarms of all masks `score > threshold` are the
    trees of one spanning forest of the local maxima, joined at the highest score at which there is
    a way between them, cut at the threshold: as many as there are maxima above it, less the edges
    above it. Lesions are joined to one node of their own, so that the alarms which touch one are a
    single tree, which is not counted.
    """
    values = scores.flatten()
    count = int(lesions.max())
    peaks = values.new_zeros(count + 1)
    peaks.scatter_reduce_(0, lesions.flatten(), values, "amax", include_self=False)
    ordered, changes = _forest(scores.cpu().numpy(), lesions.cpu().numpy() > 0, floor)
    starts = np.flatnonzero(np.diff(ordered, prepend=np.nan))  # NaN differs from all
    total = np.add.reduceat(changes, starts) if len(starts) else changes
    kept = total != 0
    return ScanEvents(
        peaks[1:], torch.from_numpy(ordered[starts][kept]), torch.from_numpy(total[kept])
    )


def froc(scans: Sequence[ScanEvents], floor: float) -> Froc:
    """FROC curve of scans whose events are known from one `floor` on, by any overlap.

    No lesion at all makes it empty.
    """
    peaks = torch.cat([scan.peaks for scan in scans]).sort(descending=True).values
    scores = torch.cat([scan.scores for scan in scans])
    scores, order = scores.sort(descending=True)
    changes = torch.cat([scan.changes for scan in scans])[order].cumsum(0)
    thresholds = torch.cat([scores, peaks[peaks > floor]]).unique().flip(0)
    false_positives = torch.cat([changes.new_zeros(1), changes])[_at_least(scores, thresholds)]
    found = _at_least(peaks, thresholds)
    order = (false_positives * (len(peaks) + 1) - found).argsort(stable=True)
    found, false_positives = found[order], false_positives[order]
    best = found.cummax(0).values
    corner = best.diff(prepend=best.new_zeros(1)) > 0
    below = thresholds[order].nextafter(thresholds.new_tensor(-torch.inf))
    return Froc(
        below[corner],
        false_positives[corner].double() / len(scans),
        found[corner].double() / max(1, len(peaks)),
    )


def _at_least(descending: Tensor, thresholds: Tensor) -> Tensor:
    """How many of the numbers reach each threshold: (n,), (T,) -> (T,)."""
    return torch.searchsorted(-descending, -thresholds, right=True)


def _forest(
    scores: NDArray[np.float32], lesion: NDArray[np.bool_], floor: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores above the floor of maxima (+1) and of edges of the forest (-1), in descending order.

    Voxels are ranked by score, from 1. One whose highest neighbour is not itself belongs to that
    one's alarm as soon as it is above the threshold, so only the basins of local maxima are nodes.
    """
    from scipy.ndimage import minimum_filter

    above = np.flatnonzero(scores > floor)
    order = above[np.argsort(-scores.ravel()[above], kind="stable")]
    ranks: NDArray[Any] = np.full(scores.size, len(order) + 1)
    ranks[order] = np.arange(1, len(order) + 1)
    ranks = ranks.reshape(scores.shape)
    highest = minimum_filter(ranks, 3, mode="nearest").ravel()[order]
    basins = np.concatenate([[0], highest, [0]])
    while not np.array_equal(higher := basins[basins], basins):
        basins = higher
    maxima = np.unique(basins[1:-1])
    places = np.concatenate([maxima, _spanning_edges(ranks, basins, lesion)])
    changes = np.ones(len(places), np.int64)
    changes[len(maxima) :] = -1
    ranked = np.argsort(places, kind="stable")
    return scores.ravel()[order][places[ranked] - 1], changes[ranked]


def _spanning_edges(
    ranks: NDArray[np.int64], basins: NDArray[np.int64], lesion: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Ranks at which basins, and node 0 for all lesions, join: the edges of their forest."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    last = len(basins) - 1
    inside = ranks[lesion & (ranks < last)]
    ends = [np.stack([np.zeros_like(inside), basins[inside], inside])]
    padded = np.pad(ranks, 1, constant_values=last)
    flat = padded.ravel()
    places = np.flatnonzero(flat < last)
    for step in _steps(padded):
        pairs = np.stack([flat[places], flat[places + step]])
        joined = np.sort(basins[pairs], axis=0)
        apart = (joined[0] != joined[1]) & (pairs[1] < last)
        ends.append(np.concatenate([joined, pairs.max(axis=0, keepdims=True)])[:, apart])
    one, other, rank = np.concatenate(ends, axis=1)
    first = np.lexsort((rank, other, one))
    first = first[np.diff(one[first] * last + other[first], prepend=-1) != 0]
    nodes, numbers = np.unique([one[first], other[first]], return_inverse=True)
    one, other = numbers.reshape(2, -1).astype(np.int32)  # scipy up to 1.15 takes no other
    graph = coo_array((rank[first].astype(float), (one, other)), shape=(len(nodes),) * 2)
    return minimum_spanning_tree(graph.tocsr()).data.astype(np.int64)


def _steps(padded: NDArray[np.int64]) -> list[int]:
    """Ways in memory to one of each pair of opposite neighbours: 13 of a voxel, 4 of a pixel."""
    strides = [stride // padded.itemsize for stride in padded.strides]
    offsets = product((-1, 0, 1), repeat=padded.ndim)
    return [step for o in offsets if (step := int(np.dot(o, strides))) > 0]
