"""`score`: the metrics of anomaly maps that any tool saved."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path

from monai_dpmm.app.config import check_values
from monai_dpmm.app.console import console
from monai_dpmm.app.options import (
    LABELLED,
    Command,
    add_out,
    add_pattern,
    require_paths,
    starting,
)
from monai_dpmm.files import require_writable

__all__ = ["COMMANDS"]


def _options(command: ArgumentParser) -> None:
    maps = "folder of .npy, .npz, TIFF or NIfTI files, named like the images"
    command.add_argument("maps", type=Path, metavar="MAPS", help=maps)
    command.add_argument("dataset", type=Path, metavar="DATASET", help=LABELLED)
    add_pattern(command)
    group = command.add_argument_group("measuring")
    group.add_argument(
        "--healthy", type=Path, metavar="DIR", help="maps of healthy images, for the thresholds"
    )
    group.add_argument(
        "--evaluation-size", metavar="SIZE", default="native", help="native (default), 224 or 448"
    )
    group.add_argument(
        "--lesion-label",
        metavar="LABEL",
        default="positive",
        help="what of a mask is lesion: positive (default), 255",
    )
    for old, new in (("--protocol", "evaluation_size"), ("--label-rule", "lesion_label")):
        group.add_argument(old, dest=new, default=SUPPRESS, help=SUPPRESS)  # of one earlier version
    group.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="resamples, 0 for no interval"
    )
    group.add_argument("--postfix", default="", help="what names of maps end with, _anomaly")
    add_out(command, Path("scores"), "folder (default: %(default)s)")


def _run(args: Namespace) -> None:
    names = ("evaluation_size", "lesion_label", "bootstrap")
    check_values({name: getattr(args, name) for name in names}, "the option")
    require_paths(args.maps, args.dataset, *([args.healthy] if args.healthy else []))
    require_writable(args.out)
    starting(args)
    with console():
        from monai_dpmm.report.report import metrics_table
        from monai_dpmm.study.scoring import measured_maps, write_scores

        metrics = measured_maps(
            args.maps,
            args.dataset,
            healthy=args.healthy,
            protocol=args.evaluation_size,
            rule=args.lesion_label,
            bootstrap=args.bootstrap,
            postfix=args.postfix,
            pattern=args.pattern,
        )
    folder = write_scores(args.out, metrics)
    numbers = {**metrics.compute(), "protocol": metrics.protocol}
    print(metrics_table(numbers, [], metrics.intervals))
    print(f"Scores: {folder / 'metrics.json'}, per image {folder / 'images.csv'}")


COMMANDS = [
    Command("score", "measure anomaly maps that any tool saved, one file an image", _options, _run)
]
