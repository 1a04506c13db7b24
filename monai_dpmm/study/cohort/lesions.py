"""Brain lesions for simulated T1 scans: outline, mass effect, intensities, exact fractions.

Positions are millimetres of the template; x grows to the right, y forwards, z upwards. Intensities
are levels on the subject's own tissue scale: 0 is CSF, 1 grey matter, 2 white matter, and levels
above 2 are brighter than white matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

__all__ = [
    *("KINDS", "Kind", "Lesion", "mass_effect", "random_lesions", "smooth_noise", "trilinear"),
    "with_lesions",
]

Array = NDArray[np.float32]
NOISE_SAMPLES_PER_SIGMA = 1.5
EDGE_MM = 3.0
FALX_MM = 1.5


@dataclass(frozen=True)
class Kind:
    """What the lesions of one disease have in common; pairs are the (low, high) of a uniform draw.

    Attributes:
        name: as written into cohort.json.
        count: lesions per subject, both ends included.
        volume: millilitres of one lesion, oedema included, drawn log-uniformly.
        low: smallest |x|, y, z of a centre, in mm.
        high: largest |x|, y, z of a centre, in mm.
        level: intensity of the core.
        core: share of the volume that the core takes; the rest is oedema.
        elongation: longest over shortest axis of the underlying ellipsoid.
        wobble: irregularity of the outline, as a share of the radius.
        affinity: mm by which the lesion reaches further along white matter.
        rim: mm of the bright shell around the core; (0, 0) for none.
        push: strength of the mass effect, 0 (none) to below 1.
    """

    name: str
    count: tuple[int, int]
    volume: tuple[float, float]
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    level: tuple[float, float]
    core: tuple[float, float] = (1.0, 1.0)
    elongation: float = 1.6
    wobble: float = 0.3
    affinity: float = 0.0
    rim: tuple[float, float] = (0.0, 0.0)
    push: tuple[float, float] = (0.0, 0.0)


KINDS = (
    Kind(
        "tumour", (1, 1), (18, 40), (18, -65, 0), (45, 45, 50), (0.1, 0.7), core=(0.45, 0.65),
        affinity=7.0, rim=(0.5, 2.2), push=(0.25, 0.45),
    ),
    Kind(
        "infarct", (1, 2), (5, 30), (34, -60, 0), (58, 30, 50), (0.2, 0.75),
        elongation=2.2, wobble=0.45,
    ),
    Kind(
        "plaques", (3, 4), (0.5, 2.5), (14, -60, 5), (36, 40, 42), (0.5, 1.1),
        elongation=2.0, affinity=5.0,
    ),
    Kind(
        "haemorrhage", (1, 2), (2, 14), (16, -40, -5), (45, 35, 45), (2.2, 2.9),
        core=(0.55, 0.8), elongation=1.8, affinity=4.0, push=(0.1, 0.3),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Lesion:
    """One lesion before it is painted: its place and size, and a stream for its shape."""

    kind: Kind
    centre: tuple[float, float, float]
    volume: float
    push: float
    generator: np.random.Generator

    @property
    def radius(self) -> float:
        """Radius in mm of the ball of the same volume."""
        return float((3000 * self.volume / (4 * np.pi)) ** (1 / 3))


def smooth_noise(rng: np.random.Generator, sigma: float, bounds: Array) -> Array:
    """Gaussian random field of unit variance on a coarse grid over `bounds`: (1, a, b, c).

    Read it with `trilinear`; the grid depends on `sigma` alone, so a field is the same one at every
    image spacing.

    Args:
        rng: the only source of randomness.
        sigma: of the Gaussian kernel, in mm.
        bounds: lowest and highest corner of the field of view, in mm, (2, 3).
    """
    step = sigma / NOISE_SAMPLES_PER_SIGMA
    shape = tuple(int(n) for n in np.ceil((bounds[1] - bounds[0]) / step) + 1)
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise = gaussian_filter(noise, NOISE_SAMPLES_PER_SIGMA, mode="wrap", truncate=3)
    # The kernel's own gain, not the sample's: a field of few grains may well be weak or strong.
    gain = (2 * np.sqrt(np.pi) * NOISE_SAMPLES_PER_SIGMA) ** -1.5
    return (noise / np.float32(gain))[None]


def trilinear(volumes: Array, points: Array, bounds: Array) -> Array:
    """Trilinear values of volumes at points: (C, a, b, c), (3, X, Y, Z) -> (C, X, Y, Z).

    The volumes span `bounds` from corner voxel to corner voxel; beyond, the border continues.
    """
    span = (bounds[1] - bounds[0]).reshape(3, 1, 1, 1)
    unit = (points - bounds[0].reshape(3, 1, 1, 1)) * np.float32(2) / span - np.float32(1)
    grid = torch.from_numpy(np.ascontiguousarray(np.moveaxis(unit[::-1], 0, -1)))
    values = F.grid_sample(
        torch.from_numpy(volumes)[None],
        grid[None],
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return values[0].numpy()


def random_lesions(
    rng: np.random.Generator, kind: Kind, white: Array, bounds: Array
) -> list[Lesion]:
    """Lesions of one subject, centred in the template's white matter.

    Args:
        rng: the only source of randomness.
        kind: the disease.
        white: white matter of the template, in [0, 1], (1, X, Y, Z).
        bounds: see `smooth_noise`.
    """
    low, high = np.log(kind.volume)
    count = int(rng.integers(kind.count[0], kind.count[1], endpoint=True))
    return [
        Lesion(
            kind=kind,
            centre=_centre(rng, kind, white, bounds),
            volume=float(np.exp(rng.uniform(low, high))),
            push=float(rng.uniform(*kind.push)),
            generator=stream,
        )
        for stream in rng.spawn(count)
    ]


def mass_effect(points: Array, lesions: list[Lesion]) -> Array:
    """Template points, in mm, that show after mass effect: (3, X, Y, Z) -> (3, X, Y, Z).

    Around a lesion each voxel shows tissue from nearer its centre: tissue is pushed outwards. Below
    a push of 1 the map keeps its order along every ray, so nothing folds.
    """
    for lesion in lesions:
        centre = np.asarray(lesion.centre, np.float32).reshape(3, 1, 1, 1)
        offset = points - centre
        width = 2 * (1.3 * lesion.radius) ** 2
        reach = np.exp(-np.square(offset).sum(0, keepdims=True) / np.float32(width))
        points = points - np.float32(lesion.push) * reach * offset
    return points


def with_lesions(
    image: Array,
    tissues: Array,
    points: Array,
    lesions: list[Lesion],
    levels: Array,
    voxel_ml: float,
) -> tuple[Array, Array, list[float]]:
    """Image with lesions, their fraction of each voxel in [0, 1], and their volumes in ml.

    A voxel belongs to the exact mask where its fraction is at least 0.5; the volumes are those of
    the mask. Lesions stay within the brain, on their side of the falx, and apart from one another.

    Args:
        image: noise-free intensities, (X, Y, Z).
        tissues: fractions of CSF, grey and white matter, zero outside the brain, (3, X, Y, Z).
        points: template position of each voxel in mm, before mass effect, (3, X, Y, Z).
        lesions: what to paint.
        levels: intensities of CSF, grey and white matter, (3,).
        voxel_ml: volume of a voxel.
    """
    spacing = (1000 * voxel_ml) ** (1 / 3)
    brain = binary_erosion(tissues.sum(0) > 0.5, iterations=max(1, round(2 / spacing)))
    # Smoothing tells ventricles, which no lesion fills, from sulci, which a lesion may swallow.
    solid = brain & (gaussian_filter(tissues[1] + tissues[2], 4 / spacing) > 0.5)
    fraction = np.zeros(image.shape, np.float32)
    volumes = []
    for lesion in lesions:
        side = np.sign(lesion.centre[0])
        allowed = solid & (points[0] * side > FALX_MM) & (fraction == 0)
        outline, texture = _noise(lesion, points)
        shape = _shape(lesion, tissues[2], points, outline, allowed, lesion.volume / voxel_ml)
        image = _painted(image, shape, lesion, levels, texture)
        fraction = np.maximum(fraction, shape[0])
        volumes.append(float((shape[0] >= 0.5).sum() * voxel_ml))
    return image, fraction, volumes


def _centre(
    rng: np.random.Generator, kind: Kind, white: Array, bounds: Array
) -> tuple[float, float, float]:
    """Centre in mm: of 64 draws in the kind's box the first in white matter, else the whitest."""
    draws = rng.uniform(kind.low, kind.high, size=(64, 3)).astype(np.float32)
    draws[:, 0] *= rng.choice(np.array([-1, 1], np.float32), size=64)
    values = trilinear(white, draws.T.reshape(3, 64, 1, 1), bounds).ravel()
    x, y, z = draws[int(np.argmax(np.minimum(values, 0.6)))]
    return float(x), float(y), float(z)


