"""Page faults and processor time of embedding and training, with freed memory kept and without.

    python benchmarks/allocator.py
    python benchmarks/allocator.py --train DATASET -f FOLDER -c demo --json allocator.json

Each figure is of a fresh process, user and system time of all its threads; `keep_freed_memory` does
nothing where the environment has settings of glibc's allocator, so "as glibc has it" is the same
program with a setting that changes nothing. Embedding is of random weights, after a batch to warm
up; a training is a whole command, imports included, that keeps its embeddings nowhere that the
other one finds them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from em_step import grid
from workload import stand_in_detector

MODES = {"as glibc has it": {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}, "kept": {}}
BACKBONES = {"dinov2_vits14": 448, "efficientnet_lite0": 320, "efficientnet_lite0_multiscale": 160}
COLUMNS = ("faults", "user_ms", "system_ms")  # an image


def embedding(backbone: str, size: int, batch: int, repeats: int) -> dict[str, float]:
    """Page faults and milliseconds an image of embedding in this process."""
    torch.set_num_threads(1)
    detector = stand_in_detector(backbone, 10, size)
    slices = torch.rand(batch, 1, size, size)
    for _ in range(2):
        detector.embed(slices)
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(repeats):
        detector.embed(slices)
    after = resource.getrusage(resource.RUSAGE_SELF)
    count = repeats * batch
    return {
        "faults": (after.ru_minflt - before.ru_minflt) / count,
        "user_ms": 1e3 * (after.ru_utime - before.ru_utime) / count,
        "system_ms": 1e3 * (after.ru_stime - before.ru_stime) / count,
    }


def fresh(arguments: list[str], mode: str) -> str:
    """What a fresh process of a mode prints."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=own | MODES[mode]
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def training(arguments: list[str], mode: str) -> dict[str, float]:
    """Page faults, user and system seconds of a whole training in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        places = [f"{name}={folder}/{name}" for name in ("embedding_dir", "ckpt_dir", "output_dir")]
        options = [part for place in places for part in ("-s", place)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        fresh(["-m", "monai_dpmm", "train", *arguments, *options], mode)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "faults": after.ru_minflt - before.ru_minflt,
        "user_s": after.ru_utime - before.ru_utime,
        "system_s": after.ru_stime - before.ru_stime,
    }


def ratio(found: dict[str, dict[str, float]], unit: str) -> float:
    """User and system time with freed memory kept, over that without."""
    kept, before = (
        found[mode][f"user_{unit}"] + found[mode][f"system_{unit}"] for mode in reversed(MODES)
    )
    return kept / before


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="*", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--image-size", type=int, help="default: 448, 320 and 160")
    parser.add_argument("--batch", type=int, default=8, help="slices at the backbone at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--train", nargs=argparse.REMAINDER, help="what follows `train`; comes last"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        size = args.image_size or BACKBONES[args.one]
        print(json.dumps(embedding(args.one, size, args.batch, args.repeats)))
        return
    own = ["--batch", str(args.batch), "--repeats", str(args.repeats)]
    own += ["--image-size", str(args.image_size)] if args.image_size else []
    result: dict[str, Any] = {"torch": torch.__version__, "batch": args.batch, "backbones": {}}
    rows = [["an image", "page faults", "user ms", "system ms"]]
    for name in args.backbones:
        found = {m: json.loads(fresh([__file__, "--one", name, *own], m)) for m in MODES}
        result["backbones"][name] = found | {"ratio": ratio(found, "ms")}
        for mode, each in found.items():
            rows.append([f"{name}, {mode}", *(f"{each[key]:.1f}" for key in COLUMNS)])
        rows.append(["  user + system, kept / not", f"{ratio(found, 'ms'):.2f}", "", ""])
    print(grid(rows))
    if args.train:
        found = {mode: training(args.train, mode) for mode in MODES}
        result["training"] = found | {"ratio": ratio(found, "s")}
        for mode, each in found.items():
            print(
                f"training, {mode}: {each['faults']:,.0f} page faults,"
                f" {each['user_s']:.1f} s user, {each['system_s']:.1f} s system"
            )
        print(f"  user + system, kept / not: {ratio(found, 's'):.2f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
