"""What fusing slices of three axes buys, in AUROC and AUPR on the demo cohort, and what it costs.

    python benchmarks/fusion.py --folder demo --seeds 2

Run it from a checkout with the demo extra installed. Slices of the healthy training scans along all
three axes are embedded once. Each seed fits one mixture per axis, and one to the slices of all
axes; test volumes are scored by each of them along each axis, and their maps are fused voxel by
voxel. AUROC and AUPR are those of all voxels of the test volumes as they were embedded, mean ±
standard deviation over the seeds; time is that of scoring the test volumes, against one axis.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImage, ResampleToMatch
from monai.utils import convert_to_tensor
from torch import Tensor
from tqdm import tqdm

from monai_dpmm import datalist
from monai_dpmm.app.cli import configs_dir
from monai_dpmm.metrics.score_histogram import ScoreHistogram
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.network.geometry import extract_slices, stack_slices, upsample_scores

AXES = (0, 1, 2)
SLICES = 12  # a batch, as in the paper
OPTIONS = ("components", "variance_floor", "initialization", "initial_weights", "step_size")
JOINT = "all axes"


def parser_of(args: argparse.Namespace) -> ConfigParser:
    """The demo's training config."""
    parser = ConfigParser()
    parser.read_config([str(configs_dir() / f"{name}.json") for name in ("train", "demo")])
    parser["bundle_root"] = str(args.folder)
    if args.dataset is not None:
        parser["dataset_dir"] = str(args.dataset)
    if args.backbone is not None:
        parser["backbone_architecture"] = args.backbone
    if args.image_size is not None:
        parser["image_size"] = args.image_size
    return parser


def embedded(detector: AnomalyDetector, scans: list[Tensor], axis: int, step: int) -> list[Tensor]:
    """Foreground patches of every step-th slice along an axis: a list of (n, D) float16."""
    slices = []
    for volume in tqdm(scans, desc=f"train, axis {axis}"):
        for part in extract_slices(volume, axis)[::step].split(8):
            patches = detector.embed(part).flatten(1, 2)
            slices += [some[some.any(dim=1)].half() for some in patches]
    return [some for some in slices if len(some)]


def fitted(slices: list[Tensor], seed: int, options: dict[str, Any], epochs: int) -> DPMM:
    """A mixture after all epochs."""
    generator = torch.Generator().manual_seed(seed)
    model = DPMM(slices[0].shape[1], seed=seed, **options)
    for _ in tqdm(range(epochs), desc=f"fit, seed {seed}"):
        for batch in torch.randperm(len(slices), generator=generator).split(SLICES):
            patches = torch.cat([slices[i] for i in batch]).float()
            if not model.fitted:
                model.initialize(patches)
            model.step(patches)
        model.prune()
    return model


def axis_maps(
    detector: AnomalyDetector, models: dict[Any, DPMM], volume: Tensor, axis: int
) -> tuple[dict[Any, Tensor], float]:
    """Anomaly volumes (X, Y, Z) of the models that know the axis, and seconds for one of them."""
    known = {key: model for key, model in models.items() if key[1] in (axis, JOINT)}
    parts: dict[Any, list[Tensor]] = {key: [] for key in known}
    scoring, start = 0.0, time.perf_counter()
    for some in extract_slices(volume, axis).split(8):
        embeddings = detector.embed(some)
        before = time.perf_counter()
        for key, detector.mixture in known.items():
            scores = detector.patch_scores(embeddings)
            parts[key].append(upsample_scores(scores, some.shape[-2:]))
        scoring += time.perf_counter() - before
    seconds = time.perf_counter() - start - scoring * (1 - 1 / len(known))
    return {key: stack_slices(torch.cat(part), axis)[0] for key, part in parts.items()}, seconds


