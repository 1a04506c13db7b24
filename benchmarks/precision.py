"""What products of ten or seven mantissa bits cost: nats of the densities, and other neighbours.

    python benchmarks/precision.py
    python benchmarks/precision.py --device cuda --json precision.json

Patches have unit norm and lie around 50 prototypes with a variance v of each feature, before they
are scaled. A mixture as at the start of EM has K patches as its means, two or three of each
prototype; every variance is v times a factor from 0.5 to 2 (one for a component, or for each of its
features; full: a rotation of these), and von Mises-Fisher's κ is 1/v times the factor. Other
patches are evaluated, with parameters that are exactly those of the float64 oracle, which takes
differences and never expands a square. So all that shows is the evaluation's own rounding, in three
kinds of products:

    float32     the package's own, `component_log_prob` and `score`
    tf32        operands of 10 mantissa bits, sums in float32: by the tensor cores on CUDA, by
                rounding to nearest on the CPU
    bfloat16    operands of 7 mantissa bits, sums in float32 (autocast would round the result to
                7 bits, too)

What is rounded are the operands of the products (diagonal, spherical, von Mises-Fisher, cosine) or
of the triangular solves (full), nothing else.

error is the largest absolute error over the patches of the log-density of their nearest component,
the one of highest density, in nats (for cosine: of the score, a number from 0 to 2). Those of far
components are larger and matter less; the JSON has them as error_all. changed is the share of
patches that another component is nearest to than in float64.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable

import torch
from em_step import COVARIANCES, device, environment, grid, options, shown
from torch import Tensor
from torch.nn import functional as F

from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.gaussian import LinearDensity
from monai_dpmm.mixture.precision import full_float32
from monai_dpmm.mixture.von_mises_fisher import log_bessel

MODELS = [*COVARIANCES, "cosine"]
LOG_2PI = math.log(2 * math.pi)
Rounding = Callable[[Tensor], Tensor]


def tf32(x: Tensor) -> Tensor:
    """The nearest float32 with 10 mantissa bits, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def bfloat16(x: Tensor) -> Tensor:
    """The nearest bfloat16, as float32."""
    return x.bfloat16().float()


