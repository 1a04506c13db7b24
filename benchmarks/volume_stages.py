"""Time and memory of inference on one volume, stage by stage, through the bundle's own config.

    python benchmarks/volume_stages.py
    python benchmarks/volume_stages.py --backbone efficientnet_lite0_multiscale --image-size 224

The volume has the grid of BraTS (240 x 240 x 155, 1 mm) and holds the MNI152 template that nilearn
ships, with noise. The settings are the default ones: three planes, place, smoothing, baseline. The
mixture of each plane has 500 components of which 140 survive, as the paper's do; weights are
random, which does not change the time. Every stage of inference.json is run
once, one after the other: share of the total time, and the highest resident memory of the process
by the end of the stage, in MB of 10^6 bytes, libraries included.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from nilearn.datasets import load_mni152_template
from nilearn.image import resample_img
from workload import stand_in_detector, volume_clock

from monai_dpmm.app.cli import configs_dir

COMPONENTS = 500


def write_volume(path: Path, shape: tuple[int, ...]) -> None:
    """The MNI152 template on a grid of 1 mm, skull-stripped, with noise, int16."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = [shape[0] / 2, shape[1] / 2 - 20, -shape[2] / 2 + 10]
    template = resample_img(load_mni152_template(resolution=1), affine, shape)
    values = np.asarray(template.dataobj, dtype=np.float32)
    noise = np.random.default_rng(0).normal(0, 0.02 * values.max(), values.shape)
    scaled = np.where(values > 0, 1000 / values.max() * (values + noise), 0).clip(0)
    nib.save(nib.Nifti1Image(scaled.astype(np.int16), affine), path)


def highest_resident() -> int:
    """Highest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of every stage."""
    scan = folder / "scan.nii.gz"
    write_volume(scan, tuple(args.shape))
    parser = ConfigParser()
    parser.read_config(str(configs_dir() / "inference.json"))
    values = {
        "bundle_root": str(folder),
        "dataset_dir": str(scan),
        "backbone_architecture": args.backbone,
        "image_size": args.image_size,
        "components": COMPONENTS,
        "embedding_batch_size": args.batch_size,
    }
    for key, value in values.items():
        parser[key] = value
    (folder / "models").mkdir()
    detector = stand_in_detector(
        args.backbone,
        COMPONENTS,
        args.image_size,
        parser["place_grid"],
        len(parser["slice_axis"]),
    )
    torch.save(detector.state_dict(), folder / "models" / "model.pt")
    parser.get_parsed_content("network")
    before = highest_resident()
    clock = volume_clock(parser, str(scan), torch.device("cpu"), highest_resident)
    return {
        "shape": args.shape,
        "backbone": args.backbone,
        "image_size": args.image_size,
        "threads": torch.get_num_threads(),
        "seconds": clock.seconds,
        "peak_bytes": clock.memory,
        "libraries_bytes": before,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    total = sum(result["seconds"].values())
    shape = " x ".join(map(str, result["shape"]))
    print(f"{shape}, {result['backbone']} at {result['image_size']} px, torch {torch.__version__},")
    print(f"{result['threads']} threads; the libraries and the model {_mb(result, None)} MB")
    print(f"{'stage':30} {'share of time':>14} {'peak MB':>9}")
    for name, seconds in result["seconds"].items():
        print(f"{name:30} {100 * seconds / total:13.1f}% {_mb(result, name):9}")
    print(f"{'all':30} {total:12.1f} s {_mb(result, max_of=True):9}")


def _mb(result: dict[str, Any], name: str | None = None, *, max_of: bool = False) -> int:
    if max_of:
        return round(max(result["peak_bytes"].values()) / 1e6)
    return round((result["libraries_bytes"] if name is None else result["peak_bytes"][name]) / 1e6)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--shape", type=int, nargs=3, default=[240, 240, 155])
    parser.add_argument("--batch-size", type=int, default=8, help="slices at the backbone at once")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measured(args, Path(folder))
    show(result)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
