"""What each command does, from its parsed options; what a command needs is imported by it."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from monai_dpmm.app.release import write_bundle
from monai_dpmm.app.workflows import PLANS, applicable, merged_config, planned, run_workflow
from monai_dpmm.errors import printable

__all__ = [
    *("bundle", "check", "compare", "completion", "figures", "report", "score"),
    "workflows",
]


def workflows(args: Namespace) -> None:
    """Run the workflows of a command one after another, or print the configs they would have."""
    overlays, overrides = list(args.config or []), _overrides(args)
    plans = PLANS[args.command]
    checked = applicable([planned(plan, overlays, None) for plan in plans], overrides)
    for plan, values in zip(plans, checked, strict=True):
        names = planned(plan, overlays, _models(overrides))
        if args.dry_run:
            print(json.dumps(merged_config(names, values).config, indent=4))
        else:
            run_workflow(names, **values)


def compare(args: Namespace) -> None:
    """Fit all methods to the same embeddings, and write the tables."""
    from monai_dpmm.study.comparison import compare
    from monai_dpmm.study.paper_tables import write_comparison
    from monai_dpmm.study.tables import as_text

    parser, folder = _config(args), Path(_overrides(args)["bundle_root"]) / "comparison"
    trials = compare(parser, folder, seeds=args.seeds, methods=args.methods)
    tables = write_comparison(trials, folder, args.reference)
    print("", *map(as_text, tables), f"Tables: {folder / 'tables.md'}", sep="\n\n")


def score(args: Namespace) -> None:
    """Measure anomaly maps of any tool."""
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


def figures(args: Namespace) -> None:
    """Draw a paper's figures of a trained model."""
    from monai_dpmm.study.figures.publication import write_figures

    parser, root = _config(args), Path(_overrides(args)["bundle_root"])
    paths = write_figures(
        parser, args.out or root / "figures", root / "comparison" / "comparison.json"
    )
    print("Figures:", *paths, sep="\n")


def report(args: Namespace) -> None:
    """Write the report of results that lie on disk."""
    from monai_dpmm.report.saved_results import rewrite_report

    results = args.folder / "output" if args.results is None else args.results
    rewrite_report(args.dataset, results, args.out, axis=args.axis, slices=args.slices)


def check(args: Namespace) -> None:
    """Tell what a data set holds; exit code 1 where something is wrong with it."""
    from monai_dpmm.io.dataset_check import check_dataset

    found = check_dataset(args.dataset)
    print(printable(str(found)))
    if found.problems:
        raise SystemExit(1)


def bundle(args: Namespace) -> None:
    """Write a trained model as a bundle."""
    folder = write_bundle(args.out, args.folder, data=args.data, metrics=args.metrics)
    print(f"Bundle: {folder}, and {folder.name}.zip beside it")


def completion(args: Namespace) -> None:
    """Print the script that completes the commands in a shell."""
    from monai_dpmm.app.completion import completion_script

    print(completion_script(args.parser, args.shell))


def _overrides(args: Namespace) -> dict[str, Any]:
    """What the options set."""
    overrides = dict(args.set or [])
    overrides.setdefault("bundle_root", str(args.folder))
    if getattr(args, "dataset", None) is not None:
        overrides.setdefault("dataset_dir", str(args.dataset))
    return overrides


def _config(args: Namespace) -> Any:
    """The merged config of a command that makes its own use of it."""
    overlays, overrides = list(args.config or []), _overrides(args)
    (plan,) = PLANS[args.command]
    (values,) = applicable([planned(plan, overlays, None)], overrides)
    return merged_config(planned(plan, overlays, _models(overrides)), values)


def _models(overrides: dict[str, Any]) -> Path:
    """Folder of the trained model."""
    return Path(overrides.get("ckpt_dir", Path(overrides["bundle_root"]) / "models"))
