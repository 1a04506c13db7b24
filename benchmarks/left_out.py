"""Whether a calibration says what to expect of new healthy scans: held-back scans, and all of them.

    python -m monai_dpmm demo
    python benchmarks/left_out.py -f demo --dataset demo/data/demo -c demo

A model is trained. The threshold that leaves so many ml (of pictures: pixels of 10,000) of a
healthy scan is taken on the scans that were held back; on these and the training scans, each
scored by the model without it, as a training does; and on these and the training scans scored by
the model itself. Printed is what lies above each threshold in the healthy test scans, with the
interval of the mean that the calibration promised, and how many findings were promised and found.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, list_data_collate
from monai.engines import SupervisedEvaluator

from monai_dpmm import LeaveOneOut, PrepareEmbedded, StoredEmbeddings, datalist
from monai_dpmm.app.options import add_settings, config
from monai_dpmm.files import load_tensors
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.transforms.healthy_maps import HealthyFindings
from monai_dpmm.transforms.metatensors import plain
from monai_dpmm.transforms.operating_point import (
    FalsePositiveVolumes,
    mean_interval,
    voxel_ml,
)

PIXEL = 1e-4  # of a picture, whose unit is 10,000 pixels


class Scan(NamedTuple):
    """What lies above any threshold in a scan's foreground."""

    volumes: FalsePositiveVolumes
    findings: HealthyFindings


class Collected:
    """Handler that keeps what finished maps hold, a scan after another."""

    def __init__(self) -> None:
        self.scans: list[Scan] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Keep a scan."""
        for item in engine.state.output:
            anomaly, there = plain(item["pred_anomaly"]), plain(item["pred_component"]) > 0
            one = Scan(FalsePositiveVolumes(), HealthyFindings(500))
            picture = anomaly.ndim == 3
            ml = PIXEL if picture else voxel_ml(item["pred_anomaly"].affine)
            one.volumes.add(anomaly[there], ml)
            one.findings.add(*(x.movedim(0, -1) if picture else x[0] for x in (anomaly, there)), ml)
            self.scans.append(one)


class Workplace:
    """A trained model, and what makes finished maps with it."""

    def __init__(self, parser: Any) -> None:
        parser.get_parsed_content("train#trainer").run()
        names = ("network", "train#inferer", "preprocessing", "calibrate#postprocessing")
        self.network, self.inferer, self.preprocessing, self.maps = (
            parser.get_parsed_content(name) for name in names
        )
        self.network.load_state_dict(
            load_tensors(f"{parser.get_parsed_content('ckpt_dir')}/model.pt")
        )
        self.steps = parser.get_parsed_content("validate#preprocessing")
        self.train = parser.get_parsed_content("train#dataset")
        self.embedded = parser.get_parsed_content("validate#dataset")
        self.smallest = float(parser.get_parsed_content("min_lesion_ml"))

    def of(self, scans: Sequence[Mapping[str, Any]], left_out: bool = False) -> list[Scan]:
        """What lies in finished maps of scans; of training scans, by the model without each."""
        plain_items = [{"image": item["image"]} for item in scans]
        embeddings = StoredEmbeddings(plain_items, self.steps, self.embedded.cache_dir)
        items = [{"image": item["image"], "scan": i} for i, item in enumerate(scans)]
        loader = DataLoader(
            Dataset(items, self.preprocessing), batch_size=1, collate_fn=list_data_collate
        )
        collected = Collected()
        first = 0 if left_out else len(scans)
        SupervisedEvaluator(
            "cpu",
            loader,
            self.network,
            inferer=self.inferer,
            prepare_batch=PrepareEmbedded(embeddings),
            postprocessing=self.maps,
            val_handlers=[LeaveOneOut(self.network, self.train, first), collected],
        ).run()
        return collected.scans


def healthy_tests(dataset: Path) -> list[dict[str, Any]]:
    """Items of the test scans without a lesion."""
    load = LoadVolume(allow_constant=True)
    items = datalist(dataset, "test", labels=True)
    return [x for x in items if "label" not in x or not bool(load(x["label"]).any())]


def compared(
    calibration: Sequence[Scan], tests: Sequence[Scan], ml: float, smallest: float
) -> dict[str, Any]:
    """What a calibration promises at the threshold for so many ml, and what tests have there."""
    pool = FalsePositiveVolumes()
    for one in calibration:
        pool.merge(one.volumes)
    threshold = pool.threshold(ml)
    found = {}
    for name, scans in (("promised", calibration), ("found", tests)):
        volumes = [float(one.volumes.volumes(torch.tensor([threshold]))) for one in scans]
        counts = [len(one.findings.at(threshold, smallest)[0]) for one in scans]
        found |= {
            f"{name}_ml": statistics.mean(volumes),
            f"{name}_interval": mean_interval(volumes),
            f"{name}_findings": statistics.mean(counts),
        }
    return {"scans": len(calibration), "threshold": threshold, **found}


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True)
    add_settings(parser)
    parser.add_argument("--ml", type=float, default=2.0, help="of a healthy scan")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    place = Workplace(config(argparse.Namespace(**vars(args), command="train")))
    held_back = place.of(place.embedded.data)
    tests = place.of(healthy_tests(args.dataset))
    ways = {
        "held back": held_back,
        "and training scans left out": held_back + place.of(place.train.data, left_out=True),
        "and training scans as they are": held_back + place.of(place.train.data),
    }
    rows = {name: compared(s, tests, args.ml, place.smallest) for name, s in ways.items()}
    print(f"{len(tests)} healthy test scans; ml of a scan (95 % interval of the mean), findings")
    for name, row in rows.items():
        shown = row["promised_interval"]
        interval = "" if shown is None else f" ({shown[0]:.1f} to {shown[1]:.1f})"
        print(
            f"{name:32} {row['scans']:3} scans, promised {row['promised_ml']:.2f}{interval},"
            f" {row['promised_findings']:.1f}; found {row['found_ml']:.2f},"
            f" {row['found_findings']:.1f}"
        )
    if args.json is not None:
        args.json.write_text(json.dumps({"tests": len(tests), "ways": rows}, indent=1))


if __name__ == "__main__":
    main()
