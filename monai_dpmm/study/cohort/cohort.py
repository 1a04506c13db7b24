"""The demo cohort: simulated scans as NIfTI files, with exact lesion masks and a manifest.

It is written once: a folder that is complete is taken as it is, one that lacks files is mended.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from monai_dpmm.errors import ExistingFileError, InputError
from monai_dpmm.files import json_object, make_folder, scratch_folder, sync_below
from monai_dpmm.study.cohort.phantom import SPLITS, Template, grid_affine, load_template, simulated

__all__ = ["make_demo_cohort"]

RECIPE = 2
MANIFEST = "cohort.json"
THREADS = 2


def make_demo_cohort(
    folder: str | Path,
    *,
    train: int = 16,
    val: int = 4,
    test: int = 16,
    spacing: float = 2.0,
    seed: int = 0,
) -> Path:
    """Folder of the demo cohort: train, val, test/images, test/labels and cohort.json.

    Scans are int16, skull-stripped, oriented RAS; labels are uint8, 1 where a lesion takes at least
    half of a voxel. Every other test subject is healthy, with a label of zeros; the others have
    tumours, infarcts, plaques and haemorrhages in turn. A cohort that is there already is returned
    as it is; what is missing of one is made again.

    Args:
        folder: made if need be, whole or not at all.
        train: healthy subjects to learn from.
        val: healthy subjects to validate on.
        test: subjects to detect lesions in, the first of them with one.
        spacing: of the isotropic voxels, in mm, 1 to 8.
        seed: of the cohort; on one platform the same seed gives the same voxels, bit for bit.

    Raises:
        ImportError: without nilearn, whose package holds the template.
        FileExistsError: where the folder holds anything but this cohort.
    """
    parameters = _checked(train=train, val=val, test=test, spacing=spacing, seed=seed)
    folder = Path(folder).expanduser().absolute()
    if _is_complete(folder, parameters):
        return folder
    template = load_template()
    make_folder(folder.parent)
    with scratch_folder(folder.parent) as scratch:
        made = scratch / folder.name
        _write_cohort(made, template, parameters)
        sync_below(made)
        _install(made, folder, parameters)
    return folder


def _checked(**parameters: Any) -> dict[str, Any]:
    """The parameters as they stand in cohort.json."""
    for name, low in {"train": 1, "val": 1, "test": 1, "seed": 0}.items():
        value = parameters[name]
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < low:
            raise InputError(f"{name} must be an integer of at least {low}, got {value!r}")
        parameters[name] = int(value)
    spacing = parameters["spacing"]
    if not isinstance(spacing, int | float | np.number) or not 1 <= spacing <= 8:
        raise InputError(f"spacing must be 1 to 8 mm, got {spacing!r}")
    return {**parameters, "spacing": float(spacing)}


def _files(parameters: dict[str, Any]) -> dict[tuple[str, int], list[str]]:
    """Files of each subject (split, index) below the folder: the scan and, in test, its label."""
    return {
        (split, i): [f"test/images/test_{i:03d}.nii.gz", f"test/labels/test_{i:03d}.nii.gz"]
        if split == "test"
        else [f"{split}/{split}_{i:03d}.nii.gz"]
        for split in SPLITS
        for i in range(parameters[split])
    }


def _is_complete(folder: Path, parameters: dict[str, Any]) -> bool:
    """Whether the folder holds all files of this cohort; an error where it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json_object(folder / MANIFEST)
        found = {"recipe": found["recipe"], **found["parameters"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise ExistingFileError(
            f"folder must be new, empty or a demo cohort, got {folder}, which holds something else:"
            " choose another folder"
        ) from None
    asked = {"recipe": RECIPE, **parameters}
    differ = [
        f"{k} is {found.get(k)}, asked for was {v}" for k, v in asked.items() if found.get(k) != v
    ]
    if differ:
        raise ExistingFileError(
            f"{folder} holds a demo cohort of other parameters: {'; '.join(differ)}: choose another"
            " folder or delete this one"
        )
    return all((folder / name).is_file() for names in _files(parameters).values() for name in names)


def _write_cohort(folder: Path, template: Template, parameters: dict[str, Any]) -> None:
    """Write all subjects below a new folder, cohort.json last."""
    files = _files(parameters)
    for parent in {(folder / name).parent for names in files.values() for name in names}:
        parent.mkdir(parents=True)

    def write(subject: tuple[str, int]) -> dict[str, Any]:
        scan, label, lesions = simulated(template, parameters, *subject)
        affine = grid_affine(template.bounds, parameters["spacing"])
        _save(scan, affine, folder / files[subject][0])
        for name in files[subject][1:]:
            _save(label, affine, folder / name)
        return {
            "image": files[subject][0],
            "label": files[subject][1] if len(files[subject]) > 1 else None,
            "lesions": lesions,
            "lesion_ml": round(sum(lesion["ml"] for lesion in lesions), 3),
        }

    with ThreadPoolExecutor(THREADS) as pool:
        work = pool.map(write, files)
        subjects = list(tqdm(work, total=len(files), desc="demo cohort", unit="scan"))
    content = {"recipe": RECIPE, "parameters": parameters, "subjects": subjects}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")


def _install(made: Path, folder: Path, parameters: dict[str, Any]) -> None:
    """Move a cohort to its place: in one step where it is new, else file by file to mend it."""
    if folder.exists() and any(folder.iterdir()):
        for source in sorted(made.rglob("*.nii.gz")):
            target = folder / source.relative_to(made)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
        return
    if folder.exists():
        folder.rmdir()
    try:
        os.rename(made, folder)
    except OSError:
        # Another process, of several that train together, may have been faster.
        if not _is_complete(folder, parameters):
            raise


def _save(voxels: NDArray[Any], affine: NDArray[np.float64], path: Path) -> None:
    """Write a NIfTI file with units of mm."""
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
