"""What `LoadVolume` costs beside nibabel: time of the same .nii.gz, in processor time of one run.

    python benchmarks/reading.py [--shape X Y Z] [--repeats 7] [--json FILE]

nibabel gives voxels of the file's type, which are decompressed and no more; `LoadVolume` also
verifies the checksum, makes them float32 in C order, and looks for NaN, infinity and constants. The
simulated head fills a quarter of the volume. The last column compares with nibabel's float32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import nibabel as nib
import numpy as np
import torch

from monai_dpmm import LoadVolume


def head(shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """A head with texture and noise in air of 0."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (grid**2).sum(0) < 0.6
    noise = np.random.default_rng(0).normal(0, 40, shape)
    scan = inside * (500 + 200 * np.sin(8 * grid[0]) + noise)
    return np.clip(scan / 4 if dtype == "uint8" else scan, 0, None).astype(dtype)


def least(function: Callable[[], Any], repeats: int) -> float:
    """Least processor time of some calls, seconds."""
    times = []
    for _ in range(repeats):
        start = process_time()
        function()
        times.append(process_time() - start)
    return min(times)


def reading_cost(file: Path, repeats: int) -> dict[str, float]:
    """Times of nibabel and of `LoadVolume` for a file, and their ratios."""
    load = LoadVolume()
    stored = least(lambda: np.asanyarray(nib.load(file).dataobj), repeats)
    floats = least(lambda: nib.load(file).get_fdata(dtype=np.float32), repeats)
    ours = least(lambda: load(file), repeats)
    return {"nibabel_s": stored, "ours_s": ours, "ratio": ours / stored, "to_float": ours / floats}


def main() -> None:
    """Print a row for each type of voxels."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {}
    print(f"{'voxels':10}{'nibabel s':>12}{'ours s':>10}{'ratio':>8}{'to float32':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("int16", "float32", "uint8"):
            file = Path(folder) / f"{dtype}.nii.gz"
            nib.save(nib.Nifti1Image(head(tuple(args.shape), dtype), np.eye(4)), file)
            row = found[dtype] = reading_cost(file, args.repeats)
            print(
                f"{dtype:10}{row['nibabel_s']:12.3f}{row['ours_s']:10.3f}{row['ratio']:8.2f}"
                f"{row['to_float']:12.2f}"
            )
    if args.json:
        args.json.write_text(f"{json.dumps(found, indent=2)}\n")


if __name__ == "__main__":
    main()
