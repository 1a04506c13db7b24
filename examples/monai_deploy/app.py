"""DICOM series to DICOM SEG with MONAI Deploy App SDK 4: a bundle in its own inference operator.

    python app.py --input SERIES --output OUT --model BUNDLE

SERIES is a folder with a DICOM study, BUNDLE a folder that `python -m monai_dpmm bundle` wrote, or
the TorchScript archive that its README exports. The mask of the first MR or CT series that lies in
SERIES is written to OUT. Research only, not for clinical use.
"""

from __future__ import annotations

import logging
from pathlib import Path

from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType
from monai.deploy.operators import (
    DICOMDataLoaderOperator,
    DICOMSegmentationWriterOperator,
    DICOMSeriesSelectorOperator,
    DICOMSeriesToVolumeOperator,
    IOMapping,
    ModelInfo,
    MonaiBundleInferenceOperator,
)
from monai.deploy.operators.dicom_seg_writer_operator import SegmentDescription
from pydicom.sr.codedict import codes

import monai_dpmm

RULES = """{"selections": [
    {"name": "MR", "conditions": {"Modality": "MR"}},
    {"name": "CT", "conditions": {"Modality": "CT"}}
]}"""


class AnomalyApp(Application):
    """Loader, selector, volume, bundle, writer, in one line."""

    def compose(self) -> None:
        """Make the operators and connect them."""
        context: AppContext = Application.init_app_context(self.argv)
        if Path(context.model_path).is_dir():
            context.models = None  # or the folder itself is taken for the network
        loader = DICOMDataLoaderOperator(
            self, CountCondition(self, 1), input_folder=Path(context.input_path), name="loader"
        )
        selector = DICOMSeriesSelectorOperator(self, rules=RULES, name="selector")
        volume = DICOMSeriesToVolumeOperator(self, name="volume")
        bundle = MonaiBundleInferenceOperator(
            self,
            app_context=context,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=context.model_path,
            name="bundle",
        )
        anomaly = SegmentDescription(
            segment_label="Anomaly",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.MorphologicallyAbnormalStructure,
            algorithm_name="monai-dpmm",
            algorithm_family=codes.DCM.ArtificialIntelligence,
            algorithm_version=monai_dpmm.__version__,
        )
        writer = DICOMSegmentationWriterOperator(
            self,
            segment_descriptions=[anomaly],
            output_folder=Path(context.output_path),
            model_info=ModelInfo("monai-dpmm", "monai-dpmm", monai_dpmm.__version__, ""),
            name="writer",
        )
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        series = "study_selected_series_list"
        self.add_flow(selector, volume, {(series, series)})
        self.add_flow(volume, bundle, {("image", "image")})
        self.add_flow(selector, writer, {(series, series)})
        self.add_flow(bundle, writer, {("pred", "seg_image")})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    AnomalyApp().run()
