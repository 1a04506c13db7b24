"""One mixture for each direction that slices are taken in.

A direction is a group of its own, as a place is: prototypes of axial slices are none of sagittal
ones.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.dpmm import DPMM

__all__ = ["PlaneMixtures", "create_mixture", "mixture_of", "mixtures", "num_surviving"]


class PlaneMixtures(nn.ModuleList):
    """Mixtures of the directions 0 to P - 1, all of the same arguments.

    One that training gave no slices, as sagittal ones of thick axial slices, stays without a fit
    and has no say in a map.

    Args:
        planes: P, at least 1.
        **arguments: of each `DPMM`.

    Raises:
        InputError: for fewer than one direction, and see `DPMM`.
    """

    def __init__(self, planes: int, **arguments: Any) -> None:
        if planes < 1:
            raise InputError(f"planes must be at least 1, got {planes}")
        super().__init__(DPMM(**arguments) for _ in range(planes))


def create_mixture(planes: int, **arguments: Any) -> DPMM | PlaneMixtures:
    """A `DPMM` for one direction, which is the paper's model, else one for each of several."""
    return DPMM(**arguments) if planes == 1 else PlaneMixtures(planes, **arguments)


def mixtures(model: DPMM | PlaneMixtures) -> tuple[DPMM, ...]:
    """The mixtures of a model, one for each direction."""
    return tuple(model) if isinstance(model, PlaneMixtures) else (model,)  # type: ignore[arg-type]


def mixture_of(model: DPMM | PlaneMixtures, direction: int) -> DPMM:
    """The mixture of a direction; a single one is that of all.

    Raises:
        InputError: for a direction that the model has not.
    """
    known = mixtures(model)
    if len(known) == 1:
        return known[0]
    if not 0 <= direction < len(known):
        raise InputError(f"direction must be 0 to {len(known) - 1}, got {direction}")
    return known[direction]


def num_surviving(model: DPMM | PlaneMixtures) -> int:
    """How many components survive in all mixtures that are fitted."""
    return sum(int(one.num_surviving) for one in mixtures(model) if one.fitted)
