"""Time and memory of one EM step, beside the four matrix products that it cannot do without.

Run it from a checkout with the package installed:

    python benchmarks/em_step.py
    python benchmarks/em_step.py --surviving 140
    python benchmarks/em_step.py --covariance spherical --threads 1 --json em_step.json
    python benchmarks/em_step.py --device cuda --surviving 140

The products are (N, D) @ (D, K) twice, for the log-densities, and (K, N) @ (N, D) twice, for the
moments, in full float32 and into storage that is there already. Products and steps are timed in
turn in one process; a ratio is the median over the turns. Spherical and von Mises-Fisher
components need but two of the products, so their ratio can fall to 0.5; full covariance needs more
(D times the arithmetic), so its ratio says how much more.

--surviving M adds a late step, when EM has lost all but M of the components: the K - M of least
weight are given the weight of zero that the moving averages give those below 1e-30, dense steps
follow, and `prune` leaves them out. The last component counts among the M, since its stick v_K = 1
never vanishes. late_difference is the largest difference between the parameters after a pruned and
after a dense step from there, relative to the largest entry of the parameter.

tflops is the arithmetic that the components need (two flop a multiply-add; what vanished components
cost a dense step counts) over the time, matmul_fraction that rate over the rate of the products.

Memory is the highest resident set of a fresh process during the step, sampled every millisecond,
less the resident set just before it, when input and mixture are there, a tiny step has loaded the
libraries and freed memory has been given back to the system (where its C library can), so that the
step cannot hide in it; freed blocks of 64 KiB and more are given back at once (with glibc), since
what it keeps of them varies from run to run. It is read from /proc and left out on systems without
it. On CUDA it is what PyTorch's allocator held at most during a step, less what it held before.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timing
import torch
from timing import STATM, median_ratio, peak, resident, wait
from torch import Tensor
from workload import StepSize, clustered, fresh_step_memory, products, started

from monai_dpmm.mixture.dpmm import DPMM

COVARIANCES = ["diagonal", "full", "spherical", "von_mises_fisher"]

# what other benchmarks take from here
__all__ = ["COVARIANCES", "STATM", "clustered", "device", "environment", "flop", "grid"]
__all__ += ["in_turn", "mixture", "options", "peak", "products", "ratio", "resident"]
__all__ += ["shown", "table", "wait"]
ratio = median_ratio


def mixture(x: Tensor, args: argparse.Namespace, steps: int) -> DPMM:
    """A mixture started from x and fitted for a few steps, on the device of x."""
    return started(x, args.components, args.covariance, steps)


def reduced(model: DPMM, x: Tensor, surviving: int) -> DPMM:
    """A copy that EM has left but M components: the heaviest ones and the last. Not yet pruned.

    Raises:
        ValueError: where fewer than M have any weight to begin with.
    """
    model = copy.deepcopy(model)
    gone = torch.ones(model.components, dtype=torch.bool, device=x.device)
    gone[model.average_weight[:-1].topk(surviving - 1).indices] = False
    gone[-1] = False
    model.average_weight[gone] = 0
    model.log_weights[gone] = -math.inf
    for _ in range(2):
        model.step(x)
    left = int(model.log_weights.isfinite().sum())
    if left != surviving:
        raise ValueError(f"surviving must be at most {left} on these patches, got {surviving}")
    return model


def pruned(model: DPMM) -> DPMM:
    """A copy whose steps leave out the components that have vanished."""
    model = copy.deepcopy(model)
    model.prune()
    return model


def difference(one: DPMM, other: DPMM, x: Tensor) -> float:
    """Largest difference of their parameters after a step of each from where they are.

    Relative to the largest entry of the parameter.
    """
    states = []
    for model in (one, other):
        model = copy.deepcopy(model)
        model.step(x)
        model.log_weights.exp_()
        states.append({k: v.double() for k, v in model.state_dict().items() if v.numel()})
    a, b = states
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max().clamp_min(1e-300)) for k in a)


def flop(covariance: str, patches: int, features: int, components: int) -> float:
    """Floating-point operations that a step cannot do without."""
    product = 2.0 * patches * features * components
    needed = {"diagonal": 4.0, "spherical": 2.0, "von_mises_fisher": 2.0}
    needed["full"] = 1 + 1.5 * features  # first moments, triangular solves, second moments
    return needed[covariance] * product


def in_turn(runs: Mapping[str, Callable[[], object]], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each call, a list over the repeats, all timed in turn after one to warm up."""
    return timing.in_turn(runs, args.device, args.repeats)


