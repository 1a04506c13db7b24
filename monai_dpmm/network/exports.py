"""What an exported network leaves out, said while it is recorded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["warn_of_what_is_left_out"]


def warn_of_what_is_left_out(mixtures: Sequence[nn.Module], places: Tensor | None) -> None:
    """Warn that a graph of slices alone has one direction, no places and no finished maps.

    Args:
        mixtures: of all directions; a bank that stands in for one has no places.
        places: of the patches, where the graph takes them.
    """
    fitted = sum(bool(getattr(one, "fitted", True)) for one in mixtures)
    left_out = [f"the other {fitted - 1} of {fitted} slice directions"] if fitted > 1 else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of what is asked for here only
        asks = any(_asks(one) for one in mixtures)
    if asks and places is None:
        left_out.append("where in the body a patch is")
    if left_out:
        warnings.warn(
            f"The exported network leaves out {' and '.join(left_out)}: its maps are not those of"
            " `infer`, and the model's thresholds do not hold for them. A model of `-c paper` is"
            " exported whole",
            stacklevel=3,
        )


def _asks(mixture: nn.Module) -> bool:
    places = getattr(mixture, "places", None)
    return places is not None and bool(places.used)
