"""Unsupervised anomaly detection for medical volumes with a Dirichlet process mixture.

After Schulthess and Konukoglu, "Anomaly Detection by Clustering DINO Embeddings using a Dirichlet
Process Mixture", MICCAI 2025. The public names stand in `__init__.pyi`, where type checkers find
them, and are imported when they are first used.
"""

from __future__ import annotations

import ast
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOMES = {
    alias.name: node.module
    for node in _STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
# Names that were public in 0.1 development versions: their module's path is the way to them now.
_DEPRECATED = {
    "engines.slices": ("SliceDataset", "collate_patches"),
    "metrics.anomaly_metrics": ("pixel_metrics",),
    "metrics.froc": ("froc", "lesion_counts", "scan_events"),
    "metrics.image_metrics": ("Thresholds", "dice_score"),
    "metrics.score_histogram": ("ScoreHistogram",),
    "network.detector": ("embed_patches",),
    "network.thresholds": ("image_score", "thresholds_at"),
    "report.report": ("write_report",),
    "report.viewer": ("viewer_page",),
    "study.external_maps": ("find_maps", "load_map", "matched_maps"),
    "study.figures.publication": ("write_figures",),
    "study.models.bank": ("BankModel", "KMeansModel", "MemoryBank"),
    "study.models.mixture": ("MixtureModel",),
    "study.models.normality": ("NormalityModel",),
    "study.models.padim": ("PaDiM", "PaDiMModel"),
    "study.scoring": ("healthy_thresholds", "measured_maps", "write_scores"),
    "transforms.operating_point": ("FalsePositiveVolumes", "mean_interval", "voxel_ml"),
    "transforms.regions": ("connected_regions",),
    "transforms.scan_check": ("ScanCheck", "prototype_usage", "scan_reference", "usage_distance"),
}
_DEPRECATED_HOMES = {name: f"{__name__}.{m}" for m, names in _DEPRECATED.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """A public name; `XD` and `XDict`, as MONAI has them beside each dictionary transform `Xd`."""
    listed = name
    for suffix in ("Dict", "D"):
        if name not in _HOMES and name.endswith(suffix):
            listed = f"{name.removesuffix(suffix)}d"
            break
    if listed in _HOMES:
        value = getattr(import_module(_HOMES[listed]), listed)
        globals()[name] = value
        return value
    if name in _DEPRECATED_HOMES:
        message = f"monai_dpmm.{name} is deprecated: import it from {_DEPRECATED_HOMES[name]}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(import_module(_DEPRECATED_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # MONAI's configs get every attribute that is listed, so what cannot be imported must not be.
    absent = () if find_spec("sklearn") else ("DirichletProcessMixture",)
    return sorted({*globals(), *__all__}.difference(absent))