def timings(args: argparse.Namespace) -> dict[str, float]:
    """Medians over the repeats, in milliseconds, rates and ratios."""
    x = clustered(args.patches, args.features).to(args.device)
    model = mixture(x, args, steps=3)
    runs = {"products": products(x, args.components), "step": lambda: model.step(x)}
    found: dict[str, float] = {}
    if args.surviving:
        dense = reduced(model, x, args.surviving)
        late = pruned(dense)
        found["late_difference"] = difference(late, dense, x)
        runs["late"] = lambda: late.step(x)
    times = in_turn(runs, args)
    return rates(times, args) | found


def rates(times: Mapping[str, list[float]], args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds, ratios and arithmetic rates of what was timed."""
    N, D, K = args.patches, args.features, args.components
    work = {"products": flop("diagonal", N, D, K), "step": flop(args.covariance, N, D, K)}
    work["late"] = flop(args.covariance, N, D, args.surviving or K)
    medians = {name: statistics.median(times[name]) for name in times}
    speed = {name: work[name] / medians[name] / 1e12 for name in times}
    result = {f"{name}_ms": 1e3 * medians[name] for name in times}
    result["ratio"] = ratio(times, "step", "products")
    if "late" in times:
        result["late_ratio"] = ratio(times, "late", "products")
        result["late_to_dense"] = ratio(times, "late", "step")
    result |= {f"{name}_tflops": speed[name] for name in times}
    result["matmul_fraction"] = speed["step"] / speed["products"]
    return result


def shown(value: object) -> str:
    """A value as the tables show it."""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or abs(value) >= 1:
        return f"{value:.2f}"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.1e}"


def table(result: Mapping[str, object]) -> str:
    """The result, one quantity a line."""
    width = max(map(len, result))
    return "\n".join(f"{name:<{width}}  {shown(value):>16}" for name, value in result.items())


def grid(rows: list[list[str]]) -> str:
    """Rows of cells in columns, the first flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]))
    return "\n".join(lines)


def device(name: str) -> torch.device:
    """The device of that name, which must be there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("cuda was asked for, PyTorch finds no CUDA device")
    return torch.device(name)


def environment(args: argparse.Namespace) -> dict[str, object]:
    """What the figures were measured on."""
    name = {"gpu": torch.cuda.get_device_name()} if args.device.type == "cuda" else {}
    return {"device": args.device.type, "threads": args.threads, "torch": torch.__version__} | name


def options(description: str) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks of the mixture have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--features", type=int, default=384, help="D, features of an embedding")
    parser.add_argument("--components", type=int, default=500, help="K, the truncation")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file to write the result to")
    return parser


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = options("Time and memory of one EM step.")
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--patches", type=int, default=12288, help="N, patches of the batch")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--covariance", choices=COVARIANCES, default="diagonal")
    parser.add_argument(
        "--surviving", type=int, help="M, also time a step with but M components left"
    )
    args = parser.parse_args()
    if args.surviving is not None and not 2 <= args.surviving <= args.components:
        parser.error(f"surviving must be from 2 to {args.components}, got {args.surviving}")
    return args


def main() -> None:
    """Measure, print the table, write the JSON."""
    args = parsed()
    torch.set_num_threads(args.threads)
    names = ("patches", "features", "components", "covariance", "surviving", "repeats")
    result: dict[str, object] = {name: getattr(args, name) for name in names}
    if args.surviving is None:
        del result["surviving"]
    result |= timings(args)
    size = StepSize(args.patches, args.features, args.components, args.covariance)
    result["peak_memory_mb"] = fresh_step_memory(size, args.device, args.threads)
    result["input_mb"] = args.patches * args.features * 4 / 1e6
    result |= environment(args)
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
