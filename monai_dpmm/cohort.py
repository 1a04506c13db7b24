"""The demo cohort: simulated T1 brain scans from the MNI152 template, with exact lesion masks.

A subject is a function of space in template millimetres: a smooth deformation, its own sulci, its
own tissue contrast, lesions. A scanner then samples it: resolution, bias field, noise, units. Every
draw comes from a stream of the subject, so subject i is the same in a cohort of any size.
"""

from __future__ import annotations

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from monai_dpmm.lesions import (
    KINDS,
    Array,
    Lesion,
    mass_effect,
    random_lesions,
    smooth_noise,
    trilinear,
    with_lesions,
)

__all__ = ["make_demo_cohort"]

RECIPE = 1
SPLITS = ("train", "val", "test")
MANIFEST = "cohort.json"
THREADS = 2
MARGIN_MM = (12, 12, 0), (12, 12, 20)  # of air around the template, low and high, cut off
GYRI = 0.9
SHARPNESS = 1.8


@dataclass(frozen=True)
class _Template:
    """The MNI152 template at 1 mm.

    Attributes:
        maps: CSF, grey and white matter, brain, and what of T1 these do not tell, (5, X, Y, Z).
        bounds: lowest and highest corner of the grid, in mm, (2, 3).
    """

    maps: Array
    bounds: Array


def make_demo_cohort(
    folder: str | Path,
    *,
    train: int = 16,
    val: int = 4,
    test: int = 10,
    spacing: float = 2.0,
    seed: int = 0,
) -> Path:
    """Folder of the demo cohort: train, val, test/images, test/labels and cohort.json.

    Scans are int16, skull-stripped, oriented RAS; labels are uint8, 1 where a lesion takes at least
    half of a voxel. Of five test subjects one is healthy, with a label of zeros; the others have
    tumours, infarcts, plaques and haemorrhages in turn. A cohort that is there already is returned
    as it is; what is missing of one is made again.

    Args:
        folder: made if need be, whole or not at all.
        train: healthy subjects to learn from.
        val: healthy subjects to validate on.
        test: subjects to detect lesions in.
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
    template = _load_template()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        _write_cohort(made, template, parameters)
        _install(made, folder, parameters)
    return folder


def _checked(**parameters: Any) -> dict[str, Any]:
    """The parameters as they stand in cohort.json."""
    for name, low in {"train": 1, "val": 1, "test": 1, "seed": 0}.items():
        value = parameters[name]
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < low:
            raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
        parameters[name] = int(value)
    spacing = parameters["spacing"]
    if not isinstance(spacing, int | float | np.number) or not 1 <= spacing <= 8:
        raise ValueError(f"spacing must be 1 to 8 mm, got {spacing!r}")
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
        found = json.loads((folder / MANIFEST).read_text())
        found = {"recipe": found["recipe"], **found["parameters"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(
            f"folder must be new, empty or a demo cohort, got {folder}, which holds something else:"
            " choose another folder"
        ) from None
    asked = {"recipe": RECIPE, **parameters}
    differ = [
        f"{k} is {found.get(k)}, asked for was {v}" for k, v in asked.items() if found.get(k) != v
    ]
    if differ:
        raise FileExistsError(
            f"{folder} holds a demo cohort of other parameters: {'; '.join(differ)}: choose another"
            " folder or delete this one"
        )
    return all((folder / name).is_file() for names in _files(parameters).values() for name in names)


def _write_cohort(folder: Path, template: _Template, parameters: dict[str, Any]) -> None:
    """Write all subjects below a new folder, cohort.json last."""
    files = _files(parameters)
    for parent in {(folder / name).parent for names in files.values() for name in names}:
        parent.mkdir(parents=True)

    def write(subject: tuple[str, int]) -> dict[str, Any]:
        scan, label, lesions = _simulated(template, parameters, *subject)
        affine = _affine(template.bounds, parameters["spacing"])
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


def _load_template() -> _Template:
    """The MNI152 template of nilearn's package at 1 mm."""
    try:
        from nilearn import datasets
    except ImportError as error:
        raise ImportError(
            "the demo cohort needs nilearn, which holds the brain template:"
            " pip install monai-dpmm[demo]"
        ) from error
    image = datasets.load_mni152_template(resolution=1)
    t1 = image.get_fdata(dtype=np.float32)
    gray = datasets.load_mni152_gm_template(resolution=1).get_fdata(dtype=np.float32).clip(0, 1)
    white = datasets.load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32).clip(0, 1)
    mask = datasets.load_mni152_brain_mask(resolution=1).get_fdata(dtype=np.float32)
    tissues = np.stack([np.clip(1 - gray - white, 0, 1), gray, white])
    inside = mask > 0
    levels, *_ = np.linalg.lstsq(tissues[:, inside].T, t1[inside], rcond=None)
    # Rounded, so that the order in which a machine adds up cannot show in the voxels.
    detail = (t1 - np.tensordot(levels.round(3), tissues, axes=1)) * inside
    low, high = np.array(MARGIN_MM[0]), np.subtract(t1.shape, MARGIN_MM[1])
    maps = np.stack([*tissues, gaussian_filter(mask, 1.5), detail])
    corners = nib.affines.apply_affine(image.affine, [low, high - 1])
    return _Template(
        maps=maps[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]],
        bounds=corners.astype(np.float32),
    )


