"""Time of scoring and upsampling as a share of DINOv2 ViT-S/14's forward pass.

    python benchmarks/scoring_share.py [--slices 4] [--repeats 5] [--size 240] [--json FILE]

The weights are random: they do not change the time. The mixture has 500 components, 140 of which
survive, as the paper's do. Medians over interleaved repeats of one run.
"""

import argparse
import json
import statistics
import time

import torch

from monai_dpmm import DPMM, AnomalyDetector, create_backbone
from monai_dpmm.geometry import prepare_slices, upsample_scores


def _detector() -> AnomalyDetector:
    backbone = create_backbone("dinov2_vits14")
    state = {k: 0.02 * torch.randn_like(v) for k, v in backbone.state_dict().items()}
    backbone.load_state_dict(state)
    mixture = DPMM(backbone.embedding_dim, 500)
    mixture.initialize(torch.nn.functional.normalize(torch.randn(12_288, 384), dim=1))
    mixture.log_weights[:140] = -torch.log(torch.tensor(140.0))
    mixture.log_weights[140:] = -torch.inf
    return AnomalyDetector(backbone, mixture)


def _seconds(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=240)
    parser.add_argument("--json")
    args = parser.parse_args()
    detector = _detector()
    slices = torch.rand(args.slices, 1, args.size, args.size)
    images = prepare_slices(slices, 448, 14)
    embeddings = detector.embed(slices)

    def score():
        return upsample_scores(detector.patch_scores(embeddings), slices.shape[-2:])

    forward, scoring = [], []
    for _ in range(args.repeats + 1):
        forward.append(_seconds(detector.backbone, images)[0])
        scoring.append(_seconds(score)[0])
    share = statistics.median(s / f for s, f in zip(scoring[1:], forward[1:], strict=True))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.slices} slices")
    print(f"scoring and upsampling / backbone forward: {100 * share:.2f} %")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"share": share, "threads": torch.get_num_threads()}, file)


if __name__ == "__main__":
    main()
