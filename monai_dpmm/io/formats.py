"""Formats that volumes are written in, and the names of the files of one scan."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
from monai.data import ImageWriter, ITKWriter, MetaTensor, NibabelWriter
from monai.data.folder_layout import default_name_formatter
from monai.transforms import SaveImaged
from monai.utils import TransformBackends, convert_to_numpy
from torch import Tensor

from monai_dpmm.errors import FileError, InputError, cause
from monai_dpmm.files import atomic_write
from monai_dpmm.io.dicom_files import is_dicom
from monai_dpmm.io.nifti import with_grid
from monai_dpmm.io.suffixes import (
    DICOM_SUFFIXES,
    FORMATS,
    IMAGE_SUFFIXES,
    WRITTEN_SUFFIXES,
    format_of,
    stem,
)

__all__ = [
    *("SaveVolumed", "named", "saved_beside", "source_name"),
    *("volume_writer", "writer_error"),
]


class _WholeFiles(ImageWriter):
    """Writer whose files appear under their names when they are complete."""

    def write(self, filename: Any, verbose: bool = False, **kwargs: Any) -> None:
        """Write a file beside its place and move it there."""
        with atomic_write(Path(filename)) as partial:
            super().write(str(partial), verbose=verbose, **kwargs)


class NiftiVolumeWriter(_WholeFiles, NibabelWriter):
    """MONAI's NIfTI writer, but a volume of one slice keeps its third axis, (X, Y, 1).

    Where the volume lies on the grid of a NIfTI file that `LoadVolume` has read, the grid is
    written as it is there: qform, sform, their codes and units.
    """

    grid: Any = None

    def set_data_array(self, data_array: Any, *args: Any, **kwargs: Any) -> None:
        """Take a channel-first volume (1, X, Y, Z), or an image (1, H, W) as one slice."""
        super().set_data_array(data_array, *args, **{**kwargs, "squeeze_end_dims": False})
        self.data_obj = self.data_obj[..., 0]

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, *args: Any, **kwargs: Any) -> None:
        """Take the affine, and the grid of a NIfTI file where the volume comes from one."""
        super().set_metadata(meta_dict, *args, **kwargs)
        self.grid = (meta_dict or {}).get("nifti_grid")

    def write(self, filename: Any, verbose: bool = False, **kwargs: Any) -> None:
        """Write the file."""
        if self.grid is not None:
            parts = (self.data_obj, self.affine, self.grid)  # some may lie on a GPU
            array, affine, grid = (convert_to_numpy(part) for part in parts)
            image = with_grid(array.astype(self.output_dtype, copy=False), affine, grid)
            if image is not None:
                with atomic_write(Path(filename)) as partial:
                    nib.save(image, partial)
                return
        super().write(filename, verbose=verbose, **kwargs)


class ItkVolumeWriter(_WholeFiles, ITKWriter):
    """MONAI's ITK writer, but a volume of one slice keeps its third axis, (X, Y, 1)."""

    def set_data_array(self, data_array: Any, *args: Any, **kwargs: Any) -> None:
        """Take a channel-first volume (1, X, Y, Z), or an image (1, H, W) as one slice."""
        super().set_data_array(data_array, *args, **{**kwargs, "squeeze_end_dims": False})


_WRITERS: dict[str, type[ImageWriter]] = {"nibabel": NiftiVolumeWriter, "itk": ItkVolumeWriter}


def volume_writer(output_ext: str) -> type[ImageWriter]:
    """Writer of NIfTI (.nii.gz, .nii), NRRD (.nrrd) or MetaImage (.mha), for MONAI's SaveImaged.

    All keep shape, affine and the types float32, uint16 and uint8; an image is one slice.

    Raises:
        ValueError: for another suffix.
    """
    if output_ext not in WRITTEN_SUFFIXES:
        known = ", ".join(WRITTEN_SUFFIXES)
        raise InputError(f"output_ext must be one of {known}, got {output_ext!r}")
    return next(_WRITERS[row.writer] for row in FORMATS if row.writer and row.suffix == output_ext)


class SaveVolumed(SaveImaged):
    """MONAI's SaveImaged, with an error of one line where a volume cannot be written.

    With the writers of `volume_writer` a file is there whole or not at all. A folder with a DICOM
    series lends its whole name to its results, also one like 1.2.840.113.7.

    Args:
        *args: of `monai.transforms.SaveImaged`.
        **kwargs: likewise.

    Raises:
        OSError: where a folder cannot be made or a file not be written, as on a full disk.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"output_name_formatter": source_name, **kwargs})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Data, whose volumes are written."""
        try:
            return super().__call__(data)
        except Exception as error:
            folder, reason = self.saver.folder_layout.output_dir, writer_error(error)
            raise FileError(f"{folder}: volumes could not be written there, {reason}") from error


def writer_error(error: Exception) -> str:
    """Why nothing was written, in one line: MONAI raises what its writers raise, as text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    errors = [line.strip() for line in str(error).splitlines() if "rror" in line]
    return (errors or [cause(error)])[-1][:200]


def source_name(
    meta: Mapping[str, Any] | None, saver: Any, root: str | Path | None = None
) -> dict[str, Any]:
    """MONAI's name of a scan, which it takes what follows the last dot from, unless a folder's.

    Raises:
        ValueError: where the results would lie outside their folder: for a scan outside of what the
            paths are relative to, or an index that is text, as a header may have it.
    """
    name = default_name_formatter(meta, saver)
    root = saver.folder_layout.data_root_dir if root is None else root
    if root and os.pardir in Path(os.path.relpath(name["subject"], root)).parts:
        raise InputError(f"a scan must lie below data_root_dir {root}, got {name['subject']}")
    if isinstance(name["idx"], str):
        raise InputError(f"patch_index must be a number, got {name['idx']!r}")
    return {**name, "subject": named(str(name["subject"]))}


def named(scan: str) -> str:
    """Path by which MONAI names a scan's results: it takes off what follows a file's last dot.

    Of two scans that differ in their suffix only, seg.mha and seg.nrrd, results keep the suffix.
    """
    path = Path(scan)
    known = format_of(path) is not None or path.suffix.lower() in DICOM_SUFFIXES
    if path.is_dir() or (not known and is_dicom(path)):
        return f"{scan}.dcm"
    return f"{scan}.file" if _has_twin(path) else scan


def _has_twin(scan: Path) -> bool:
    """Whether another scan beside it has its name: a file of another format, a DICOM series."""
    beside = scan.with_name(stem(scan))
    if beside == scan:
        return False
    if any(name != scan and name.is_file() for name in _with_suffixes(beside)):
        return True
    return beside.is_dir() and any(p.suffix.lower() == ".dcm" for p in beside.iterdir())


def _with_suffixes(beside: Path) -> list[Path]:
    return [beside.with_name(f"{beside.name}{suffix}") for suffix in IMAGE_SUFFIXES]


def saved_beside(image: Tensor, ending: str) -> Path | None:
    """Path of another file of the same scan, NAME_ending, beside NAME_postfix; None if not saved.

    Args:
        image: what SaveImaged saved with savepath_in_metadict=True.
        ending: of the other file, with its suffix.
    """
    saved = image.meta.get("saved_to") if isinstance(image, MetaTensor) else None
    if saved is None:
        return None
    path = Path(saved)
    suffix = next((s for s in WRITTEN_SUFFIXES if path.name.lower().endswith(s)), "")
    name = path.name[: len(path.name) - len(suffix)].rpartition("_")[0]
    return path.with_name(f"{name}_{ending}")
