"""Command line: `python -m monai_dpmm COMMAND`, thin over the bundle's workflows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_dpmm import __version__
from monai_dpmm.bundle_folder import checked_settings, configs_dir, write_bundle
from monai_dpmm.errors import one_line_errors

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

__all__ = ["configs_dir", "main", "run_workflow"]

# the names of the configs of each workflow, from the overlays and overrides of the command line
_Plan = Callable[[list[str], dict[str, Any]], Iterator[list[str]]]

_EPILOG = """\
Each command is one of the bundle's workflows and can be run by MONAI as well, for example
  python -m monai.bundle run training --config_file configs/train.json --dataset_dir DIR
Any value of the configs can be set with -s, for example -s max_epochs=10 -s image_size=224.
"""
_COMPARE = "fit the DPMM and its baselines to the same embeddings: the paper's tables"
_HEALTHY = "the folder of healthy scans that the model was trained on"
_SCORE = "measure anomaly maps that any tool saved, one file an image, named like the images"
_FIGURES = "draw a paper's figures of a trained model on a labelled data set, as PDF and PNG"
_CHECK = "tell what a data set holds, and what is wrong with it (exit code 1)"
_BUNDLE = "write a trained model as a bundle of its own, folder and zip"


def run_workflow(names: Sequence[str], **overrides: Any) -> None:
    """Run a bundle workflow made of configs, with values overridden.

    Args:
        names: the bundle's configs by name, or paths of JSON files; the first is the base, the
            others overlay it.
        **overrides: ids and values, as on the command line of `monai.bundle run`.
    """
    from monai.bundle import ConfigWorkflow

    files = _config_files(names)
    kind = "infer" if names[0] == "inference" else "train"
    workflow = ConfigWorkflow(config_file=files, workflow_type=kind, **overrides)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def _config_files(names: Sequence[str]) -> list[str]:
    """Paths of configs by name; a path stays what it is."""
    return [n if n.endswith(".json") else str(configs_dir() / f"{n}.json") for n in names]


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the command."""
    one_line_errors()
    args = _parser().parse_args(argv)
    args.run(args)


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    """What the options set."""
    overrides = dict(args.set or [])
    overrides.setdefault("bundle_root", str(args.folder))
    if getattr(args, "dataset", None) is not None:
        overrides.setdefault("dataset_dir", str(args.dataset))
    return overrides


def _run_workflows(plan: _Plan, args: argparse.Namespace) -> None:
    """Run the workflows of a command one after another, or print what they would be."""
    overrides = _overrides(args)
    run = _print_config if args.dry_run else run_workflow
    for names in plan(list(args.config or []), overrides):
        run(names, **overrides)


def _print_config(names: Sequence[str], **overrides: Any) -> None:
    """The config that a workflow would run with, as JSON; references stay as they are."""
    print(json.dumps(_merged(names, overrides).config, indent=4))


