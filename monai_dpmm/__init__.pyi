"""Public names of monai_dpmm, for type checkers and editors; `__init__.py` reads them from here."""

from monai_dpmm.app.prediction import Prediction as Prediction
from monai_dpmm.app.prediction import predict as predict
from monai_dpmm.app.release import update_bundle as update_bundle
from monai_dpmm.app.release import write_bundle as write_bundle
from monai_dpmm.app.workflows import check_base as check_base
from monai_dpmm.engines.completion import ModelCompletion as ModelCompletion
from monai_dpmm.engines.distributed import (
    close_process_group as close_process_group,
)
from monai_dpmm.engines.distributed import (
    is_main_process as is_main_process,
)
from monai_dpmm.engines.distributed import (
    local_device as local_device,
)
from monai_dpmm.engines.distributed import (
    open_process_group as open_process_group,
)
from monai_dpmm.engines.distributed import (
    own_items as own_items,
)
from monai_dpmm.engines.earlier import (
    EarlierModel as EarlierModel,
)
from monai_dpmm.engines.earlier import (
    claim_folders as claim_folders,
)
from monai_dpmm.engines.earlier import (
    release_folders as release_folders,
)
from monai_dpmm.engines.embedding_store import (
    StoredEmbeddings as StoredEmbeddings,
)
from monai_dpmm.engines.engines import (
    EMTrainer as EMTrainer,
)
from monai_dpmm.engines.engines import (
    LikelihoodEvaluator as LikelihoodEvaluator,
)
from monai_dpmm.engines.epoch_lines import EpochLines as EpochLines
from monai_dpmm.engines.handlers import (
    BestModelSaver as BestModelSaver,
)
from monai_dpmm.engines.handlers import (
    ThresholdCalibration as ThresholdCalibration,
)
from monai_dpmm.engines.handlers import (
    Validation as Validation,
)
from monai_dpmm.engines.inferer import AnomalyInferer as AnomalyInferer
from monai_dpmm.engines.left_out import (
    LeaveOneOut as LeaveOneOut,
)
from monai_dpmm.engines.left_out import (
    calibration_scans as calibration_scans,
)
from monai_dpmm.engines.origin import ModelOrigin as ModelOrigin
from monai_dpmm.engines.prefetching import PrefetchingDataLoader as PrefetchingDataLoader
from monai_dpmm.engines.resuming import (
    History as History,
)
from monai_dpmm.engines.resuming import (
    TrainingCheckpoint as TrainingCheckpoint,
)
from monai_dpmm.engines.scan_handlers import (
    ScanCalibration as ScanCalibration,
)
from monai_dpmm.engines.scan_handlers import (
    SuspiciousScans as SuspiciousScans,
)
from monai_dpmm.engines.skipping import (
    ScanDataset as ScanDataset,
)
from monai_dpmm.engines.skipping import (
    ScanEvaluator as ScanEvaluator,
)
from monai_dpmm.engines.skipping import (
    collate_scans as collate_scans,
)
from monai_dpmm.engines.slices import SliceDataLoader as SliceDataLoader
from monai_dpmm.engines.stored_scans import (
    PrepareEmbedded as PrepareEmbedded,
)
from monai_dpmm.engines.stored_scans import (
    numbered_scans as numbered_scans,
)
from monai_dpmm.engines.stored_scans import (
    scan_embedding as scan_embedding,
)
from monai_dpmm.engines.warm_start import WarmStart as WarmStart
from monai_dpmm.errors import (
    InputError as InputError,
)
from monai_dpmm.errors import (
    one_line_errors as one_line_errors,
)
from monai_dpmm.io.datalist import (
    data_root as data_root,
)
from monai_dpmm.io.datalist import (
    datalist as datalist,
)
from monai_dpmm.io.datalist import (
    existing_file as existing_file,
)
from monai_dpmm.io.dataset_check import check_dataset as check_dataset
from monai_dpmm.io.dicom_output import (
    SaveDicomd as SaveDicomd,
)
from monai_dpmm.io.dicom_output import (
    dicom_sources as dicom_sources,
)
from monai_dpmm.io.formats import (
    SaveVolumed as SaveVolumed,
)
from monai_dpmm.io.formats import (
    volume_writer as volume_writer,
)
from monai_dpmm.io.label_loading import LoadLabeld as LoadLabeld
from monai_dpmm.io.loading import LoadVolume as LoadVolume
from monai_dpmm.io.result_files import SaveResultsd as SaveResultsd
from monai_dpmm.metrics.anomaly_metrics import AnomalyMetrics as AnomalyMetrics
from monai_dpmm.mixture.adaptation import revive as revive
from monai_dpmm.mixture.dpmm import DPMM as DPMM
from monai_dpmm.mixture.em import Moments as Moments
from monai_dpmm.mixture.estimator import DirichletProcessMixture as DirichletProcessMixture
from monai_dpmm.mixture.federation import (
    load_moments as load_moments,
)
from monai_dpmm.mixture.federation import (
    merged as merged,
)
from monai_dpmm.mixture.federation import (
    pooled_moments as pooled_moments,
)
from monai_dpmm.mixture.federation import (
    save_moments as save_moments,
)
from monai_dpmm.mixture.planes import PlaneMixtures as PlaneMixtures
from monai_dpmm.mixture.planes import create_mixture as create_mixture
from monai_dpmm.network.backbones.registry import (
    create_backbone as create_backbone,
)
from monai_dpmm.network.backbones.registry import (
    load_backbone as load_backbone,
)
from monai_dpmm.network.detector import AnomalyDetector as AnomalyDetector
from monai_dpmm.network.weights import (
    bundle_folder as bundle_folder,
)
from monai_dpmm.network.weights import bundled_backbone as bundled_backbone
from monai_dpmm.network.weights import load_weights as load_weights
from monai_dpmm.network.weights import model_setting as model_setting
from monai_dpmm.report.handler import ReportWriter as ReportWriter
from monai_dpmm.report.scan_lines import ScanLines as ScanLines
from monai_dpmm.study.cohort.cohort import make_demo_cohort as make_demo_cohort
from monai_dpmm.transforms.array import (
    ImageScore as ImageScore,
)
from monai_dpmm.transforms.array import (
    ThresholdAnomaly as ThresholdAnomaly,
)
from monai_dpmm.transforms.bias_field import CorrectBiasField as CorrectBiasField
from monai_dpmm.transforms.cropping import CropToBodyd as CropToBodyd
from monai_dpmm.transforms.dictionary import (
    CorrectBiasFieldd as CorrectBiasFieldd,
)
from monai_dpmm.transforms.dictionary import (
    EmbedPatchesd as EmbedPatchesd,
)
from monai_dpmm.transforms.dictionary import (
    ExtractSlicesd as ExtractSlicesd,
)
from monai_dpmm.transforms.dictionary import (
    ImageScored as ImageScored,
)
from monai_dpmm.transforms.dictionary import (
    LoadVolumed as LoadVolumed,
)
from monai_dpmm.transforms.dictionary import (
    MaskForegroundd as MaskForegroundd,
)
from monai_dpmm.transforms.dictionary import (
    NormalizeSlicesd as NormalizeSlicesd,
)
from monai_dpmm.transforms.dictionary import (
    RescaleIntensityd as RescaleIntensityd,
)
from monai_dpmm.transforms.dictionary import (
    ThresholdAnomalyd as ThresholdAnomalyd,
)
from monai_dpmm.transforms.dictionary import every_slice as every_slice
from monai_dpmm.transforms.findings import (
    AnomalyFindingsd as AnomalyFindingsd,
)
from monai_dpmm.transforms.findings import (
    SaveFindingsd as SaveFindingsd,
)
from monai_dpmm.transforms.findings import (
    anomaly_findings as anomaly_findings,
)
from monai_dpmm.transforms.foreground import MaskForeground as MaskForeground
from monai_dpmm.transforms.intensity import (
    RescaleIntensity as RescaleIntensity,
)
from monai_dpmm.transforms.labels import IgnoreLabelledPatchesd as IgnoreLabelledPatchesd
from monai_dpmm.transforms.monai_label import (
    AnswerRequestd as AnswerRequestd,
)
from monai_dpmm.transforms.monai_label import (
    ReadRequestd as ReadRequestd,
)
from monai_dpmm.transforms.monai_label import (
    rate_choices as rate_choices,
)
from monai_dpmm.transforms.operating_point import OperatingPoint as OperatingPoint
from monai_dpmm.transforms.orientation import OrientScand as OrientScand
from monai_dpmm.transforms.refinement import RefineAnomalyd as RefineAnomalyd
from monai_dpmm.transforms.scan_check import CheckBaselined as CheckBaselined
from monai_dpmm.transforms.scan_check import CheckScand as CheckScand
from monai_dpmm.transforms.slicing import (
    EmbedPatches as EmbedPatches,
)
from monai_dpmm.transforms.slicing import (
    ExtractSlices as ExtractSlices,
)
from monai_dpmm.transforms.slicing import (
    NormalizeSlices as NormalizeSlices,
)

__version__: str