def _affine(bounds: Array, spacing: float) -> NDArray[np.float64]:
    """Voxels to mm: RAS axes, the first voxel on the corner of the template."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = bounds[0]
    return affine


def _simulated(
    template: _Template, parameters: dict[str, Any], split: str, index: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8], list[dict[str, Any]]]:
    """Scan and label of one subject, (X, Y, Z) each, and what is known of its lesions."""
    spacing, bounds = parameters["spacing"], template.bounds
    root = np.random.SeedSequence(parameters["seed"], spawn_key=(SPLITS.index(split), index))
    # One stream a stage: a subject without its lesions is otherwise the same subject.
    anatomy, disease, contrast, scanner = (np.random.default_rng(s) for s in root.spawn(4))
    lesions = _lesions(disease, template, index) if split == "test" else []

    points = _deformed(anatomy, bounds, spacing)
    shown = mass_effect(points, lesions)
    tissues, brain, detail = _anatomy(anatomy, template, shown)
    image, levels = _contrasted(contrast, tissues, detail, shown, bounds)
    image, fraction, volumes = with_lesions(
        image, tissues * brain, points, lesions, levels, spacing**3 / 1000
    )
    scan = _scanned(scanner, image, brain, points, levels, spacing, bounds)
    known = [
        {
            "kind": lesion.kind.name,
            "ml": round(ml, 3),
            "mni_mm": np.round(lesion.centre, 1).tolist(),
        }
        for lesion, ml in zip(lesions, volumes, strict=True)
    ]
    return scan, (fraction >= 0.5).astype(np.uint8), known


def _lesions(rng: np.random.Generator, template: _Template, index: int) -> list[Lesion]:
    """Lesions of a test subject: of five subjects the third is healthy, the kinds take turns."""
    if index % 5 == 2:
        return []
    kind = KINDS[(index - (index + 2) // 5) % len(KINDS)]
    return random_lesions(rng, kind, template.maps[2:3], template.bounds)


def _deformed(rng: np.random.Generator, bounds: Array, spacing: float) -> Array:
    """Template point in mm that each voxel shows: (3, X, Y, Z).

    A head's size, tilt and place, then smooth displacements whose slope stays far below 1, so that
    neighbours keep their order.
    """
    shape = tuple(int(n) for n in np.floor((bounds[1] - bounds[0]) / spacing + 1e-3) + 1)
    corner = bounds[0].reshape(3, 1, 1, 1)
    points = np.indices(shape, dtype=np.float32) * np.float32(spacing) + corner
    turn = Rotation.from_rotvec(rng.normal(0, 2.5, 3), degrees=True).as_matrix()
    matrix = (turn * np.exp(rng.normal(0, 0.035, 3))).astype(np.float32)
    shift = rng.normal(0, 1.5, 3).astype(np.float32).reshape(3, 1, 1, 1)
    points = np.tensordot(matrix, points, axes=1) + shift
    for sigma, amplitude in ((28, 3.0), (11, 1.1)):
        noise = np.concatenate([smooth_noise(rng, sigma, bounds) for _ in range(3)])
        points = points + np.float32(amplitude) * trilinear(noise, points, bounds)
    return points


def _anatomy(
    rng: np.random.Generator, template: _Template, points: Array
) -> tuple[Array, Array, Array]:
    """Tissue fractions (3, X, Y, Z), brain mask and T1 detail (X, Y, Z) of one person.

    The template averages many brains, and where it hesitates between tissues smooth noise decides:
    each person gets gyri, sulci and ventricles of their own.
    """
    csf, gray, white, brain, detail = trilinear(template.maps, points, template.bounds)
    noise = np.concatenate([smooth_noise(rng, 3.0, template.bounds) for _ in range(2)])
    noise = np.float32(GYRI) * trilinear(noise, points, template.bounds)
    atrophy = np.float32(rng.normal(0, 0.4))
    evidence = np.log(np.stack([csf, gray, white]) + np.float32(0.03))
    evidence[0] += noise[0] + atrophy
    evidence[2] += noise[1]
    odds = np.exp(np.float32(SHARPNESS) * evidence)
    mask = (brain > rng.uniform(0.4, 0.6)).astype(np.float32)
    return odds / odds.sum(0), mask, detail


def _contrasted(
    rng: np.random.Generator, tissues: Array, detail: Array, points: Array, bounds: Array
) -> tuple[Array, Array]:
    """Noise-free T1 intensities (X, Y, Z), and those of CSF, grey and white matter, (3,).

    What the template shows beyond its tissue fractions (deep nuclei, myelin) is added to the
    person's own tissue contrast, and a fine grain that no two people share.
    """
    levels = rng.uniform((0.18, 0.58, 0.84), (0.30, 0.68, 0.94)).astype(np.float32)
    grain = trilinear(smooth_noise(rng, 4.0, bounds), points, bounds)[0]
    image = np.tensordot(levels, tissues, axes=1) + np.float32(rng.uniform(0.7, 1.1)) * detail
    return image * (1 + np.float32(0.015) * grain), levels


def _scanned(
    rng: np.random.Generator,
    image: Array,
    brain: Array,
    points: Array,
    levels: Array,
    spacing: float,
    bounds: Array,
) -> NDArray[np.int16]:
    """Scan of an object: resolution, bias field, Rician noise, units, skull-stripping."""
    image = gaussian_filter(image, rng.uniform(0.5, 0.9) / spacing)
    bias = trilinear(smooth_noise(rng, 50.0, bounds), points, bounds)[0]
    image = image * np.exp(np.float32(rng.uniform(0.03, 0.09)) * bias)
    noise = rng.standard_normal((2, *image.shape), dtype=np.float32)
    noise *= np.float32(rng.uniform(0.012, 0.03)) * levels[2]
    image = np.hypot(image + noise[0], noise[1])
    units = np.float32(rng.uniform(500, 2000)) / levels[2]
    # Zero is left to the air around the brain, so that a foreground can be told from it.
    return np.where(brain > 0, np.rint(image * units).clip(1, 32767), 0).astype(np.int16)
