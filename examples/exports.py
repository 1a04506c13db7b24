"""A bundle's network for other programs: a .pt2 program, and ONNX as a Triton model repository.

    python exports.py BUNDLE OUT [--size 240]

OUT gets `model.pt2`, for `torch.export.load`, and `triton/NAME` with `config.pbtxt` and
`1/model.onnx`, for `tritonserver --model-repository OUT/triton`. Both take slices (S, 1, H, W) in
[0, 1] of H = W = size, 1 to 64 of them, and give their maps (S, 1, H, W); of a model of several
directions they are of the first, without places. `monai_dpmm.predict` goes all the way.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.bundle import ConfigParser

TRITON = """name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: 64
input [{{ name: "slices", data_type: TYPE_FP32, dims: [1, {size}, {size}] }}]
output [{{ name: "maps", data_type: TYPE_FP32, dims: [1, {size}, {size}] }}]
dynamic_batching {{ }}
"""


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=240, help="pixels of a slice's sides")
    args = parser.parse_args()
    config = ConfigParser()
    config.read_config(args.bundle / "configs" / "inference.json")
    config["bundle_root"] = str(args.bundle.absolute())
    network = config.get_parsed_content("network_def").cpu().eval()
    name = args.bundle.absolute().name
    folder = args.out / "triton" / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    slices, count = torch.rand(2, 1, args.size, args.size), torch.export.Dim("S", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(network, (slices,), dynamic_shapes=({0: count},))
        torch.export.save(program, args.out / "model.pt2")
        torch.onnx.export(
            program,
            f=folder / "model.onnx",
            input_names=["slices"],
            output_names=["maps"],
            external_data=False,
        )
    (folder.parent / "config.pbtxt").write_text(TRITON.format(name=name, size=args.size))
    print(f"{args.out / 'model.pt2'} and {folder.parent}")


if __name__ == "__main__":
    main()
