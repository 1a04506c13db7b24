"""DICOM results of a DICOM series: a segmentation of the mask, a parametric map of the scores."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import TransformBackends

from monai_dpmm.errors import InputError, MissingPackageError
from monai_dpmm.files import atomic_write
from monai_dpmm.io.dicom_files import is_dicom, scan_files
from monai_dpmm.io.formats import saved_beside

__all__ = [
    "SaveDicomd",
    "dicom_sources",
    "parametric_map",
    "require_highdicom",
    "segmentation",
    "series_slices",
]

_TOLERANCE = 1e-2  # mm
_REQUIRED = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
)
_OPTIONAL = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)  # of the kind that a file must name, if only as unknown


def dicom_sources(items: list[dict[str, str]], dicom_output: bool) -> list[dict[str, str]]:
    """The items, all of which are DICOM series where DICOM output is asked for.

    Raises:
        ImportError: where it is asked for and highdicom is not installed.
        InputError: where it is asked for and an item is no DICOM, before any is computed.
    """
    if dicom_output:
        require_highdicom()
        for item in items:
            _require_dicom(Path(item["image"]))
    return items


def series_slices(path: str | Path) -> list[Any]:
    """Headers of a DICOM series, along the normal of its slices, whatever their names.

    It is the only one in a folder, or that which a file belongs to.

    A series without a frame of reference, as some anonymisers leave it, gets one that is made from
    its series UID.

    Raises:
        InputError: for another file, a folder with no DICOM file, a multi-frame file, or a header
            that lacks what places a slice in the world.
    """
    import pydicom

    folder = Path(path)
    _require_dicom(folder)
    try:
        files = scan_files(folder)
    except InputError as error:
        raise InputError(f"{folder}: must be a DICOM series, {error}") from error
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    for header in headers:
        _check_header(header, folder)
        _complete(header)
    normal = _normal(headers[0])
    return sorted(headers, key=lambda header: float(_position(header) @ normal))


def segmentation(mask: MetaTensor, slices: Sequence[Any]) -> Any:
    """DICOM segmentation of a mask (1, X, Y, Z) on its series: one frame for each slice.

    Args:
        mask: 1 is anomaly, on the grid of the series.
        slices: see `series_slices`.

    Raises:
        InputError: where the mask does not lie on the grid of the series.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name="monai_dpmm", version=_version(), family=codes.DCM.ArtificialIntelligence
    )
    anomaly = SegmentDescription(
        segment_number=1,
        segment_label="Anomaly",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    return Segmentation(
        pixel_array=(_frames(mask, slices) > 0).astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=[anomaly],
        omit_empty_frames=False,
        **_common(slices, "Anomaly mask", 1),
    )


def parametric_map(anomaly: MetaTensor, slices: Sequence[Any]) -> Any:
    """DICOM parametric map of anomaly scores (1, X, Y, Z) on their series, float32.

    Args:
        anomaly: scores on the grid of the series.
        slices: see `series_slices`.

    Raises:
        InputError: where the scores do not lie on the grid of the series.
    """
    from highdicom import VOILUTTransformation
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from pydicom.sr.codedict import codes

    frames = _frames(anomaly, slices).astype(np.float32)
    low, high = float(frames.min()), float(frames.max())
    score = RealWorldValueMapping(
        lut_label="ANOMALY",
        lut_explanation="Anomaly score",
        unit=codes.UCUM.NoUnits,
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
    )
    window = VOILUTTransformation(
        window_center=(low + high) / 2, window_width=max(high - low, 1e-6)
    )
    return ParametricMap(
        pixel_array=frames,
        real_world_value_mappings=[score],
        voi_lut_transformations=[window],
        contains_recognizable_visual_features=False,
        **_common(slices, "Anomaly scores", 2),
    )


class SaveDicomd(Transform):
    """Deprecated, see `SaveResultsd`: mask and scores also written as DICOM beside saved volumes.

    NAME_mask.dcm is a DICOM segmentation, NAME_anomaly.dcm a parametric map; both refer to the
    series that the scan was read from. Where SaveImaged saved nothing, as under a labelling
    server, nothing is written.

    Args:
        mask_key: key of the mask that SaveImaged saved.
        anomaly_key: key of the scores that SaveImaged saved.

    Raises:
        ImportError: where highdicom is not installed.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self, mask_key: Hashable = "pred_mask", anomaly_key: Hashable = "pred_anomaly"
    ) -> None:
        require_highdicom()
        warnings.warn(
            "SaveDicomd goes: SaveResultsd writes DICOM", DeprecationWarning, stacklevel=2
        )
        self.mask_key = mask_key
        self.anomaly_key = anomaly_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data.

        Raises:
            InputError: for a scan that is no DICOM series, see `series_slices`.
            OSError: where a file cannot be written, as on a full disk.
        """
        mask, anomaly = data[self.mask_key], data[self.anomaly_key]
        paths = saved_beside(mask, "mask.dcm"), saved_beside(anomaly, "anomaly.dcm")
        if paths[0] is not None and paths[1] is not None:
            slices = series_slices(mask.meta["filename_or_obj"])
            _save(segmentation(mask, slices), paths[0])
            _save(parametric_map(anomaly, slices), paths[1])
        return dict(data)


def require_highdicom() -> None:
    """Raise an ImportError that says what to install where highdicom is missing."""
    if find_spec("highdicom") is None:
        raise MissingPackageError(
            "dicom_output needs highdicom, which is not installed: pip install monai-dpmm[dicom]"
        )


def _require_dicom(path: Path) -> None:
    if not (path.is_dir() or is_dicom(path)):
        raise InputError(f"{path}: must be a folder with a DICOM series for dicom_output")


def _complete(header: Any) -> None:
    """Add what a result must name and an anonymised header may lack."""
    from pydicom.uid import generate_uid

    for name in _OPTIONAL:
        if name not in header:
            setattr(header, name, "")
    if not header.get("FrameOfReferenceUID"):
        sources = [header.SeriesInstanceUID, "frame of reference"]
        header.FrameOfReferenceUID = generate_uid(entropy_srcs=sources)


def _check_header(header: Any, folder: Path) -> None:
    name = Path(header.filename).name
    if int(header.get("NumberOfFrames") or 1) != 1:
        raise InputError(f"{folder}: must hold one slice a file for dicom_output, {name} has more")
    missing = [key for key in _REQUIRED if key not in header]
    if missing:
        raise InputError(f"{folder}: must hold a DICOM series, {name} lacks {', '.join(missing)}")


def _frames(volume: MetaTensor, slices: Sequence[Any]) -> np.ndarray:
    """Frames (Z, rows, columns) in the order of the slices.

    A slice is placed by its own header, so a tilted gantry, which readers straighten, is kept.
    """
    array = volume.as_tensor()[0].cpu().numpy()
    world = np.diag([-1, -1, 1, 1]) @ np.asarray(volume.affine.cpu(), dtype=np.float64)
    upwards = len(slices) == 1 or world[:3, 2] @ _normal(slices[0]) > 0
    first = slices[0] if upwards else slices[-1]
    shape = (int(first.Columns), int(first.Rows), len(slices))
    row, column = _directions(first)
    (down, across) = map(float, first.PixelSpacing)
    expected = np.stack([row * across, column * down, _position(first)])
    same = np.abs(expected - world[:3, [0, 1, 3]].T).max() < _TOLERANCE
    if array.shape != shape or not same:
        raise InputError(
            f"{first.get('SeriesInstanceUID')}: volume must lie on the grid of its DICOM series,"
            f" {shape}, got {array.shape}{'' if same else ' elsewhere'}"
        )
    frames = array.transpose(2, 1, 0)
    return np.ascontiguousarray(frames if upwards else frames[::-1])


def _directions(header: Any) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along a row and along a column, towards Left, Posterior, Superior."""
    cosines = np.array(header.ImageOrientationPatient, dtype=np.float64)
    return cosines[:3], cosines[3:]


def _normal(header: Any) -> np.ndarray:
    return np.cross(*_directions(header))


def _position(header: Any) -> np.ndarray:
    return np.array(header.ImagePositionPatient, dtype=np.float64)


def _common(slices: Sequence[Any], description: str, number: int) -> dict[str, Any]:
    """What both kinds of object say of their origin."""
    from highdicom import UID

    return {
        "source_images": list(slices),
        "series_instance_uid": UID(),
        "series_number": 100 * int(slices[0].get("SeriesNumber") or 0) + number,
        "sop_instance_uid": UID(),
        "instance_number": 1,
        "manufacturer": "monai_dpmm",
        "manufacturer_model_name": "monai_dpmm",
        "software_versions": _version(),
        "device_serial_number": "0",
        "content_label": "ANOMALY",
        "content_description": description,
        "series_description": description,
    }


def _version() -> str:
    from monai_dpmm import __version__

    return __version__


def _save(dataset: Any, path: Path) -> None:
    with atomic_write(path) as partial:
        dataset.save_as(partial)