def _merged(names: Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(_config_files(names))
    parser.update(dict(overrides))
    return parser


def _compare(args: argparse.Namespace) -> None:
    from monai_dpmm.comparison import compare
    from monai_dpmm.paper_tables import write_comparison
    from monai_dpmm.tables import as_text

    overrides = _overrides(args)
    parser = _merged(["train", *(args.config or [])], overrides)
    folder = Path(overrides["bundle_root"]) / "comparison"
    trials = compare(parser, folder, seeds=args.seeds, methods=args.methods)
    tables = write_comparison(trials, folder, args.reference)
    print("", *map(as_text, tables), f"Tables: {folder / 'tables.md'}", sep="\n\n")


def _score(args: argparse.Namespace) -> None:
    from monai_dpmm.report import metrics_table
    from monai_dpmm.scoring import measured_maps, write_scores

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


def _figures(args: argparse.Namespace) -> None:
    from monai_dpmm.publication import write_figures

    overrides = _overrides(args)
    names = ["train", *_own(overrides), *(args.config or []), "evaluate"]
    root = Path(overrides["bundle_root"])
    paths = write_figures(
        _merged(names, overrides),
        args.out or root / "figures",
        root / "comparison" / "comparison.json",
    )
    print("Figures:", *paths, sep="\n")


def _check(args: argparse.Namespace) -> None:
    from monai_dpmm.dataset_check import check_dataset

    found = check_dataset(args.dataset)
    print(found)
    if found.problems:
        raise SystemExit(1)


def _bundle(args: argparse.Namespace) -> None:
    folder = write_bundle(args.out, args.folder, data=args.data, metrics=args.metrics)
    print(f"Bundle: {folder}, and {folder.name}.zip beside it")


def _train(overlay: list[str], overrides: dict[str, Any]) -> Iterator[list[str]]:
    yield ["train", *overlay]


def _evaluate(overlay: list[str], overrides: dict[str, Any]) -> Iterator[list[str]]:
    yield ["train", *_own(overrides), *overlay, "evaluate"]


def _calibrate(overlay: list[str], overrides: dict[str, Any]) -> Iterator[list[str]]:
    yield ["train", *_own(overrides), *overlay, "calibrate"]


def _infer(overlay: list[str], overrides: dict[str, Any]) -> Iterator[list[str]]:
    yield ["inference", *_own(overrides), *overlay]


def _own(overrides: dict[str, Any]) -> list[str]:
    """The trained model's own settings, where there is one; they may come from a stranger."""
    settings = Path(overrides["bundle_root"]) / "models" / "model.json"
    if not settings.is_file():
        return []
    checked_settings(settings)
    return [str(settings)]


def _demo(overlay: list[str], overrides: dict[str, Any]) -> Iterator[list[str]]:
    yield from _train(["demo", *overlay], overrides)
    yield from _evaluate(["demo", *overlay], overrides)  # with the settings of the training


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="monai-dpmm",
        description="Unsupervised anomaly detection for medical volumes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    table = [
        ("demo", _demo, None, "train and evaluate on a simulated cohort of brains"),
        ("train", _train, "folder of healthy scans", "fit a model of normality"),
        ("calibrate", _calibrate, _HEALTHY, "thresholds in ml a scan, and the scan check"),
        ("evaluate", _evaluate, "data set with test/images and test/labels", "measure a model"),
        ("infer", _infer, "a scan, or a folder of scans", "write anomaly volumes"),
    ]
    for name, plan, dataset, help_ in table:
        command = commands.add_parser(name, help=help_, description=help_)
        command.set_defaults(run=partial(_run_workflows, plan))
        if dataset is not None:
            command.add_argument("dataset", type=Path, help=dataset)
        _add_options(command, default="demo" if name == "demo" else ".")
        command.add_argument(
            "--dry-run", action="store_true", help="print the config as JSON, and run nothing"
        )
    check = commands.add_parser("check", help=_CHECK, description=_CHECK)
    check.set_defaults(run=_check)
    check.add_argument("dataset", type=Path, help="folder of a data set")
    _add_compare(commands.add_parser("compare", help=_COMPARE, description=_COMPARE))
    _add_score(commands.add_parser("score", help=_SCORE, description=_SCORE))
    _add_figures(commands.add_parser("figures", help=_FIGURES, description=_FIGURES))
    _add_bundle(commands.add_parser("bundle", help=_BUNDLE, description=_BUNDLE))
    return parser


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_compare)
    command.add_argument("dataset", type=Path, help="data set with test/images and test/labels")
    _add_options(command, default=".")
    command.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    command.add_argument("--methods", nargs="+", metavar="NAME", help="default: all")
    command.add_argument(
        "--reference", default="dpmm", metavar="NAME", help="the others are tested against it"
    )


def _add_score(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_score)
    command.add_argument("maps", type=Path, help="folder of .npy, .npz, TIFF or NIfTI files")
    command.add_argument("dataset", type=Path, help="data set with test/images and test/labels")
    command.add_argument("--healthy", type=Path, help="maps of healthy images, for the thresholds")
    command.add_argument("--protocol", default="native", help="native (default), 224 or 448")
    command.add_argument(
        "--label-rule", default="positive", help="what of a mask is lesion: positive (default), 255"
    )
    command.add_argument("--bootstrap", type=int, default=1000, help="resamples, 0 for no interval")
    command.add_argument("--postfix", default="", help="what names of maps end with, _anomaly")
    command.add_argument(
        "-o", "--out", type=Path, default=Path("scores"), help="folder (default: %(default)s)"
    )


def _add_figures(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_figures)
    command.add_argument("dataset", type=Path, help="data set with test/images and test/labels")
    _add_options(command, default=".")
    command.add_argument("-o", "--out", type=Path, help="folder of the figures (default: figures)")


def _add_bundle(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_bundle)
    command.add_argument(
        "out",
        type=Path,
        nargs="?",
        default=Path("brain_mri_anomaly_dpmm"),
        help="new folder, whose name is the bundle's (default: %(default)s)",
    )
    command.add_argument("-f", "--folder", type=Path, default=Path(), help="where models/ lies")
    command.add_argument(
        "--data", metavar="TEXT", help="a sentence on the healthy scans, for the model card"
    )
    command.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE",
        help="metrics.json of an evaluation, for it",
    )


def _add_options(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "-f",
        "--folder",
        type=Path,
        default=Path(default),
        help="where models/ and output/ are read and written (default: %(default)s)",
    )
    command.add_argument(
        "-c", "--config", action="append", metavar="NAME", help="overlay config: its name or path"
    )
    command.add_argument(
        "-s", "--set", action="append", type=_override, metavar="KEY=VALUE", help="a config value"
    )


def _override(text: str) -> tuple[str, Any]:
    """Key and value of KEY=VALUE; the value is JSON where it can be read as such."""
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
