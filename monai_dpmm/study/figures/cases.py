"""Some scans of many, from the best found to the worst, kept in bounded memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from monai_dpmm.report.display import Scan, fullest_slice

__all__ = ["Case", "Cases", "single_slice"]


class Case(NamedTuple):
    """A scan with a lesion: how well it was found, and its slice with the most of the lesion."""

    name: str
    aupr: float
    dice: float
    scan: Scan  # of one slice


class Cases:
    """Some cases of many, spread from the best to the worst: memory does not grow with them.

    Args:
        count: how many are kept at last.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.kept: list[Case] = []
        self.values: list[float] = []

    def add(self, case: Case) -> None:
        """Keep a case, and let go of the one that is most like its neighbours if there are many."""
        self.values.append(case.aupr)
        self.kept = sorted([*self.kept, case], key=lambda c: -c.aupr)
        if len(self.kept) > 4 * self.count:
            values = [c.aupr for c in self.kept]
            gaps = [a - b for a, b in zip(values[:-2], values[2:], strict=True)]
            del self.kept[1 + int(np.argmin(gaps))]

    def chosen(self) -> list[Case]:
        """Cases evenly taken by rank, the best first."""
        last = len(self.kept) - 1
        places = np.linspace(0, last, min(self.count, last + 1)).round().astype(int)
        return [self.kept[place] for place in places]

    def rank(self, case: Case) -> int:
        """Rank of a case among all that were added, from 1."""
        return 1 + sum(value > case.aupr for value in self.values)


def single_slice(scan: Scan) -> Scan:
    """The slice of a scan with the most of its label, of one with the highest scores if none."""
    index = fullest_slice(scan.label, scan.axis)
    assert index is not None
    arrays = {
        name: None if volume is None else np.take(volume, [index], scan.axis).copy()
        for name, volume in scan._asdict().items()
        if name in ("image", "anomaly", "mask", "components", "label")
    }
    return scan._replace(**arrays)
