"""Time of scoring and upsampling as a share of DINOv2 ViT-S/14's forward pass.

    python benchmarks/scoring_share.py [--slices 4] [--repeats 5] [--size 240]
        [--place-grid 10 8 8] [--json FILE]

The weights are random: they do not change the time. The mixture has 500 components, 140 of which
survive, as the paper's do; with a place grid their weights depend on place. Medians over
interleaved repeats of one run.
"""

import argparse
import json

import torch
from workload import scoring_cost, stand_in_detector


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=240)
    parser.add_argument("--place-grid", type=int, nargs=3)
    parser.add_argument("--json")
    args = parser.parse_args()
    detector = stand_in_detector("dinov2_vits14", 500, 448, args.place_grid)
    slices = torch.rand(args.slices, 1, args.size, args.size)
    share = scoring_cost(detector, slices, torch.device("cpu"), args.repeats)["share"]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.slices} slices")
    print(f"scoring and upsampling / backbone forward: {100 * share:.2f} %")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"share": share, "threads": torch.get_num_threads()}, file)


if __name__ == "__main__":
    main()
