"""Time of a backbone by precision and runtime, against its matrix products.

    python benchmarks/backbone.py
    python benchmarks/backbone.py --ways float32 bfloat16 compile onnx openvino --json backbone.json
    python benchmarks/backbone.py --device cuda --ways bfloat16 float16 compile --batch 1 8 64

Weights are random, which does not change the time. All ways run in turn; their time over that of
float32 in PyTorch is the median over the turns, and "error" is the largest difference of an
embedding of unit norm from float32's. Of a vision transformer, "products" are its matrix products
alone, of the same shapes, in float32 or bfloat16: patches, and of every block queries, keys and
values, attention, projection and MLP. On CUDA milliseconds an image are printed, too; on the CPU
processor time is measured, since other work has its say in the time on the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from em_step import grid
from timing import available_device, wait
from torch import Tensor, nn
from torch.nn import functional as F
from workload import stand_in_detector

PRECISIONS = ("float32", "bfloat16", "float16")
WAYS = (
    *(*PRECISIONS, "compile", "compile-bfloat16", "onnx", "openvino"),
    *("products", "products-bfloat16"),
)
Run = Callable[[Tensor], Tensor]


def products(backbone: Any, images: Tensor, dtype: torch.dtype) -> Run:
    """The matrix products of a vision transformer of `transformers`, to call."""
    model = backbone.network.model
    width, blocks = model.config.hidden_size, len(model.encoder.layer)
    heads, side = model.config.num_attention_heads, model.config.patch_size
    batch, tokens = len(images), 1 + images.shape[2] * images.shape[3] // side**2
    at: Any = {"device": images.device, "dtype": dtype}
    pixels = torch.rand(batch * tokens, 3 * side**2, **at)
    x, hidden = (torch.rand(batch * tokens, n * width, **at) for n in (1, 4))
    into = torch.rand(3 * side**2, width, **at)
    three, one, up = (torch.rand(width, n * width, **at) for n in (3, 1, 4))
    q = torch.rand(batch * heads, tokens, width // heads, **at)
    scores = torch.rand(batch * heads, tokens, tokens, **at)

    def run(_: Tensor) -> Tensor:
        found = pixels @ into
        for _ in range(blocks):
            found = x @ three
            found = q @ q.mT
            found = scores @ q
            found = x @ one
            found = x @ up
            found = hidden @ up.T
        return found

    return run


def exported(backbone: nn.Module, images: Tensor, folder: Path) -> Path:
    """File of the backbone as ONNX, at the shape of the images."""
    file = folder / "backbone.onnx"
    with torch.no_grad():
        torch.onnx.export(backbone, (images,), file, dynamo=True, verbose=False)
    return file


def onnx(file: Path, threads: int) -> Run:
    """The backbone in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def openvino(file: Path, threads: int) -> Run:
    """The backbone in OpenVINO on the CPU, in float32."""
    from openvino import Core

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = Core().compile_model(file, "CPU", options)
    return lambda images: torch.from_numpy(model(images.numpy())[0])


def run_of(way: str, backbone: Any, images: Tensor, threads: int, folder: Path) -> Run:
    """The backbone in one of the ways."""
    kind, _, fewer = way.partition("-")
    if kind == "products":
        return products(backbone, images, torch.bfloat16 if fewer else torch.float32)
    if kind in ("compile", *PRECISIONS):
        called = torch.compile(backbone) if kind == "compile" else backbone
        precision = fewer or ("float32" if kind == "compile" else kind)

        def run(images: Tensor) -> Tensor:
            backbone.precision = precision
            try:
                return called(images)
            finally:
                backbone.precision = "float32"

        return run
    file = exported(backbone, images, folder)
    return {"onnx": onnx, "openvino": openvino}[way](file, threads)


def seconds(run: Run, images: Tensor) -> float:
    """Processor time of a call on the CPU, time on the clock of one on CUDA."""
    clock = time.process_time if images.device.type == "cpu" else time.perf_counter
    wait(images.device)
    start = clock()
    run(images)
    wait(images.device)
    return clock() - start


@torch.no_grad()
def measured(batch: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Ratio to float32, error and milliseconds an image of every way, at one batch."""
    backbone = stand_in_detector(args.backbone, 10, args.image_size).backbone.to(args.device)
    images = torch.randn(batch, 3, args.image_size, args.image_size, device=args.device)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ways = dict.fromkeys(["float32", *args.ways])
        runs = {w: run_of(w, backbone, images, args.threads, Path(folder)) for w in ways}
        expected = F.normalize(backbone(images), dim=1)
        errors = {}
        for way, run in runs.items():
            result = run(images)  # which warms up, too
            if not way.startswith("products"):
                errors[way] = float((F.normalize(result.float(), dim=1) - expected).abs().max())
        turns = [{w: seconds(run, images) for w, run in runs.items()} for _ in range(args.repeats)]
    for way in runs:
        found[way] = {
            "ratio": statistics.median(turn[way] / turn["float32"] for turn in turns),
            "error": errors.get(way, 0.0),
            "ms": 1e3 * statistics.median(turn[way] for turn in turns) / batch,
        }
    return found


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["products", "bfloat16"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.device = available_device(args.device)
    torch.set_num_threads(args.threads)
    result = {str(batch): measured(batch, args) for batch in args.batch}
    on_gpu = args.device.type == "cuda"
    print(torch.cuda.get_device_name() if on_gpu else f"CPU, {args.threads} threads")
    rows = [["batch, way", "time / float32", "error", *(["ms an image"] if on_gpu else [])]]
    for batch, ways in result.items():
        for way, each in ways.items():
            shown = [f"{each['ratio']:.2f}", f"{each['error']:.1e}"]
            rows.append([f"{batch}, {way}", *shown, *([f"{each['ms']:.2f}"] if on_gpu else [])])
    print(grid(rows))
    if args.json:
        names = {"backbone": args.backbone, "image_size": args.image_size}
        args.json.write_text(json.dumps(names | {"batches": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
