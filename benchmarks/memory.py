"""Memory that does not grow: with the patches of a step or a score, with the images of an epoch.

    python benchmarks/memory.py
    python benchmarks/memory.py --patches 12288 49152 --images 24 96 --json memory.json

Each figure is of a fresh process: its highest private memory during a call, sampled every
millisecond, less that just before it, in MB of 10^6 bytes. Before it the mixture is there, a small
call of the same kind has loaded the libraries, and freed memory has been given back to the system
(where its C library can). Private is what /proc/self/statm calls resident less shared: all that the
process has allocated, but no page of a mapped file, which the system can drop at any time.

Calls on patches are made three times, and the highest figure counts, since what the C library keeps
of freed memory depends on what came before. So they are measured twice over: needed is with freed
blocks of 64 KiB and more given back at once (glibc's MALLOC_MMAP_THRESHOLD_), kept with the
library's own settings.

Patches come from a float32 file that is mapped into memory, so the input does not count:

    step         one EM step on all N patches, DPMM.step
    added        the same step, moments of the batches of 12,288 patches added up one by one
    log_prob     log-likelihoods, (N,)
    score        cosine scores, (N,)

What these return does count, 4 bytes a patch for log_prob and score, and while its parts are being
joined twice that (for score also the index of each patch's component, 8 bytes).

An epoch is one of EMTrainer over a SliceDataLoader, the start from the first batch included. By
design all embeddings stay in memory, so that no epoch runs the backbone again: data is their size,
rest the highest memory above them during the making of the loader, the trainer and the epoch. A
copy of the data would show there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from em_step import STATM, clustered, grid, options, peak
from torch import Tensor

from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.em import Moments

BATCH = 12_288  # patches that are written, and whose moments are added, at once
SLICES = 12  # of a scan, and of a batch
CALLS = 3
NO_FILE = Path()
NEEDED, KEPT = {"MALLOC_MMAP_THRESHOLD_": "65536"}, {}
CASES = ("step", "added", "log_prob", "score")


def private() -> int:
    """Bytes that this process has allocated and touched, pages of mapped files left out."""
    _, total, shared = STATM.read_text().split()[:3]
    return (int(total) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def write_patches(file: Path, patches: int, features: int) -> None:
    """Write clustered patches (N, D) as float32, a batch at a time."""
    with file.open("wb") as out:
        for start in range(0, patches, BATCH):
            part = clustered(min(BATCH, patches - start), features, seed=start)
            part.numpy().tofile(out)


def mapped(file: Path, patches: int, features: int) -> Tensor:
    """The first patches of the file, mapped: (N, D)."""
    flat = torch.from_file(str(file), shared=False, size=patches * features, dtype=torch.float32)
    return flat.view(patches, features)


def added(model: DPMM, x: Tensor) -> None:
    """One EM step, as of patches that come in batches."""
    total: Moments | None = None
    for part in x.split(BATCH):
        moments = model.e_step(part)
        total = moments if total is None else total + moments
    model.m_step(total)


def call(case: str, model: DPMM) -> Callable[[Tensor], object]:
    """What a case does to its patches."""
    calls = {"step": model.step, "log_prob": model.log_prob, "score": model.score}
    return calls.get(case, lambda x: added(model, x))


def memory_of_call(case: str, patches: int, args: argparse.Namespace) -> float:
    """Memory of a call on so many patches above the mapped input, MB."""
    x = mapped(args.file, patches, args.features)
    model = DPMM(args.features, args.components)
    model.initialize(x[:BATCH].clone())
    model.step(x[:BATCH].clone())
    run = call(case, model)
    run(x[:64])
    return max(peak(lambda: run(x), private) for _ in range(CALLS))


def scans(images: int, args: argparse.Namespace) -> list[dict[str, Tensor]]:
    """Scans of 12 slices (the last one has the rest): {"image": (S, h, w, D)}."""
    found = []
    for start in range(0, images, SLICES):
        count = min(SLICES, images - start)
        patches = clustered(count * args.grid**2, args.features, seed=start)
        found.append({"image": patches.view(count, args.grid, args.grid, args.features)})
    return found


def epoch(data: list[dict[str, Tensor]], args: argparse.Namespace) -> None:
    """One epoch of training."""
    from monai_dpmm.engines.engines import EMTrainer
    from monai_dpmm.engines.slices import SliceDataLoader

    loader = SliceDataLoader(data, SLICES, shuffle=True)
    EMTrainer("cpu", 1, loader, DPMM(args.features, args.components)).run()


def memory_of_epoch(images: int, args: argparse.Namespace) -> float:
    """Memory of an epoch above that of its embeddings, MB."""
    epoch([{"image": clustered(64, args.features).view(1, 8, 8, -1)}], args)
    data = scans(images, args)
    return peak(lambda: epoch(data, args), private)


def figure(args: argparse.Namespace) -> float:
    """The figure of the case that this process was started for, MB."""
    if args.case == "epoch":
        return memory_of_epoch(args.size, args)
    return memory_of_call(args.case, args.size, args)


def of_fresh_process(
    case: str, size: int, file: Path = NO_FILE, heap: Mapping[str, str] = KEPT
) -> float:
    """The figure of one case at one size, with settings of the C library's heap."""
    command = [sys.executable, __file__, *sys.argv[1:]]
    command += ["--case", case, "--size", str(size), "--file", str(file)]
    environment = os.environ | heap
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{case} at {size} failed: {done.stderr.strip()}")
    return float(done.stdout.splitlines()[-1])


