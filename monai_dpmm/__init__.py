"""Unsupervised anomaly detection for medical volumes with a Dirichlet process mixture.

After Schulthess and Konukoglu, "Anomaly Detection by Clustering DINO Embeddings using a Dirichlet
Process Mixture", MICCAI 2025. Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"

_TRANSFORMS = (
    *("EmbedPatches", "ExtractSlices", "ImageScore"),
    *("NormalizeSlices", "RescaleIntensity", "ThresholdAnomaly"),
)
_OTHERS = ("CorrectBiasField", "LoadVolume", "MaskForeground")
_SUFFIXES = ("d", "D", "Dict")  # of MONAI's dictionary transforms
_FINDINGS = ("AnomalyFindings", "SaveFindings")
_EXPORTS = {
    "adaptation": ("revive",),
    "backbones": ("create_backbone", "load_backbone"),
    "baselines": ("BankModel", "KMeansModel", "MixtureModel", "NormalityModel", "PaDiMModel"),
    "bundle_folder": ("write_bundle",),
    "calibration": ("image_score", "thresholds_at"),
    "cohort": ("make_demo_cohort",),
    "dataset_check": ("check_dataset",),
    "data": ("SliceDataLoader", "SliceDataset", "collate_patches"),
    "detector": ("AnomalyDetector", "embed_patches"),
    "dicom_output": (*(f"SaveDicom{suffix}" for suffix in _SUFFIXES), "dicom_sources"),
    "distributed": (
        *("close_process_group", "is_main_process", "local_device"),
        *("open_process_group", "own_items"),
    ),
    "engines": ("EMTrainer", "LikelihoodEvaluator"),
    "errors": ("one_line_errors",),
    "estimator": ("DirichletProcessMixture",),
    "findings": (
        *(f"{name}{suffix}" for name in _FINDINGS for suffix in _SUFFIXES),
        "anomaly_findings",
    ),
    "handlers": (
        *("BestModelSaver", "History", "ThresholdCalibration", "TrainingCheckpoint"),
        "Validation",
    ),
    "inferer": ("AnomalyInferer",),
    "labels": tuple(f"IgnoreLabelledPatches{suffix}" for suffix in _SUFFIXES),
    "memory_bank": ("MemoryBank",),
    "padim": ("PaDiM",),
    "lesion_metrics": ("froc", "lesion_counts", "scan_events"),
    "label_loading": ("LoadLabelD", "LoadLabelDict", "LoadLabeld"),
    "loading": ("InputError", "LoadVolume"),
    "image_metrics": ("Thresholds", "dice_score"),
    "metrics": ("AnomalyMetrics", "pixel_metrics"),
    "em": ("Moments",),
    "merging": ("load_moments", "merged", "pooled_moments", "save_moments"),
    "mixture": ("DPMM",),
    "output_formats": ("SaveVolumeD", "SaveVolumeDict", "SaveVolumed", "volume_writer"),
    "publication": ("write_figures",),
    "regions": ("connected_regions",),
    "refusals": ("ScanDataset", "ScanEvaluator", "collate_scans"),
    "scans": ("data_root", "datalist", "existing_file"),
    "report": ("write_report",),
    "reporting": ("ReportWriter",),
    "scan_check": (
        *("ScanCheck", *(f"CheckScan{suffix}" for suffix in _SUFFIXES)),
        *("prototype_usage", "scan_reference", "usage_distance"),
    ),
    "scan_handlers": ("ScanCalibration", "SuspiciousScans"),
    "saved_maps": ("find_maps", "load_map", "matched_maps"),
    "scoring": ("healthy_thresholds", "measured_maps", "write_scores"),
    "serving": (
        *(f"{name}{suffix}" for name in ("ReadRequest", "AnswerRequest") for suffix in _SUFFIXES),
        "rate_choices",
    ),
    "streaming": ("ScoreHistogram",),
    "volume_calibration": ("FalsePositiveVolumes", "OperatingPoint", "mean_interval", "voxel_ml"),
    "viewer": ("viewer_page",),
    "warm_start": ("WarmStart",),
    "weights": ("bundled_backbone", "load_weights", "model_setting"),
    "transforms": _TRANSFORMS,
    "bias_field": ("CorrectBiasField",),
    "foreground": ("MaskForeground",),
    "dictionary": tuple(
        f"{name}{suffix}" for name in (*_TRANSFORMS, *_OTHERS) for suffix in _SUFFIXES
    ),
}
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    # MONAI's configs get every attribute that is listed, so what cannot be imported must not be.
    absent = () if find_spec("sklearn") else _EXPORTS["estimator"]
    return sorted({*globals(), *__all__}.difference(absent))
