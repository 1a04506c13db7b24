"""Simulated ultrasound pictures: a third kind of image beside the demo's brains and real FLAIR.

    python benchmarks/speckle.py speckle
    python -m monai_dpmm compare speckle -f defaults -s backbone_architecture=... --seeds 1
    python -m monai_dpmm compare speckle -f papers -c paper -s backbone_architecture=... --seeds 1

Layers of skin, fat, gland and muscle scatter differently; the signal is filtered complex noise, so
that grey levels mean little and speckle much; its log is cut to 45 to 60 dB at a gain that differs
from picture to picture; some have shadows. A lesion is a region that scatters less, of 2 to 9 % of
the picture, with a shadow or a bright band below it. There is no air. Written in BMAD's layout.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 256
Array = NDArray[np.floating]


def smooth(random: np.random.Generator, sigma: float | tuple[float, float]) -> Array:
    """Standardised smooth noise: (H, W)."""
    field = gaussian_filter(random.standard_normal((SIDE, SIDE)), sigma)
    return (field - field.mean()) / field.std()


def lesion(random: np.random.Generator, gland: float, muscle: float) -> tuple[Array, Array, Array]:
    """Distance of each pixel from its centre in radii, depth below it, distance across in radii."""
    radius = random.uniform(22, 38)
    depth = random.uniform(gland + radius, max(gland + radius + 1, min(muscle, 200)))
    across, flat = random.uniform(40, SIDE - 40), random.uniform(0.6, 1.1)
    z, x = np.mgrid[:SIDE, :SIDE].astype(float)
    angle = np.arctan2((z - depth) / flat, x - across)
    border = radius * (1 + 0.12 * np.sin(3 * angle + random.uniform(0, 6)))
    far = np.hypot((z - depth) / flat, x - across) / border
    return far, z - depth - flat * radius, (x - across) / radius


def picture(random: np.random.Generator, ill: bool) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture and its lesion: (H, W) both."""
    z, x = np.mgrid[:SIDE, :SIDE].astype(float)
    depth = z + 6 * smooth(random, 40) + 4 * smooth(random, (25, 60))
    layers = np.cumsum([random.uniform(*r) for r in ((8, 14), (25, 60), (50, 95), (25, 50))])
    scatter = np.select([depth < border for border in layers], [6.0, 1.0, 3.5, 1.3], 2.0)
    scatter *= np.exp(0.35 * smooth(random, 12) + 0.25 * smooth(random, 4))
    septa = (np.abs(smooth(random, (3, 18))) < 0.06) & (depth > layers[0]) & (depth < layers[1])
    scatter = np.where(septa, 4 * scatter, scatter)
    gain_db = -random.uniform(0, 1.2) * 1.5 * 8.7 * z / SIDE
    for _ in range(random.integers(0, 3)):  # ribs and bad contact
        shadow = np.exp(-(((x - random.uniform(0, SIDE)) / random.uniform(6, 25)) ** 2) / 2)
        gain_db += 20 * np.log10(1 - random.uniform(0.4, 0.9) * shadow)
    mask = np.zeros((SIDE, SIDE), bool)
    if ill:
        far, below, across = lesion(random, layers[0], layers[2])
        mask = far < 1
        weak = random.uniform(0.12, 0.4) * np.exp(0.3 * smooth(random, 5))
        scatter = np.where(mask, weak, scatter)
        behind = random.choice([-1, 1]) * random.uniform(1.7, 7)
        gain_db += behind * np.exp(-((across / 0.8) ** 4)) * (below > 0)
    width = (random.uniform(0.9, 1.3), random.uniform(1.6, 2.6))  # of a pulse, and of the beam
    waves = (random.standard_normal((SIDE, SIDE)) * np.sqrt(scatter) for _ in range(2))
    envelope = np.hypot(*(gaussian_filter(wave, width) for wave in waves))
    envelope /= np.sqrt(np.mean(envelope**2))
    decibel = 20 * np.log10(envelope + 1e-3) + gain_db + random.uniform(-4, 6)
    dynamic = random.uniform(45, 60)
    return (255 * np.clip((decibel + dynamic - 12) / dynamic, 0, 1)).astype(np.uint8), mask


def main() -> None:
    """Write the data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument("--train", type=int, default=150, help="healthy pictures")
    parser.add_argument("--valid", type=int, default=60, help="pictures with a lesion, and without")
    parser.add_argument("--test", type=int, default=60, help="pictures with a lesion, and without")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random = np.random.default_rng(args.seed)
    groups = (
        ("train/good", args.train, False),
        ("valid/good", args.valid, False),
        ("valid/Ungood", args.valid, True),
        ("test/good", args.test, False),
        ("test/Ungood", args.test, True),
    )
    for folder, count, ill in groups:
        own = args.target / folder
        images, labels = (own, None) if folder[:5] == "train" else (own / "img", own / "label")
        for number in range(count):
            grey, mask = picture(random, ill)
            for place, pixels in ((images, grey), (labels, 255 * mask.astype(np.uint8))):
                if place is not None:
                    place.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(place / f"{number:03d}.png")


if __name__ == "__main__":
    main()
