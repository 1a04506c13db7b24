"""Time and memory of one EM step, beside the four matrix products that it cannot do without.

Run it from a checkout with the package installed:

    python benchmarks/em_step.py
    python benchmarks/em_step.py --covariance spherical --threads 1 --json em_step.json

The products are (N, D) @ (D, K) twice, for the log-densities, and (K, N) @ (N, D) twice, for the
moments, in float32 and into storage that is there already. Step and products are timed in turn in
one process; the ratio is the median over the pairs. Full covariance needs more than the four
products (D times the arithmetic), so its ratio says how much more.

Memory is the highest resident set of a fresh process during the step, sampled every millisecond,
less the resident set just before it, when input and mixture are there, a tiny step has loaded the
libraries and freed memory has been given back to the system (where its C library can), so that the
step cannot hide in it. It is read from /proc and left out on systems without it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from monai_dpmm.mixture import DPMM

STATM = Path("/proc/self/statm")


def clustered(patches: int, features: int, clusters: int = 150) -> Tensor:
    """Unit-norm patches around `clusters` unit prototypes: (N, D)."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(clusters, features, generator=generator), dim=1)
    label = torch.randint(clusters, (patches,), generator=generator)
    noise = torch.randn(patches, features, generator=generator)
    return F.normalize(centres[label] + 0.5 * noise / features**0.5, dim=1)


def mixture(x: Tensor, args: argparse.Namespace, steps: int) -> DPMM:
    """A mixture started from x and fitted for a few steps."""
    model = DPMM(args.features, args.components, covariance=args.covariance)
    model.initialize(x)
    for _ in range(steps):
        model.step(x)
    return model


def products(x: Tensor, components: int) -> Callable[[], None]:
    """The four matrix products of a step, to call."""
    generator = torch.Generator().manual_seed(1)
    slope = torch.randn(x.shape[1], components, generator=generator)
    r = torch.softmax(torch.randn(len(x), components, generator=generator), dim=1)
    joint = torch.empty(len(x), components)
    moment = torch.empty(components, x.shape[1])

    def run() -> None:
        for _ in range(2):
            torch.mm(x, slope, out=joint)
            torch.mm(r.T, x, out=moment)

    return run


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def timings(args: argparse.Namespace) -> dict[str, float]:
    """Medians over the repeats, in milliseconds, and their ratio."""
    x = clustered(args.patches, args.features)
    model = mixture(x, args, steps=3)
    four = products(x, args.components)
    four()
    pairs = [(seconds(four), seconds(lambda: model.step(x))) for _ in range(args.repeats)]
    return {
        "products_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "step_ms": 1e3 * statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
    }


def resident() -> int:
    """Bytes of this process in memory."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory(args: argparse.Namespace) -> float:
    """Highest resident set during a step above the one before it, MB; for a fresh process."""
    x = clustered(args.patches, args.features)
    model = mixture(x, args, steps=0)
    model.step(x[:64])
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    before, highest, done = resident(), 0, threading.Event()

    def sample() -> None:
        nonlocal highest
        while not done.wait(1e-3):
            highest = max(highest, resident())

    sampler = threading.Thread(target=sample)
    sampler.start()
    for _ in range(3):
        model.step(x)
    done.set()
    sampler.join()
    return (max(highest, resident()) - before) / 1e6


def memory_of_fresh_process() -> float | None:
    """Peak memory of a step in MB, or None where the system does not tell."""
    if not STATM.exists():
        return None
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-only"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(result: dict[str, object]) -> str:
    """The result, one quantity a line."""
    width = max(map(len, result))
    lines = []
    for name, value in result.items():
        shown = f"{value:.2f}" if isinstance(value, float) else str(value)
        lines.append(f"{name:<{width}}  {shown:>12}")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description="Time and memory of one EM step.")
    parser.add_argument("--patches", type=int, default=12288, help="N, patches of the batch")
    parser.add_argument("--features", type=int, default=384, help="D, features of an embedding")
    parser.add_argument("--components", type=int, default=500, help="K, the truncation")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--covariance", choices=["diagonal", "full", "spherical"], default="diagonal"
    )
    parser.add_argument("--json", type=Path, help="file to write the result to")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, write the JSON."""
    args = parsed()
    torch.set_num_threads(args.threads)
    if args.memory_only:
        print(peak_memory(args))
        return
    names = ("patches", "features", "components", "covariance", "threads", "repeats")
    result: dict[str, object] = {name: getattr(args, name) for name in names}
    result |= timings(args)
    result["peak_memory_mb"] = memory_of_fresh_process()
    result["input_mb"] = args.patches * args.features * 4 / 1e6
    result["torch"] = torch.__version__
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
