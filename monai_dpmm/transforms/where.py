"""Where in the body a finding lies, in words, and what tells that a scan is not for its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["body_box", "look_around", "position_words"]

_MARKED = 0.25  # share of the body that no lesion is expected to have
_FARTHER = 2.0  # times the voxel size of any training scan
# names of a third at the low end, in the middle, at the high end of the body's box, by world axis
_WORDS = (("left", "midline", "right"), ("posterior", "", "anterior"), ("lower", "", "upper"))
_MIDDLE = ((0.45, 0.55), (0.4, 0.6), (0.4, 0.6))


def position_words(place: Sequence[float], box: tuple[np.ndarray, np.ndarray]) -> str:
    """Where a place lies in the box around the body: "right anterior upper".

    Told is what of the box it lies in, towards the patient's right, anterior and superior; of two
    of these the middle has no name. No atlas is asked, so it is no lobe and no organ.

    Args:
        place: in mm towards Right, Anterior, Superior.
        box: its lowest and highest corner, see `body_box`.
    """
    low, high = box
    words = []
    for axis, (below, above) in enumerate(_MIDDLE):
        share = (place[axis] - low[axis]) / max(high[axis] - low[axis], 1e-9)
        words.append(_WORDS[axis][int(share >= below) + int(share > above)])
    return " ".join(filter(None, words))


def body_box(body: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest place in mm of what is above 0 in a volume, as every n-th voxel tells.

    Args:
        body: (X, Y, Z), somewhere above 0.
        affine: from voxels to mm towards Right, Anterior, Superior, (4, 4).
    """
    step = max(1, min(body.shape) // 64)
    voxels = np.argwhere(body[::step, ::step, ::step] > 0) * step
    if not len(voxels):
        voxels = np.argwhere(body > 0)
    places = voxels @ affine[:3, :3].T + affine[:3, 3]
    return places.min(axis=0), places.max(axis=0)


def look_around(
    lesions: Sequence[dict[str, Any]],
    mask: np.ndarray,
    body: np.ndarray | None,
    affine: np.ndarray | None,
    origin: Mapping[str, Any] | None,
) -> list[str]:
    """Lines that say why a scan may not be one for the model; lesions get their "position".

    The mask covers more than a quarter of the body, or a side of the voxels is more than twice or
    less than half as long as in all training scans.

    Args:
        lesions: of `anomaly_findings`; those of a volume get the words of `position_words`.
        mask: of the scan, spatial.
        body: where the foreground is, of the same shape; None where that is not known.
        affine: of a volume, from voxels to mm.
        origin: of the model, see `ModelOrigin`.
    """
    if body is None:
        return []
    volume = body.ndim == 3 and affine is not None
    box = body_box(body, affine) if volume and body.any() else None
    for lesion in lesions if box else ():
        lesion["position"] = position_words(lesion["peak_mm"], box)
    marked = float(mask[body].mean()) if body.any() else 0.0
    lines = []
    if marked > _MARKED:
        lines.append(
            f"the mask covers {100 * marked:.0f} % of the body, far more than lesions do: another"
            " kind of scan than the training's?"
        )
    known = (origin or {}).get("spacing_mm")
    if known and volume:
        own = sorted(np.linalg.norm(np.asarray(affine)[:3, :3], axis=0).tolist())
        ends = list(zip(own, known["lowest"], known["highest"], strict=True))
        if any(size > _FARTHER * high or size * _FARTHER < low for size, low, high in ends):
            lines.append(
                f"its voxels have {_sizes(own)} mm, those of the training"
                f" {_sizes(known['lowest'])} to {_sizes(known['highest'])} mm"
            )
    return lines


def _sizes(sides: Sequence[float]) -> str:
    return " x ".join(f"{side:.2g}" for side in sides)