def _noise(lesion: Lesion, points: Array) -> tuple[Array, Array]:
    """Unit-variance noise around a lesion, for its outline and its texture, (X, Y, Z) each."""
    centre = np.asarray(lesion.centre, np.float32)
    margin = np.float32(4 * lesion.radius + 10)
    bounds = np.stack([centre - margin, centre + margin])
    outline = smooth_noise(lesion.generator, max(2.5, 0.4 * lesion.radius), bounds)
    texture = smooth_noise(lesion.generator, 3.0, bounds)
    return trilinear(outline, points, bounds)[0], trilinear(texture, points, bounds)[0]


def _shape(
    lesion: Lesion,
    white: Array,
    points: Array,
    outline: Array,
    allowed: NDArray[np.bool_],
    voxels: float,
) -> tuple[Array, Array, Array]:
    """Fractions in [0, 1] of the whole lesion, its core and the inside of its rim, (X, Y, Z) each.

    The surface is a level set of an ellipsoid's depth plus smooth noise, in mm; its level is the
    rank that gives the volume, so the mask holds the number of voxels asked for.
    """
    rng, kind = lesion.generator, lesion.kind
    axes = np.exp(rng.uniform(-0.5, 0.5, 3) * np.log(kind.elongation))
    turn = Rotation.from_quat(rng.standard_normal(4)).as_matrix()
    offset = points - np.asarray(lesion.centre, np.float32).reshape(3, 1, 1, 1)
    stretched = np.tensordot((turn / axes[:, None]).astype(np.float32), offset, axes=1)
    depth = np.float32(kind.wobble * lesion.radius) * outline - np.sqrt(np.square(stretched).sum(0))

    share, rim = rng.uniform(*kind.core), np.float32(rng.uniform(*kind.rim))
    whole = _edge(_level(depth + np.float32(kind.affinity) * white, allowed, voxels))
    if share == 1:
        return whole, whole, whole
    core = _level(depth, whole >= 0.5, share * voxels)
    return whole, _edge(core), _edge(core - rim)


