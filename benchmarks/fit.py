"""Seconds of a whole fit of the paper's size: 7,500 images of 1,024 patches, 40 epochs.

    python benchmarks/fit.py --device cuda --json fit.json
    python benchmarks/fit.py --images 96 --epochs 3

Embeddings are unit-norm patches around prototypes, generated on the device that fits and kept
there (11.8 GB at the paper's size); the time to generate them does not count. Sizes of the
clusters fall as 1 / rank, and an image has patches of a few clusters only. As in training, each
epoch visits the images in a new random order, 12 a batch, and components that have vanished are
left out after it (`prune`). There is no data loader, no validation and no file: this is the time
of the mixture alone, with the gathering of the batches. On CUDA the host waits once an epoch.

log_likelihood is the mean over the epoch's batches, each before its step, in nats; surviving
components have a weight above 1e-6, active ones cost time in the next epoch. tflops is the
arithmetic of the active components over the epoch's time; peak_gb is what PyTorch's allocator held
at most on CUDA, embeddings included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from em_step import COVARIANCES, device, environment, flop, grid, options, wait
from torch import Tensor
from torch.nn import functional as F

from monai_dpmm.mixture.dpmm import DPMM

CLUSTERS_AN_IMAGE = 32
NOISE = 0.5  # norm of a patch's distance from its prototype, before it is scaled


def cohort(args: argparse.Namespace) -> Tensor:
    """Clustered unit-norm embeddings on the device: (images, patches, D)."""
    generator = torch.Generator(args.device).manual_seed(args.seed)
    at: dict[str, Any] = {"device": args.device, "generator": generator}
    centres = F.normalize(torch.randn(args.clusters, args.features, **at), dim=1)
    share = 1 / torch.arange(1, args.clusters + 1, device=args.device)
    images = torch.empty(args.images, args.patches, args.features, device=args.device)
    for image in images:
        few = torch.multinomial(share, min(CLUSTERS_AN_IMAGE, args.clusters), generator=generator)
        label = few[torch.multinomial(share[few], args.patches, True, generator=generator)]
        noise = torch.randn(args.patches, args.features, **at)
        patches = centres[label] + NOISE / args.features**0.5 * noise
        F.normalize(patches, dim=1, out=image)
    return images


def fitted(images: Tensor, args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """Fit a mixture; one dictionary of numbers for each epoch."""
    model = DPMM(args.features, args.components, component_kind=args.covariance, seed=args.seed)
    model.to(args.device)
    generator = torch.Generator().manual_seed(args.seed)
    for epoch in range(1, args.epochs + 1):
        active = len(model.active)
        start = time.perf_counter()
        order = torch.randperm(len(images), generator=generator).to(images.device)
        total, batches = 0.0, order.split(args.batch)
        for batch in batches:
            patches = images[batch].flatten(0, 1)
            if not model.fitted:
                model.initialize(patches)
            total = total + model.step(patches)
        model.prune()
        wait(args.device)
        elapsed = time.perf_counter() - start
        work = flop(args.covariance, images[..., 0].numel(), args.features, active)
        yield {
            "epoch": epoch,
            "seconds": elapsed,
            "step_ms": 1e3 * elapsed / len(batches),
            "log_likelihood": float(total) / len(batches),
            "surviving": int(model.num_surviving),
            "active": len(model.active),
            "tflops": work / elapsed / 1e12,
        }


def summary(epochs: list[dict[str, float]], args: argparse.Namespace) -> dict[str, Any]:
    """Totals of the fit."""
    total = sum(epoch["seconds"] for epoch in epochs)
    steps = args.epochs * -(-args.images // args.batch)
    result = {
        "seconds": total,
        "epoch_seconds": total / args.epochs,
        "step_ms": 1e3 * total / steps,
        "patches_per_second": args.epochs * args.images * args.patches / total,
        "data_gb": args.images * args.patches * args.features * 4 / 1e9,
    }
    if args.device.type == "cuda":
        result["peak_gb"] = torch.cuda.max_memory_allocated(args.device) / 1e9
    return result


HEAD = ("epoch", "seconds", "ms a step", "log-likelihood", "surviving", "active", "tflops")


def row(epoch: dict[str, float]) -> str:
    """A line of the table, in columns as wide as the head's."""
    formats = ("d", ".2f", ".2f", ".2f", "d", "d", ".3g")
    return line([format(v, form) for v, form in zip(epoch.values(), formats, strict=True)])


def line(cells: Sequence[str]) -> str:
    """Cells in columns as wide as the head's."""
    return "  ".join(f"{cell:>{len(name)}}" for cell, name in zip(cells, HEAD, strict=True))


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = options("Seconds of a whole fit.")
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--images", type=int, default=7500)
    parser.add_argument("--patches", type=int, default=1024, help="of an image")
    parser.add_argument("--batch", type=int, default=12, help="images in a batch")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--clusters", type=int, default=150, help="prototypes of the patches")
    parser.add_argument("--covariance", choices=COVARIANCES, default="diagonal")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Fit, print the table, write the JSON."""
    args = parsed()
    torch.set_num_threads(args.threads)
    names = ("images", "patches", "features", "components", "batch", "epochs", "clusters")
    result = {name: getattr(args, name) for name in (*names, "covariance", "seed")}
    images = cohort(args)
    wait(args.device)
    print(line(HEAD))
    epochs = []
    for epoch in fitted(images, args):
        print(row(epoch), flush=True)
        epochs.append(epoch)
    totals = summary(epochs, args)
    result |= totals | environment(args)
    print(f"\n{grid([[name, f'{value:,.2f}'] for name, value in totals.items()])}")
    if args.json:
        args.json.write_text(json.dumps(result | {"per_epoch": epochs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