def of_calls(file: Path, heap: Mapping[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Figures of the calls by case and patches, MB."""
    sizes = args.patches
    return {
        case: {str(n): of_fresh_process(case, n, file, heap) for n in sizes} for case in args.cases
    }


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """All figures: of calls by their patches, of epochs by their images, MB."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "patches.f32"
        write_patches(file, max(args.patches), args.features)
        needed, kept = (of_calls(file, heap, args) for heap in (NEEDED, KEPT))
    image = args.grid**2 * args.features * 4 / 1e6
    epochs = {
        str(n): {"data_mb": n * image, "rest_mb": of_fresh_process("epoch", n)} for n in args.images
    }
    return {"needed_mb": needed, "kept_mb": kept, "epochs": epochs}


def call_table(name: str, calls: dict[str, dict[str, float]]) -> str:
    """Memory of the calls, a row each, and what it grows by from the least to the most patches."""
    sizes = list(next(iter(calls.values())))
    rows = [[f"{name}, patches", *(f"{int(n):,}" for n in sizes), "bytes a patch"]]
    for case, found in calls.items():
        least, most = min(sizes, key=int), max(sizes, key=int)
        growth = 1e6 * (found[most] - found[least]) / max(int(most) - int(least), 1)
        rows.append([case, *(f"{found[n]:.1f}" for n in sizes), f"{growth:.1f}"])
    return grid(rows)


def epoch_table(epochs: dict[str, dict[str, float]]) -> str:
    """Memory of the epochs, a row for data and rest each."""
    rows = [["images", *(f"{int(n):,}" for n in epochs)]]
    for name in ("data", "rest"):
        cells = [f"{found[f'{name}_mb']:.1f}" for found in epochs.values()]
        rows.append([name, *cells])
    return grid(rows)


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = options("Memory of steps, scores and epochs as the data grow.")
    parser.add_argument("--patches", type=int, nargs="+", default=[12_288, 49_152, 196_608])
    parser.add_argument("--images", type=int, nargs="+", default=[48, 192])
    parser.add_argument("--grid", type=int, default=32, help="patches along a side of an image")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--case", choices=[*CASES, "epoch"], help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not STATM.exists():
        parser.error(f"memory is read from {STATM}, which this system has not")
    return args


def main() -> None:
    """Measure, print the tables, write the JSON."""
    args = parsed()
    torch.set_num_threads(args.threads)
    if args.case:
        print(figure(args))
        return
    names = ("patches", "images", "grid", "features", "components", "threads")
    found = measured(args)
    print("memory in MB, input left out")
    for name in ("needed", "kept"):
        print(call_table(name, found[f"{name}_mb"]), end="\n\n")
    print("memory in MB during an epoch")
    print(epoch_table(found["epochs"]))
    result = {name: getattr(args, name) for name in names} | found
    result["torch"] = torch.__version__
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
