"""Where a model comes from: how many scans, of what kind, when, by which versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from monai_dpmm import __version__
from monai_dpmm.engines.distributed import is_main_process
from monai_dpmm.errors import InputError
from monai_dpmm.files import atomic_write, json_object
from monai_dpmm.io.outliers import scan_numbers

_LOOKED_AT = 50  # scans that sizes and intensities are taken from

__all__ = ["ModelOrigin"]


class ModelOrigin:
    """Write where a model comes from into its settings, as "origin", when its training is over.

    A dictionary for JSON:

    - "date" (UTC), and "versions" of monai_dpmm, torch and monai;
    - "scans": how many for "training" and "validation";
    - "spacing_mm": "lowest", "median" and "highest" of the voxels' three sides, each sorted by
      size; not of pictures;
    - "intensity": percentiles 5, 50 and 95 of what is above a scan's lowest value, their "lowest",
      "median" and "highest" of the scans.

    The latter two are of up to 50 training scans, evenly taken.

    Args:
        path: JSON file of the settings, models/model.json, which must be there by then.
        training: items with "image", see `datalist`.
        validation: likewise.
    """

    def __init__(
        self,
        path: str | Path,
        training: Sequence[Mapping[str, Any]],
        validation: Sequence[Mapping[str, Any]],
    ) -> None:
        self.path, self.training, self.validation = Path(path), training, validation

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after what saves the model."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write it; of several processes the main one does."""
        if not is_main_process() or not self.path.is_file():
            return
        settings = json_object(self.path) | {"origin": self._origin()}
        with atomic_write(self.path) as partial:
            partial.write_text(json.dumps(settings, indent=4))

    def _origin(self) -> dict[str, Any]:
        step = -(-len(self.training) // _LOOKED_AT)
        spacings, intensities = [], []
        for item in self.training[::step]:
            try:
                numbers = scan_numbers(str(item["image"]))
            except InputError:  # which the training has told
                continue
            intensities.append(numbers.intensity)
            if numbers.spacing:
                spacings.append(numbers.spacing)
        packages = {name: version(name).partition("+")[0] for name in ("torch", "monai")}
        found: dict[str, Any] = {
            "date": datetime.now(timezone.utc).date().isoformat(),
            "versions": {"monai_dpmm": __version__, **packages},
            "scans": {"training": len(self.training), "validation": len(self.validation)},
        }
        for name, rows in (("spacing_mm", spacings), ("intensity", intensities)):
            if rows:
                found[name] = _range(np.array(rows))
        return found


def _range(rows: np.ndarray) -> dict[str, list[float]]:
    """Lowest, median and highest of each column, to five digits."""
    ends = {"lowest": rows.min(0), "median": np.median(rows, 0), "highest": rows.max(0)}
    return {name: [float(f"{value:.5g}") for value in values] for name, values in ends.items()}
