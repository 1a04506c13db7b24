"""How many components survive, and what they are worth, at truncations from 100 to 2,000.

    python benchmarks/truncation.py lgg_flair -c examples/lgg_flair.json --seeds 5

Starts are "paper", the paper's mixture whatever the config has; "sticks", the config's mixture with
weights that start by sticks v ~ Beta(1, α), as the paper's do; and "equal", with weights that start
equal. Quality is the AUPR over the body's pixels of maps by the cosine score, smoothed and less the
baseline, on the slices of the validation patients, by which one may choose, and on those of the
test: mean and lowest to highest of the seeds. Each fit is written to --json as soon as it is done,
and one that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_dpmm.app.options import add_settings, config
from monai_dpmm.io.datalist import data_root
from monai_dpmm.io.layouts import child
from monai_dpmm.metrics.score_histogram import ScoreHistogram
from monai_dpmm.network.geometry import upsample_scores
from monai_dpmm.study.embedded_dataset import EmbeddedDataset, embedded_dataset
from monai_dpmm.study.methods import PAPER
from monai_dpmm.study.models.mixture import MixtureModel
from monai_dpmm.study.refinement import refined

STICKS = {"initial_weights": "beta", "concentration": 2.0}
STARTS: dict[str, dict[str, Any]] = {
    "paper": dict(PAPER),
    "sticks": STICKS,
    "equal": {"initial_weights": "uniform"},
}
SPLITS = {"validation": ("val", "valid", "validation"), "test": ("test", "testing")}


def parsed(args: argparse.Namespace, dataset: Path) -> Any:
    """The training config with the command line's values, for a data set."""
    return config(argparse.Namespace(**vars(args) | {"dataset": dataset, "command": "compare"}))


def as_tests(dataset: Path, split: str, folder: Path) -> Path:
    """A data set whose test slices are those of a split, made of links."""
    root = Path(data_root(dataset))
    named = {"train": ("train",), "val": SPLITS["validation"], "test": SPLITS[split]}
    for name, names in named.items():
        source = child(root, *names)
        (folder / name).symlink_to(source.resolve())  # type: ignore[union-attr]
    return folder


def aupr(score: Callable[[Any], Tensor], dataset: EmbeddedDataset, args: Any, unit: float) -> float:
    """Over the body's pixels of every n-th test slice."""
    pixels = ScoreHistogram()
    for number, scan in enumerate(dataset.tests()):
        there = scan.foreground | scan.masks
        if number % args.every or not bool(there.any()):
            continue
        maps = upsample_scores(score(scan), scan.masks.shape[1:])[:, 0]
        both = refined(maps, scan, args.sigma)["both"]
        pixels.update((both[there] / unit).round(), scan.masks[there])
    return pixels.aupr().value


def fits(args: argparse.Namespace, done: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A record for every start, truncation and seed that is not there yet."""
    with tempfile.TemporaryDirectory() as folder:
        data = {}
        for split in SPLITS:
            own = Path(folder) / split
            own.mkdir()
            parser = parsed(args, as_tests(args.dataset, split, own))
            data[split] = embedded_dataset(parser)
        args.sigma = float(parser.get_parsed_content("smoothing_mm"))
        names = [
            k for k in parser["mixture"] if k not in ("_target_", "features", "planes", "seed")
        ]
        options = {name: parser.get_parsed_content(f"mixture#{name}") for name in names}
        options["place_grid"] = None
        train, val = (data["test"].healthy(section) for section in ("train", "val"))
        for seed in range(args.seeds):
            for truncation in args.truncations:
                for start in args.starts:
                    key = {"start": start, "truncation": truncation, "seed": seed}
                    if any(key.items() <= record.items() for record in done):
                        continue
                    own = options | STARTS[start] | {"components": truncation}
                    model = MixtureModel(train[0].shape[-1], own, epochs=args.epochs, seed=seed)
                    model.fit(train, val)
                    healthy = torch.cat([model.score(x[None], "cosine")[0][x.any(-1)] for x in val])
                    unit = 1e-3 * float(healthy.double().std())
                    measured = {
                        split: aupr(
                            lambda s, m=model: m.score(s.embeddings, "cosine"), one, args, unit
                        )
                        for split, one in data.items()
                    }
                    yield key | {"survive": model.prototypes, **measured}


def cell(values: list[float], digits: int) -> str:
    """Mean and range."""
    mean, low, high = (
        f"{v:.{digits}f}" for v in (statistics.mean(values), min(values), max(values))
    )
    return mean if low == high else f"{mean} ({low}-{high})"


def main() -> None:
    """Fit, measure, print a row for each start and truncation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, help="slices in BMAD's layout")
    add_settings(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--truncations", type=int, nargs="+", default=[100, 250, 500, 1000, 2000])
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--every", type=int, default=2, help="measure on every n-th slice")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, help="file of all records, read and added to")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    records = json.loads(args.json.read_text()) if args.json and args.json.is_file() else []
    for record in fits(args, records):
        records.append(record)
        if args.json:
            args.json.write_text(json.dumps(records, indent=1))
        print(record, flush=True)
    print("| start | truncation | survive | AUPR, validation | AUPR, test | seeds |")
    print("|---|---|---|---|---|---|")
    for start in args.starts:
        for truncation in args.truncations:
            rows = [r for r in records if (r["start"], r["truncation"]) == (start, truncation)]
            survive = cell([r["survive"] for r in rows], 0)
            shown = [cell([100 * r[split] for r in rows], 1) for split in SPLITS]
            print(f"| {start} | {truncation:,} | {survive} | {' | '.join(shown)} | {len(rows)} |")


if __name__ == "__main__":
    main()
