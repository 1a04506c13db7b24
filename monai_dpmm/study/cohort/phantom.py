"""Simulated heads: T1 brain scans from the MNI152 template, with exact masks of their lesions.

A subject is a function of space in template millimetres: a smooth deformation, its own sulci, its
own tissue contrast, lesions. A scanner then samples it: resolution, bias field, noise, units. Every
draw comes from a stream of the subject, so subject i is the same in a cohort of any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from monai_dpmm.errors import MissingPackageError
from monai_dpmm.study.cohort.lesions import (
    KINDS,
    Array,
    Lesion,
    mass_effect,
    random_lesions,
    smooth_noise,
    trilinear,
    with_lesions,
)

__all__ = ["SPLITS", "Template", "grid_affine", "load_template", "simulated"]

SPLITS = ("train", "val", "test")
MARGIN_MM = (12, 12, 0), (12, 12, 20)  # of air around the template, low and high, cut off
GYRI = 0.9
SHARPNESS = 1.8


@dataclass(frozen=True)
class Template:
    """The MNI152 template at 1 mm.

    Attributes:
        maps: CSF, grey and white matter, brain, and what of T1 these do not tell, (5, X, Y, Z).
        bounds: lowest and highest corner of the grid, in mm, (2, 3).
    """

    maps: Array
    bounds: Array


def load_template() -> Template:
    """The MNI152 template of nilearn's package at 1 mm."""
    try:
        from nilearn import datasets
    except ImportError as error:
        raise MissingPackageError(
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
    return Template(
        maps=maps[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]],
        bounds=corners.astype(np.float32),
    )


def grid_affine(bounds: Array, spacing: float) -> NDArray[np.float64]:
    """Voxels to mm: RAS axes, the first voxel on the corner of the template."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = bounds[0]
    return affine


def simulated(
    template: Template, parameters: dict[str, Any], split: str, index: int
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


def _lesions(rng: np.random.Generator, template: Template, index: int) -> list[Lesion]:
    """Lesions of a test subject: every other subject is healthy, the kinds take turns."""
    if index % 2:
        return []
    kind = KINDS[index // 2 % len(KINDS)]
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
    rng: np.random.Generator, template: Template, points: Array
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
    # Zero is left to the air around the brain, so that a foreground can be distinguished from it.
    return np.where(brain > 0, np.rint(image * units).clip(1, 32767), 0).astype(np.int16)
