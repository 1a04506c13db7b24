"""Real healthy scans with artificial lesions: a data set for each scan that is held back.

    python benchmarks/lesions_in_scans.py SCAN SCAN SCAN --out real
    python benchmarks/cohort_embeddings.py --dataset real/0 --out real/0.pt

In data set i, scan i is the test subject, with balls of another intensity painted into its
foreground, and also, as it was, the validation scan; the others are for training. They show real
anatomy and real noise, but lesions that are easier to define than to believe.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

RADII_MM = (6, 8, 10, 12)
FACTORS = (0.45, 1.6)  # of the intensity, dark and bright lesions in turn


def with_balls(
    voxels: NDArray[np.float32], spacing: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The scan with lesions, and their mask, each (X, Y, Z)."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(voxels, 2 / spacing)
    inside = binary_erosion(smooth > 0.35 * np.percentile(voxels[voxels > 0], 99), iterations=6)
    mask = np.zeros(voxels.shape, np.uint8)
    for i, radius in enumerate(RADII_MM):
        free = inside & (distance_transform_edt(mask == 0, spacing) > 2 * max(RADII_MM))
        centre = rng.choice(np.argwhere(free))
        grid = np.stack(np.meshgrid(*map(np.arange, voxels.shape), indexing="ij"), -1)
        distance = np.linalg.norm((grid - centre) * spacing, axis=-1)
        share = np.clip(0.5 + (radius - distance) / 2, 0, 1)
        voxels = voxels * (1 + share * (FACTORS[i % 2] - 1)).astype(np.float32)
        mask[distance < radius] = 1
    return voxels, mask


def main() -> None:
    """Write the data sets."""
    parser = argparse.ArgumentParser(description="Artificial lesions in real scans.")
    parser.add_argument("scans", type=Path, nargs="+", help="at least 3, healthy")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if len(args.scans) < 3:
        parser.error(f"at least 3 scans are needed, got {len(args.scans)}")
    for i, path in enumerate(args.scans):
        root = args.out / str(i)
        for split in ("train", "val", "test/images", "test/labels"):
            (root / split).mkdir(parents=True, exist_ok=True)
        for other in args.scans:
            split = "val" if other == path else "train"
            nib.save(nib.load(other), root / split / f"{other.name.split('.')[0]}.nii.gz")
        scan = nib.load(path)
        image, mask = with_balls(
            scan.get_fdata(dtype=np.float32), np.array(scan.header.get_zooms()[:3], float), i
        )
        name = f"{path.name.split('.')[0]}.nii.gz"
        nib.save(nib.Nifti1Image(image, scan.affine), root / "test/images" / name)
        nib.save(nib.Nifti1Image(mask, scan.affine), root / "test/labels" / name)
        print(f"{root}: test {path.name}, lesions {mask.mean():.3%} of its voxels")


if __name__ == "__main__":
    main()
