"""The mixture beside scikit-learn's, on the same embeddings and for as many passes over them.

Run it from a checkout with the package and its scikit-learn extra installed:

    python benchmarks/peers.py
    python benchmarks/peers.py --embeddings embeddings.pt --seeds 3 --json peers.json

The peers are BayesianGaussianMixture (the same prior, by variational inference) and
GaussianMixture, both diagonal, with our covariance floor and without a tolerance, so that they take
all passes. All start from equal weights (ours too, unless --initial-weights beta asks for the
paper's) and from patches, drawn at random or by k-means++, as means; the variances at the start are
each method's own. A pass of theirs is one step over all patches; ours takes one for each batch.
α starts at 2, where the Bayesian peer keeps it.

Each fit has a fresh process. Its time is that of `fit` alone; its memory is the highest resident
set during `fit`, sampled every 5 ms, less the one before it, when the embeddings are there, a tiny
fit has loaded the libraries and freed memory has been given back to the system (where its C library
can). It is read from /proc and left out on systems without it.

log_likelihood is the mean over held-out patches, in nats, of the mixture density with the fitted
weights, means and variances, computed for all by the same code in float64 (ours with its surviving
components only). own_score is what an estimator's `score` says: for the Bayesian peer that is no
likelihood but an expectation of the logarithm under its posterior.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn
import torch
from em_step import STATM, clustered, resident
from seeds import foreground
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

from monai_dpmm import DirichletProcessMixture

OURS = "DirichletProcessMixture"
FLOOR = 1e-6
SURVIVING = 1e-6  # weight above which a component counts, in all of them
PEER_STARTS = {"random": "random_from_data", "k-means++": "k-means++"}


def ours(components: int, passes: int, seed: int, args: argparse.Namespace):
    """The estimator of this package."""
    return DirichletProcessMixture(
        components,
        max_epochs=passes,
        batch_size=args.batch_size,
        initialization=args.initialization,
        initial_weights=args.initial_weights,
        variance_floor=FLOOR,
        weight_threshold=SURVIVING,
        random_state=seed,
    )


def peer(kind: type, **prior: object) -> Callable[..., object]:
    """Maker of one of scikit-learn's mixtures."""

    def make(components: int, passes: int, seed: int, args: argparse.Namespace):
        return kind(
            n_components=components,
            covariance_type="diag",
            tol=0.0,
            reg_covar=FLOOR,
            max_iter=passes,
            init_params=PEER_STARTS[args.initialization],
            random_state=seed,
            **prior,
        )

    return make


PRIOR = {
    "weight_concentration_prior_type": "dirichlet_process",
    "weight_concentration_prior": 2.0,
}
MAKERS = {
    OURS: ours,
    "BayesianGaussianMixture": peer(BayesianGaussianMixture, **PRIOR),
    "GaussianMixture": peer(GaussianMixture),
}


def measured(run: Callable[[], object]) -> tuple[float, float | None]:
    """Seconds of a call, and the memory that it takes at most, MB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    there, done = STATM.exists(), threading.Event()
    before = highest = resident() if there else 0

    def sample() -> None:
        nonlocal highest
        while there and not done.wait(5e-3):
            highest = max(highest, resident())

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    done.set()
    sampler.join()
    highest = max(highest, resident()) if there else 0
    return seconds, (highest - before) / 1e6 if there else None


def log_likelihood(fitted: object, x: np.ndarray) -> float:
    """Mean log-likelihood of patches under the fitted parameters in float64, nats."""
    is_ours = isinstance(fitted, DirichletProcessMixture)
    variance = fitted.mixture_.covariance.variance.numpy() if is_ours else fitted.covariances_
    keep = fitted.weights_ > (SURVIVING if is_ours else 0)
    density = GaussianMixture(n_components=int(keep.sum()), covariance_type="diag")
    density.weights_ = fitted.weights_[keep].astype(np.float64)
    density.means_ = fitted.means_[keep].astype(np.float64)
    density.precisions_cholesky_ = variance[keep].astype(np.float64) ** -0.5
    return float(density.score(x.astype(np.float64)))


def fit_of_this_process(args: argparse.Namespace) -> dict[str, float | None]:
    """What one fit takes and finds."""
    warnings.simplefilter("ignore", ConvergenceWarning)  # all passes are taken, as was asked
    train, held_out = (np.load(args.folder / f"{name}.npy") for name in ("train", "held_out"))
    make = MAKERS[args.method]
    make(2, 1, 0, args).fit(train[:256])
    model = make(args.components, args.passes, args.seed, args)
    seconds, peak = measured(lambda: model.fit(train))
    return {
        "seconds": seconds,
        "peak_memory_mb": peak,
        "log_likelihood": log_likelihood(model, held_out),
        "own_score": float(model.score(held_out)),
        "surviving": int((model.weights_ > SURVIVING).sum()),
    }


def fit_of_fresh_process(
    method: str, seed: int, folder: str, args: argparse.Namespace
) -> dict[str, float | None]:
    """The same, of a process with the threads that were asked for."""
    command = [sys.executable, __file__, *sys.argv[1:], "--method", method, "--seed", str(seed)]
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(threads, str(args.threads))
    result = subprocess.run(
        [*command, "--folder", folder], check=True, stdout=subprocess.PIPE, env=environment
    )
    return json.loads(result.stdout)


def stored(file: Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Patches of a file to fit and to hold out, (N, D) each; None where it does not part them."""
    content = np.load(file) if file.suffix == ".npy" else torch.load(file, weights_only=True)
    if isinstance(content, dict):
        return foreground(content["train"]), foreground(content["val"])
    return torch.as_tensor(content), None