def _level(depth: Array, allowed: NDArray[np.bool_], voxels: float) -> Array:
    """Depth in mm below the surface around the `voxels` deepest allowed voxels, -inf elsewhere."""
    inside = depth[allowed]
    rank = inside.size - min(max(round(voxels), 1), inside.size)
    return np.where(allowed, depth - np.partition(inside, rank)[rank], np.float32(-np.inf))


def _edge(depth: Array) -> Array:
    """Fraction in [0, 1] of a voxel at a depth in mm: 0.5 on the surface, which is not sharp."""
    return np.clip(depth / np.float32(EDGE_MM) + np.float32(0.5), 0, 1)


def _painted(
    image: Array, shape: tuple[Array, Array, Array], lesion: Lesion, levels: Array, texture: Array
) -> Array:
    """Image with the oedema, rim and core of one lesion blended in, (X, Y, Z)."""
    whole, core, cavity = shape
    rng, kind = lesion.generator, lesion.kind
    oedema = _intensity(rng.uniform(0.5, 1.0), levels)
    rim = _intensity(rng.uniform(2.0, 2.8), levels)
    body = _intensity(rng.uniform(*kind.level), levels)
    grain = np.float32(rng.uniform(0.04, 0.12)) * texture
    if kind.core[1] < 1:
        image = image + np.float32(rng.uniform(0.6, 0.9)) * whole * (oedema - image)
    if kind.rim[1] > 0:
        image = image + core * (rim * (1 + grain) - image)
    return image + cavity * (body * (1 + grain) - image)


def _intensity(level: float, levels: Array) -> np.float32:
    """Intensity at a level: 0 CSF, 1 grey, 2 white matter, linear between and beyond."""
    lower = min(int(level), 1)
    return np.float32(levels[lower] + (level - lower) * (levels[lower + 1] - levels[lower]))
