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
    "mixture.adaptation": ("revive",),
    "network.backbones.registry": ("create_backbone", "load_backbone"),
    "study.models.baselines": (
        "BankModel",
        "KMeansModel",
        "MixtureModel",
        "NormalityModel",
        "PaDiMModel",
    ),
    "app.release": ("write_bundle",),
    "network.thresholds": ("image_score", "thresholds_at"),
    "study.cohort.cohort": ("make_demo_cohort",),
    "io.dataset_check": ("check_dataset",),
    "engines.slices": ("SliceDataLoader", "SliceDataset", "collate_patches"),
    "network.detector": ("AnomalyDetector", "embed_patches"),
    "io.dicom_output": (*(f"SaveDicom{suffix}" for suffix in _SUFFIXES), "dicom_sources"),
    "engines.distributed": (
        *("close_process_group", "is_main_process", "local_device"),
        *("open_process_group", "own_items"),
    ),
    "engines.engines": ("EMTrainer", "LikelihoodEvaluator"),
    "errors": ("InputError", "one_line_errors"),
    "mixture.estimator": ("DirichletProcessMixture",),
    "transforms.findings": (
        *(f"{name}{suffix}" for name in _FINDINGS for suffix in _SUFFIXES),
        "anomaly_findings",
    ),
    "engines.handlers": (
        *("BestModelSaver", "History", "ThresholdCalibration", "TrainingCheckpoint"),
        "Validation",
    ),
    "engines.inferer": ("AnomalyInferer",),
    "transforms.labels": tuple(f"IgnoreLabelledPatches{suffix}" for suffix in _SUFFIXES),
    "study.models.bank": ("MemoryBank",),
    "study.models.padim": ("PaDiM",),
    "metrics.froc": ("froc", "lesion_counts", "scan_events"),
    "io.label_loading": ("LoadLabelD", "LoadLabelDict", "LoadLabeld"),
    "io.loading": ("LoadVolume",),
    "metrics.image_metrics": ("Thresholds", "dice_score"),
    "metrics.anomaly_metrics": ("AnomalyMetrics", "pixel_metrics"),
    "mixture.em": ("Moments",),
    "mixture.federation": ("load_moments", "merged", "pooled_moments", "save_moments"),
    "mixture.dpmm": ("DPMM",),
    "io.formats": ("SaveVolumeD", "SaveVolumeDict", "SaveVolumed", "volume_writer"),
    "study.figures.publication": ("write_figures",),
    "transforms.regions": ("connected_regions",),
    "engines.skipping": ("ScanDataset", "ScanEvaluator", "collate_scans"),
    "io.datalist": ("data_root", "datalist", "existing_file"),
    "report.report": ("write_report",),
    "report.handler": ("ReportWriter",),
    "transforms.scan_check": (
        *("ScanCheck", *(f"CheckScan{suffix}" for suffix in _SUFFIXES)),
        *("prototype_usage", "scan_reference", "usage_distance"),
    ),
    "engines.scan_handlers": ("ScanCalibration", "SuspiciousScans"),
    "study.external_maps": ("find_maps", "load_map", "matched_maps"),
    "study.scoring": ("healthy_thresholds", "measured_maps", "write_scores"),
    "transforms.monai_label": (
        *(f"{name}{suffix}" for name in ("ReadRequest", "AnswerRequest") for suffix in _SUFFIXES),
        "rate_choices",
    ),
    "metrics.score_histogram": ("ScoreHistogram",),
    "transforms.operating_point": (
        "FalsePositiveVolumes",
        "OperatingPoint",
        "mean_interval",
        "voxel_ml",
    ),
    "report.viewer": ("viewer_page",),
    "engines.warm_start": ("WarmStart",),
    "network.weights": ("bundled_backbone", "load_weights", "model_setting"),
    "transforms.array": _TRANSFORMS,
    "transforms.bias_field": ("CorrectBiasField",),
    "transforms.foreground": ("MaskForeground",),
    "transforms.dictionary": tuple(
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
    absent = () if find_spec("sklearn") else _EXPORTS["mixture.estimator"]
    return sorted({*globals(), *__all__}.difference(absent))
