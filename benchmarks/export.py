"""The detector as TorchScript and ONNX: size, agreement with the module, time against it.

    python benchmarks/export.py --threads 1 [--backbones dinov2_vits14 efficientnet_lite0]
        [--image-size 448 320] [--components 500 600] [--side 240] [--slices 2] [--repeats 5]
        [--json FILE]

Files are made by the functions behind MONAI's `ckpt_export` and `onnx_export`, from a trace; ONNX
puts weights into a second file beside the first, which is counted with it. The zip is that of
`python -m monai_dpmm bundle`. DINOv2's weights are random, which changes no time and no
size; EfficientNet-Lite0's are pretrained (extra `demo`). The mixture starts at patches of other
slices, and all of its components survive. ONNX needs the extra `export`.

The same slices go through all three in turn, by as many threads each; a ratio is the median over
the turns of the time against the module's. The difference is the largest of the maps' pixels.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from torch import Tensor
from torch.nn import functional as F

from monai_dpmm import DPMM, AnomalyDetector, create_backbone, load_backbone, write_bundle

WARM_UP = 3  # TorchScript looks at its first runs before it optimises


def slices_of(count: int, side: int, seed: int) -> Tensor:
    """Smooth random slices in [0, 1]: (S, 1, H, W)."""
    coarse = torch.rand(count, 1, 12, 12, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)


def detector_of(
    architecture: str, image_size: int, components: int, healthy: Tensor
) -> AnomalyDetector:
    """A detector whose mixture starts at patches of the healthy slices."""
    if architecture == "efficientnet_lite0":
        backbone = load_backbone(architecture)
    else:
        backbone = create_backbone(architecture)
        generator = torch.Generator().manual_seed(0)
        backbone.load_state_dict(
            {
                k: 0.02 * torch.randn(v.shape, generator=generator)
                for k, v in backbone.state_dict().items()
            }
        )
    detector = AnomalyDetector(
        backbone, DPMM(backbone.embedding_dim, components), image_size=image_size
    ).eval()
    detector.mixture.initialize(detector.embed(healthy).flatten(0, -2))
    return detector


def sizes(
    detector: AnomalyDetector, architecture: str, slices: Tensor, folder: Path
) -> dict[str, float]:
    """Write all files; MB of each."""
    (folder / "models").mkdir(parents=True)
    torch.save(detector.state_dict(), folder / "models/model.pt")
    settings = {
        "backbone_architecture": architecture,
        "image_size": detector.image_size,
        "components": detector.mixture.components,
    }
    (folder / "models/model.json").write_text(json.dumps(settings))
    write_bundle(folder / "bundle", folder)
    files = {
        "model.pt": folder / "models/model.pt",
        "bundle.zip": folder / "bundle.zip",
        "model.ts": folder / "model.ts",
        "model.onnx": folder / "model.onnx",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"inputs": [slices], "use_trace": True}
        convert_to_torchscript(detector, filename_or_obj=str(files["model.ts"]), **options)
        convert_to_onnx(detector, filename=str(files["model.onnx"]), verbose=False, **options)
    return {
        name: sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*")) / 1e6
        for name, file in files.items()
    }


def ways(
    detector: AnomalyDetector, folder: Path, threads: int
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The module and its exports, each as a function from slices to maps."""
    exported = torch.jit.load(folder / "model.ts").eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return {
        "module": detector,
        "TorchScript": exported,
        "ONNX": lambda slices: torch.from_numpy(session.run(None, {name: slices.numpy()})[0]),
    }


@torch.no_grad()
def compared(
    runs: dict[str, Callable[[Tensor], Tensor]], slices: Tensor, repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds a slice, ratio and largest difference to the module of each way, timed in turn."""
    maps = {name: run(slices) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(WARM_UP + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run(slices)
            if turn >= WARM_UP:
                times[name].append((time.perf_counter() - start) / len(slices))
    return {
        name: {
            "seconds": statistics.median(times[name]),
            "ratio": statistics.median(
                a / b for a, b in zip(times[name], times["module"], strict=True)
            ),
            "difference": float((maps[name] - maps["module"]).abs().max()),
        }
        for name in runs
    }


def measured(args: argparse.Namespace, architecture: str, image_size: int, components: int) -> dict:
    """All figures of one backbone."""
    slices = slices_of(args.slices, args.side, seed=1)
    detector = detector_of(
        architecture, image_size, components, slices_of(args.slices, args.side, seed=0)
    )
    with tempfile.TemporaryDirectory() as folder:
        megabytes = sizes(detector, architecture, slices, Path(folder))
        found = compared(ways(detector, Path(folder), args.threads), slices, args.repeats)
    largest = float(detector(slices).max())
    options = {"image_size": image_size, "components": components, "largest_score": largest}
    return {"backbone": architecture, **options, "megabytes": megabytes, "ways": found}


def parsed() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    backbones = ["dinov2_vits14", "efficientnet_lite0"]
    parser.add_argument("--backbones", nargs="+", default=backbones)
    parser.add_argument("--image-size", nargs="+", type=int, default=[448, 320])
    parser.add_argument("--components", nargs="+", type=int, default=[500, 600])
    parser.add_argument("--side", type=int, default=240, help="pixels of a slice's sides")
    parser.add_argument("--slices", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file to write the result to")
    return parser.parse_args()


def main() -> None:
    """Measure, print the tables, write the JSON."""
    args = parsed()
    torch.set_num_threads(args.threads)
    sets = zip(args.backbones, args.image_size, args.components, strict=True)
    results = [measured(args, *one) for one in sets]
    print(
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {args.threads} threads"
    )
    for result in results:
        print(
            f"\n{result['backbone']}, {result['image_size']} px, {result['components']} components"
        )
        print("MB: " + ", ".join(f"{name} {mb:.1f}" for name, mb in result["megabytes"].items()))
        print(f"largest score {result['largest_score']:.3f}")
        print(f"{'':<12}{'s a slice':>10}{'ratio':>8}{'difference':>12}")
        for name, row in result["ways"].items():
            figures = f"{row['seconds']:>10.3f}{row['ratio']:>8.2f}{row['difference']:>12.1e}"
            print(f"{name:<12}{figures}")
    if args.json:
        args.json.write_text(
            json.dumps({"threads": args.threads, "results": results}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
