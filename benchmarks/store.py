"""Training from the embedding store: memory by the number of slices, and time against memory's.

    python benchmarks/store.py
    python benchmarks/store.py --slices 500 7500 --dtype float16 --json store.json

A synthetic data set of scans of 25 slices of 32 x 32 patches x 384 features is written once; its
transform takes the place of loading and embedding, and every call of it is counted. Then, each in a
fresh process,

    memory       the highest private memory (resident less mapped files) of a training of one epoch,
                 the making of the loader included, above that of a training on one scan, MB
    first step   seconds from the making of the loader to the end of the first EM step; no scan is
                 embedded again
    epoch        processor time of an epoch read from the store, over that of one whose embeddings
                 are in memory, in turn in one process

Memory is measured with few components, since steps take no more of it with more slices, and the
epochs' time with the paper's 500.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from em_step import grid
from memory import private
from timing import peak
from torch.nn import functional as F

from monai_dpmm.engines.embedding_store import StoredEmbeddings
from monai_dpmm.engines.engines import EMTrainer
from monai_dpmm.engines.slices import SliceDataLoader
from monai_dpmm.mixture.dpmm import DPMM

SCAN, SIDE, FEATURES, BATCH = 25, 32, 384, 12


class Embedded:
    """What takes the place of loading and embedding: unit-norm patches by the scan's number."""

    def __init__(self) -> None:
        self._base: torch.Tensor | None = None

    def __call__(self, item: dict[str, int]) -> dict[str, torch.Tensor]:
        """Embeddings (S, h, w, D) of a scan."""
        if self._base is None:
            patches = torch.randn(item["slices"], SIDE, SIDE, FEATURES)
            self._base = F.normalize(patches, dim=-1)
        calls.append(item["number"])
        return {"image": self._base.roll(item["number"], dims=-1)}


calls: list[int] = []


def data(slices: int) -> list[dict[str, int]]:
    """Scans of so many slices in all."""
    return [
        {"number": i, "slices": min(SCAN, slices - start)}
        for i, start in enumerate(range(0, slices, SCAN))
    ]


def stored(slices: int, args: argparse.Namespace) -> StoredEmbeddings:
    """The data set of so many slices, in the folder of all."""
    return StoredEmbeddings(data(slices), Embedded(), args.folder, dtype=args.dtype)


def epoch(source: Any, components: int, mixture: DPMM | None = None) -> DPMM:
    """One epoch of training."""
    mixture = mixture or DPMM(FEATURES, components)
    EMTrainer("cpu", 1, SliceDataLoader(source, BATCH, shuffle=True), mixture).run()
    return mixture


def first_step(slices: int, args: argparse.Namespace) -> float:
    """Seconds to the end of the first step."""
    start = time.perf_counter()
    loader = SliceDataLoader(stored(slices, args), BATCH, shuffle=True)
    mixture, batch = DPMM(FEATURES, args.components), next(iter(loader))
    mixture.initialize(batch["image"])
    mixture.step(batch["image"])
    return time.perf_counter() - start


def seconds_of_epochs(args: argparse.Namespace) -> dict[str, Any]:
    """Processor time of epochs from the store and from memory, in turn."""
    count = min(args.slices)
    source = stored(count, args)
    sources = {"store": source, "memory": [source[i] for i in range(len(source))]}
    times: dict[str, list[float]] = {name: [] for name in sources}
    mixtures = {name: epoch(each, args.components) for name, each in sources.items()}
    for _ in range(args.repeats):
        for name, each in sources.items():
            start = time.process_time()
            epoch(each, args.components, mixtures[name])
            times[name].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(times["store"], times["memory"], strict=True)]
    return {"slices": count, "seconds": times, "ratio": statistics.median(ratios)}


def measured(args: argparse.Namespace) -> Any:
    """What this process was started for."""
    if args.case == "epoch":
        return seconds_of_epochs(args)
    if args.case == "first":
        found = first_step(args.size, args)
    elif args.case == "write":
        found = float(len(stored(args.size, args).embed()))
    else:
        epoch(stored(SCAN, args), args.small)
        found = peak(lambda: epoch(stored(args.size, args), args.small), private)
    if calls and args.case != "write":
        raise RuntimeError(f"scans were embedded again: {calls}")
    return found


def fresh(case: str, size: int, folder: str) -> Any:
    """What a fresh process finds."""
    command = [sys.executable, __file__, *sys.argv[1:]]
    command += ["--case", case, "--size", str(size), "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{case} at {size} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Write the store, measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, nargs="+", default=[500, 7500])
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float16")
    parser.add_argument("--components", type=int, default=500, help="of the epochs that are timed")
    parser.add_argument("--small", type=int, default=8, help="components where memory is measured")
    parser.add_argument("--repeats", type=int, default=3, help="epochs that are timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--place", help="folder for the store, which is deleted at the end")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.case:
        print(json.dumps(measured(args)))
        return
    with tempfile.TemporaryDirectory(dir=args.place) as folder:
        fresh("write", max(args.slices), folder)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        cases = {
            case: [fresh(case, n, folder) for n in args.slices] for case in ("memory", "first")
        }
        epochs = fresh("epoch", 0, folder)
    rows = [["slices", *(f"{n:,}" for n in args.slices)]]
    for name, case in (("memory of a training, MB", "memory"), ("first step after, s", "first")):
        rows.append([name, *(f"{value:.1f}" for value in cases[case])])
    print(f"store of {max(args.slices):,} slices, {args.dtype}: {size / 1e9:.2f} GB")
    print(grid(rows))
    growth = max(cases["memory"]) - min(cases["memory"])
    print(
        f"memory differs by {growth:.1f} MB; epoch from the store / in memory:"
        f" {epochs['ratio']:.2f}"
    )
    if args.json:
        found = {"slices": args.slices, "dtype": args.dtype, "gb": size / 1e9} | cases
        found |= {"growth_mb": growth, "epoch": epochs, "torch": torch.__version__}
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