def patches_and_means(variance: float, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Patches to evaluate (N, D) and others, the means (K, D)."""
    generator = torch.Generator().manual_seed(0)
    count, D = args.patches + args.components, args.features
    centres = F.normalize(torch.randn(args.clusters, D, generator=generator), dim=1)
    label = torch.randint(args.clusters, (count,), generator=generator)
    label[args.patches :] = torch.arange(args.components) % args.clusters
    noise = torch.randn(count, D, generator=generator)
    x = F.normalize(centres[label] + variance**0.5 * noise, dim=1)
    return x[: args.patches], x[args.patches :]


def mixture(means: Tensor, variance: float, covariance: str) -> DPMM:
    """A mixture with those means, and covariances around a variance."""
    K, D = means.shape
    model = DPMM(D, K, component_kind=covariance)
    model.initialize(means)
    model.offsets.copy_(means - model.origin)
    generator = torch.Generator().manual_seed(1)
    factor = 4 ** (torch.rand(K, D, generator=generator) - 0.5)
    if covariance == "diagonal":
        model.covariance.variance.copy_(variance * factor)
    elif covariance == "spherical":
        model.covariance.variance.copy_(variance * factor[:, 0])
    elif covariance == "von_mises_fisher":
        model.covariance.kappa.copy_(factor[:, 0] / variance)
    else:
        rotation = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
        for k in range(K):
            sigma = (rotation * (variance * factor[k].double())) @ rotation.T
            model.covariance.cholesky[k] = torch.linalg.cholesky(sigma)
    return model


def oracle(model: DPMM, x: Tensor, name: str) -> Tensor:
    """Log-densities, or cosines, in float64 from differences: (N, D) -> (N, K)."""
    x = x.double()
    offsets, origin = model.offsets.double(), model.origin.double()
    if name == "cosine":
        return F.normalize(x, dim=1) @ F.normalize(model.means.double(), dim=1).T
    if name == "von_mises_fisher":
        kappa = model.covariance.kappa.double()
        order = 0.5 * model.features - 1
        log_constant = -0.5 * model.features * LOG_2PI - log_bessel(order, kappa)[0]
        return kappa * (x @ F.normalize(offsets + origin, dim=1).T) + log_constant
    columns = [gaussian(model, k, x - origin - offsets[k]) for k in range(len(offsets))]
    return torch.stack(columns, dim=1)


def gaussian(model: DPMM, k: int, differences: Tensor) -> Tensor:
    """Log-density of a component in float64: (N, D) -> (N,)."""
    D = model.features
    if hasattr(model.covariance, "cholesky"):
        factor = model.covariance.cholesky[k].double()
        scaled = torch.linalg.solve_triangular(factor, differences.T, upper=False).T
        log_det = 2 * factor.diagonal().log().sum()
    else:
        variance = model.covariance.variance[k].double().expand(D)
        scaled, log_det = differences / variance.sqrt(), variance.log().sum()
    return -0.5 * (scaled.square().sum(1) + log_det + D * LOG_2PI)


def evaluated(model: DPMM, x: Tensor, name: str, rounding: Rounding) -> Tensor:
    """Log-densities, or cosines, by products of rounded operands: (N, D) -> (N, K)."""
    if name == "cosine":
        return rounding(F.normalize(x, dim=1)) @ rounding(F.normalize(model.means, dim=1)).T
    density = model.covariance.density(model.offsets)
    phi = model.covariance.expand(x - model.origin)
    if isinstance(density, LinearDensity):
        return density._replace(slope=rounding(density.slope)).log_prob(rounding(phi))
    result = torch.empty(len(x), model.components, device=x.device)
    for k in range(model.components):
        offsets = rounding(phi - model.offsets[k]).T
        factor = rounding(model.covariance.cholesky[k])
        solved = torch.linalg.solve_triangular(factor, offsets, upper=False)
        result[:, k] = density.log_norm[k] - 0.5 * solved.square().sum(0)
    return result


def in_tf32(model: DPMM, x: Tensor, name: str) -> Tensor:
    """The same by the tensor cores' own TF32 where there are any, else by rounding."""
    if x.device.type == "cpu":
        with full_float32():
            return evaluated(model, x, name, tf32)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        return evaluated(model, x, name, lambda operand: operand)
    finally:
        matmul.fp32_precision = before


def in_bfloat16(model: DPMM, x: Tensor, name: str) -> Tensor:
    """By rounding: products of bfloat16 are exact in float32."""
    with full_float32():
        return evaluated(model, x, name, bfloat16)


def in_float32(model: DPMM, x: Tensor, name: str) -> Tensor:
    """As the package does it."""
    if name != "cosine":
        return model.component_log_prob(x)
    with full_float32():
        return evaluated(model, x, name, lambda operand: operand)


PRECISIONS = {"float32": in_float32, "tf32": in_tf32, "bfloat16": in_bfloat16}


def errors(found: Tensor, expected: Tensor) -> dict[str, float]:
    """Largest errors, of the nearest component and of all, and the share of other neighbours."""
    highest, nearest = expected.max(dim=1)
    return {
        "error": float((found.double().max(dim=1).values - highest).abs().max()),
        "error_all": float((found.double() - expected).abs().max()),
        "changed": float((found.argmax(dim=1) != nearest).double().mean()),
    }


def measured(name: str, variance: float, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Errors of one model at one variance, for each precision."""
    x, means = patches_and_means(variance, args)
    model = mixture(means, variance, "spherical" if name == "cosine" else name).to(args.device)
    x = x.to(args.device)
    expected = oracle(model, x, name)
    return {kind: errors(run(model, x, name), expected) for kind, run in PRECISIONS.items()}


def table(result: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Errors and changed neighbours, a row for each model and precision."""
    rows = []
    for name, found in result.items():
        for kind in PRECISIONS:
            cells = [found[v][kind] for v in found]
            texts = [f"{shown(c['error'])} ({100 * c['changed']:.1f} %)" for c in cells]
            rows.append([f"{name}, {kind}", *texts])
    return grid([["variance", *next(iter(result.values()))], *rows])


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = options("Errors of log-densities and scores in float32, TF32 and bfloat16.")
    parser.set_defaults(components=128)
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--patches", type=int, default=2048, help="N, patches that are evaluated")
    parser.add_argument("--clusters", type=int, default=50, help="prototypes of the patches")
    parser.add_argument("--variances", nargs="+", default=["1e-2", "1e-3", "1e-4", "1e-5", "1e-6"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, write the JSON."""
    args = parsed()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    found = {
        name: {v: measured(name, float(v), args) for v in args.variances} for name in args.models
    }
    names = ("patches", "features", "components", "clusters")
    result = {name: getattr(args, name) for name in names} | environment(args)
    print("largest error of the nearest component's log-density, nats (of cosine: of the score),")
    print("and share of patches that another component is nearest to")
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(result | {"models": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