def embeddings(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Patches to fit and to hold out, drawn at random from what there is."""
    generator = torch.Generator().manual_seed(0)
    if args.embeddings is None:
        train, held_out = clustered(args.patches + args.held_out, args.features), None
    else:
        train, held_out = stored(args.embeddings)
    train = train[torch.randperm(len(train), generator=generator)].float()
    if held_out is None:
        held_out, train = train[: args.held_out], train[args.held_out :]
    else:
        held_out = held_out[torch.randperm(len(held_out), generator=generator)].float()
    return train[: args.patches].numpy(), held_out[: args.held_out].numpy()


def medians(runs: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Each quantity's median over the seeds."""
    values = {name: [run[name] for run in runs] for name in runs[0]}
    return {n: None if None in v else float(statistics.median(v)) for n, v in values.items()}


def compared(methods: dict[str, dict[str, float | None]], name: str) -> dict[str, float | None]:
    """A peer's cost as a multiple of ours, and by how many nats ours is the likelier."""
    mine, theirs = methods[OURS], methods[name]
    known = mine["peak_memory_mb"]  # 0 where a fit is too short to be seen
    return {
        "seconds": theirs["seconds"] / mine["seconds"],
        "peak_memory_mb": theirs["peak_memory_mb"] / known if known else None,
        "log_likelihood_gain": mine["log_likelihood"] - theirs["log_likelihood"],
    }


def table(rows: dict[str, dict[str, float | None]]) -> str:
    """A line for each row, a column for each quantity."""
    columns = list(next(iter(rows.values())))
    lines = [" " * 24 + "".join(f"{column:>20}" for column in columns)]
    for name, row in rows.items():
        shown = ["-" if row[c] is None else f"{row[c]:.2f}" for c in columns]
        lines.append(f"{name:<24}" + "".join(f"{text:>20}" for text in shown))
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description="The mixture beside scikit-learn's.")
    parser.add_argument(
        "--embeddings", type=Path, help=".npy or .pt of patches (N, D), or of train and val"
    )
    parser.add_argument("--patches", type=int, default=49152, help="N to fit")
    parser.add_argument("--held-out", type=int, default=12288, help="patches to hold out")
    parser.add_argument("--features", type=int, default=384, help="D, where they are generated")
    parser.add_argument("--components", type=int, default=200, help="K, the truncation")
    parser.add_argument("--passes", type=int, default=10, help="over the patches")
    parser.add_argument("--batch-size", type=int, default=12288, help="of our steps")
    parser.add_argument("--initialization", choices=list(PEER_STARTS), default="random")
    parser.add_argument(
        "--initial-weights",
        choices=["uniform", "beta"],
        default="uniform",
        help="of ours; the peers know uniform ones only",
    )
    parser.add_argument("--seeds", type=int, default=1, help="fits of each, 0, 1, ...")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file to write the result to")
    for name, kind in (("method", str), ("seed", int), ("folder", Path)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print the tables, write the JSON."""
    args = parsed()
    if args.method is not None:
        print(json.dumps(fit_of_this_process(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        train, held_out = embeddings(args)
        np.save(Path(folder) / "train.npy", train)
        np.save(Path(folder) / "held_out.npy", held_out)
        runs = {
            name: [fit_of_fresh_process(name, s, folder, args) for s in range(args.seeds)]
            for name in MAKERS
        }
    methods = {name: medians(each) for name, each in runs.items()}
    ratios = {name: compared(methods, name) for name in MAKERS if name != OURS}
    names = ("components", "passes", "batch_size", "initialization", "initial_weights")
    names += ("seeds", "threads")
    result = {"embeddings": str(args.embeddings.name) if args.embeddings else "generated"}
    result |= {name: getattr(args, name) for name in names}
    result |= {"patches": len(train), "features": train.shape[1], "held_out": len(held_out)}
    result |= {"methods": methods, "ratios": ratios, "runs": runs}
    result |= {"torch": torch.__version__, "scikit-learn": sklearn.__version__}
    print(f"N = {len(train)}, D = {train.shape[1]}, K = {args.components}, {args.passes} passes\n")
    print(
        table(methods), "\n\nof ours (log-likelihood: ours minus theirs)\n", table(ratios), sep="\n"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
