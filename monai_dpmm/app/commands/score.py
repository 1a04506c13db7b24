"""`score`: the metrics of anomaly maps that any tool saved."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from monai_dpmm.app.options import LABELLED, Command, add_out

__all__ = ["COMMANDS"]


def _options(command: ArgumentParser) -> None:
    maps = "folder of .npy, .npz, TIFF or NIfTI files, named like the images"
    command.add_argument("maps", type=Path, metavar="MAPS", help=maps)
    command.add_argument("dataset", type=Path, metavar="DATASET", help=LABELLED)
    group = command.add_argument_group("measuring")
    group.add_argument(
        "--healthy", type=Path, metavar="DIR", help="maps of healthy images, for the thresholds"
    )
    group.add_argument("--protocol", default="native", help="native (default), 224 or 448")
    group.add_argument(
        "--label-rule", default="positive", help="what of a mask is lesion: positive (default), 255"
    )
    group.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="resamples, 0 for no interval"
    )
    group.add_argument("--postfix", default="", help="what names of maps end with, _anomaly")
    add_out(command, Path("scores"), "folder (default: %(default)s)")


def _run(args: Namespace) -> None:
    from monai_dpmm.report.report import metrics_table
    from monai_dpmm.study.scoring import measured_maps, write_scores

    metrics = measured_maps(
        args.maps,
        args.dataset,
        healthy=args.healthy,
        protocol=args.protocol,
        rule=args.label_rule,
        bootstrap=args.bootstrap,
        postfix=args.postfix,
    )
    folder = write_scores(args.out, metrics)
    numbers = {**metrics.compute(), "protocol": metrics.protocol}
    print(metrics_table(numbers, [], metrics.intervals))
    print(f"Scores: {folder / 'metrics.json'}, per image {folder / 'images.csv'}")


COMMANDS = [
    Command("score", "measure anomaly maps that any tool saved, one file an image", _options, _run)
]