def fused(maps: dict[int, dict[Any, Tensor]], seed: int, kind: str) -> dict[str, Tensor]:
    """Volumes of single axes and of their means, by name."""
    own = [maps[axis][seed, JOINT if kind == "one" else axis] for axis in AXES]
    stack = torch.stack(own)
    return {
        **{f"axis {axis}": volume for axis, volume in zip(AXES, own, strict=True)},
        "mean of three": stack.mean(0),
        "geometric mean": stack.clamp_min(1e-9).log().mean(0).exp(),
        "highest of three": stack.amax(0),
    }


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """AUROC and AUPR of every way to score, for each seed, and the time of each axis."""
    parser = parser_of(args)
    detector = parser.get_parsed_content("network").eval()
    options = {name: parser.get_parsed_content(f"mixture#{name}") for name in OPTIONS}
    options |= {} if args.components is None else {"components": args.components}
    load = Compose(parser.get_parsed_content("preprocessing").transforms)
    root = parser.get_parsed_content("dataset_dir")
    loaded = (load({"image": item["image"]})["image"] for item in datalist(root, "train"))
    scans = [convert_to_tensor(scan, track_meta=False) for scan in loaded]
    slices = {axis: embedded(detector, scans, axis, args.step) for axis in AXES}
    models: dict[Any, DPMM] = {}
    every = [patches for axis in AXES for patches in slices[axis]]
    joint = options | ({} if args.all_components is None else {"components": args.all_components})
    for seed in range(args.seeds):
        for axis in AXES if "each" in args.mixtures else ():
            models[seed, axis] = fitted(slices[axis], seed, options, args.epochs)
        if "one" in args.mixtures:
            models[seed, JOINT] = fitted(every, seed, joint, args.epochs)
    pools: dict[Any, ScoreHistogram] = {}
    seconds = dict.fromkeys(AXES, 0.0)
    match = ResampleToMatch(mode="nearest", padding_mode="zeros")
    for item in tqdm(datalist(root, "test", labels=True), desc="test"):
        scan = load({"image": item["image"]})["image"]
        volume = convert_to_tensor(scan, track_meta=False)
        label = match(LoadImage(ensure_channel_first=True)(item["label"]), scan)
        lesions = convert_to_tensor(label, track_meta=False)[0] > 0
        maps = {}
        for axis in AXES:
            maps[axis], spent = axis_maps(detector, models, volume, axis)
            seconds[axis] += spent
        for seed in range(args.seeds):
            for kind in args.mixtures:
                for name, volume_map in fused(maps, seed, kind).items():
                    pool = pools.setdefault((kind, name, seed), ScoreHistogram())
                    pool.update(volume_map, lesions)
    rows = [
        {"models": k, "scored": n, "seed": s, "auroc": p.auroc().value, "aupr": p.aupr().value}
        for (k, n, s), p in pools.items()
    ]
    return {"rows": rows, "seconds": seconds, "step": args.step, "epochs": args.epochs}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    titles = {"each": "one mixture per axis", "one": "one mixture for all axes"}
    one_axis = result["seconds"][2]
    print(f"{'mixtures':26} {'scored':18} {'AUROC':>17} {'AUPR':>17} {'time':>7}")
    for kind, name in dict.fromkeys((row["models"], row["scored"]) for row in result["rows"]):
        runs = [row for row in result["rows"] if (row["models"], row["scored"]) == (kind, name)]
        cells = [_spread([run[column] for run in runs]) for column in ("auroc", "aupr")]
        axes = [int(name[-1])] if name.startswith("axis") else AXES
        ratio = sum(result["seconds"][axis] for axis in axes) / one_axis
        print(f"{titles[kind]:26} {name:18} {cells[0]:>17} {cells[1]:>17} {ratio:6.2f}x")


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="of the demo cohort")
    parser.add_argument("--dataset", type=Path, help="another data set's folder")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--step", type=int, default=4, help="every so many training slices")
    parser.add_argument("--mixtures", nargs="+", choices=("each", "one"), default=["each", "one"])
    parser.add_argument("--components", type=int, help="of each mixture; the demo's if not given")
    parser.add_argument("--all-components", type=int, help="of that for all axes; as many if not")
    parser.add_argument("--backbone", help="architecture; the demo's if not given")
    parser.add_argument("--image-size", type=int, help="the demo's if not given")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with torch.no_grad():
        result = measured(args)
    show(result)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
