"""Results of a scan on disk: what their files are called, and how they are written together."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from monai.data import MetaTensor
from monai.data.utils import create_file_basename
from monai.transforms import SaveImaged
from monai.utils import TransformBackends

from monai_dpmm.errors import FileError, InputError
from monai_dpmm.files import replacement
from monai_dpmm.io.dicom_fields import without_details
from monai_dpmm.io.dicom_files import is_dicom
from monai_dpmm.io.dicom_output import (
    parametric_map,
    require_highdicom,
    segmentation,
    series_slices,
)
from monai_dpmm.io.formats import named, source_name, volume_writer, writer_error
from monai_dpmm.io.pictures import heat_map, save_picture
from monai_dpmm.io.suffixes import WRITTEN_SUFFIXES, format_of, is_picture, stem

__all__ = ["VOLUMES", "SaveResultsd", "result_files", "scan_name"]

# what the names of volumes end with, and their types
VOLUMES = {"anomaly": np.float32, "component": np.uint16, "mask": np.uint8}


def result_files(image: str, output_dir: str | Path, data_root_dir: str = "") -> dict[str, Path]:
    """Files of a scan's results, there or not: the volumes by `VOLUMES`, and "findings".

    Volumes have the suffix of those that were written last.

    Args:
        image: path of the scan.
        output_dir: of `SaveResultsd`.
        data_root_dir: of `SaveResultsd`.
    """
    names = {"subject": named(image)}

    def path(end: str, suffix: str) -> Path:
        return _path(end, suffix, output_dir, data_root_dir, names)

    there = [suffix for suffix in WRITTEN_SUFFIXES if path("anomaly", suffix).is_file()]
    suffix = max(
        there, key=lambda s: path("anomaly", s).stat().st_mtime, default=WRITTEN_SUFFIXES[0]
    )
    return {end: path(end, suffix) for end in VOLUMES} | {"findings": path("findings", ".json")}


def scan_name(path: str) -> str:
    """File name without its suffixes, or the whole name of a folder."""
    if Path(path).is_dir():
        return Path(path).name
    return stem(path) if format_of(path) or is_dicom(Path(path)) else Path(path).stem


class SaveResultsd(SaveImaged):
    """Data as they are, their results written: all files of a scan appear together, or none.

    NAME_anomaly, NAME_component and NAME_mask are volumes on the scan's own grid,
    NAME_findings.json holds the findings, see `AnomalyFindingsd`. Of a picture, NAME_anomaly.png is
    a heat map in colours (see `heat_map`), and NAME_mask.png is 255 in the mask. With DICOM output
    NAME_mask.dcm is a segmentation, and NAME_anomaly.dcm a parametric map; both refer to the series
    that the scan was read from. A folder with a series lends its whole name to its results, also
    one like 1.2.840.113.7.

    It is a `SaveImaged`, in class and name, which MONAI Label and MONAI Deploy leave out: they send
    results themselves.

    Args:
        output_dir: folder of the results, below which the scans' folders are kept.
        data_root_dir: folder that the scans' folders are relative to.
        output_ext: suffix of the volumes, see `volume_writer`.
        dicom: also write DICOM; every scan must then be a folder with a series.
        anomaly_key: key of the scores.
        component_key: key of the component map.
        mask_key: key of the mask.
        findings_key: key of the findings.
        dicom_minimal: DICOM carries of the series only what files it, see `without_details`.

    Raises:
        ImportError: for DICOM where highdicom is not installed.
        ValueError: for another suffix.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self,
        output_dir: str | Path,
        data_root_dir: str = "",
        output_ext: str = ".nii.gz",
        dicom: bool = False,
        *,
        anomaly_key: Hashable = "pred_anomaly",
        component_key: Hashable = "pred_component",
        mask_key: Hashable = "pred_mask",
        findings_key: Hashable = "findings",
        dicom_minimal: bool = False,
    ) -> None:
        if dicom:
            require_highdicom()
        keys = (anomaly_key, component_key, mask_key)
        super().__init__(
            keys, output_ext=output_ext, writer=volume_writer(output_ext), print_log=False
        )
        self.volumes = dict(zip(VOLUMES, keys, strict=True))
        self.findings_key = findings_key
        self.dicom, self.dicom_minimal = dicom, dicom_minimal
        self.output_dir, self.data_root_dir = output_dir, data_root_dir

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data; the volumes have their paths as "saved_to", the findings at findings_path.

        Raises:
            InputError: for a scan outside of data_root_dir, volumes without metadata, or, with
                DICOM output, a scan that is no series.
            OSError: where a folder cannot be made or a file not be written, as on a full disk.
        """
        result = dict(data)
        meta = self._meta(result)
        names = source_name(meta, self.saver, self.data_root_dir)
        paths = {end: self._path(end, self.saver.output_ext, names) for end in VOLUMES}
        series = {end: self._path(end, ".dcm", names) for end in ("mask", "anomaly") if self.dicom}
        findings = self._path("findings", ".json", names)
        pictures = {}
        if is_picture(str(meta.get("filename_or_obj", ""))):
            pictures = {end: self._path(end, ".png", names) for end in ("mask", "anomaly")}
        written = (*paths.values(), *series.values(), *pictures.values(), findings)
        files = [path.name for path in written]
        try:
            with replacement(findings.parent, {}, files) as partial:
                for end, path in paths.items():
                    self._save_volume(result, end, partial / path.name)
                if self.dicom:
                    slices = series_slices(meta["filename_or_obj"])
                    slices = without_details(slices) if self.dicom_minimal else slices
                    for end, made in (("mask", segmentation), ("anomaly", parametric_map)):
                        made(result[self.volumes[end]], slices).save_as(partial / series[end].name)
                if pictures:
                    self._save_pictures(result, {k: partial / p.name for k, p in pictures.items()})
                text = json.dumps(result[self.findings_key], indent=2, allow_nan=False)
                (partial / findings.name).write_text(f"{text}\n")
        except (OSError, RuntimeError) as error:
            reason = writer_error(error)
            raise FileError(
                f"{self.output_dir}: results could not be written there, {reason}"
            ) from error
        for end, path in paths.items():
            result[self.volumes[end]].meta["saved_to"] = str(path)
        return {**result, f"{self.findings_key}_path": str(findings)}

    def _meta(self, data: Mapping[Hashable, Any]) -> dict[str, Any]:
        for key in self.volumes.values():
            if not isinstance(data[key], MetaTensor):
                raise InputError(
                    f"{key} must be a MetaTensor with the metadata of its scan (is set_track_meta"
                    f" off?), got {type(data[key]).__name__}"
                )
        meta: dict[str, Any] = data[self.volumes["mask"]].meta
        return meta

    def _path(self, end: str, suffix: str, names: Mapping[str, Any]) -> Path:
        return _path(end, suffix, self.output_dir, self.data_root_dir, names)

    def _save_volume(self, data: Mapping[Hashable, Any], end: str, path: Path) -> None:
        self.saver.set_options(init_kwargs={"output_dtype": VOLUMES[end]})
        stem = str(path).removesuffix(self.saver.output_ext)
        self.saver(img=data[self.volumes[end]], filename=stem)

    def _save_pictures(self, data: Mapping[Hashable, Any], paths: Mapping[str, Path]) -> None:
        scores, mask = (data[self.volumes[end]][0].cpu().numpy() for end in ("anomaly", "mask"))
        threshold = data[self.findings_key].get("threshold") or 0.0
        save_picture(heat_map(scores, threshold), paths["anomaly"])
        save_picture((255 * (mask.T > 0)).astype(np.uint8), paths["mask"])


SaveResultsd.__name__ = "SaveImageResultsd"  # MONAI Deploy leaves out what has SaveImage in it


def _path(
    end: str, suffix: str, output_dir: str | Path, data_root_dir: str, names: Mapping[str, Any]
) -> Path:
    """Path of one result, as MONAI's SaveImage names it."""
    index, places = names.get("idx"), (output_dir, data_root_dir)
    name = create_file_basename(end, names["subject"], *places, True, index, makedirs=False)
    return Path(f"{name}{suffix}")
