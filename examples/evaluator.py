"""`AnomalyInferer` in MONAI's SupervisedEvaluator, with MONAI's handlers and metrics beside ours.

The trained model comes as a bundle, so that preprocessing and settings are its own:

    python -m monai_dpmm bundle brain_mri_anomaly_dpmm -f demo
    python examples/evaluator.py brain_mri_anomaly_dpmm demo/data/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from monai.bundle import load_bundle_config
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, MetricsSaver, StatsHandler, from_engine
from monai.transforms import Compose, CopyItemsd, Invertd

from monai_dpmm import AnomalyInferer, AnomalyMetrics, LoadLabeld, ThresholdAnomalyd, datalist

METRICS = ["pixel_auroc", "pixel_aupr", "mean_dice_at_fpr_0.01", "mean_dice"]


def main() -> None:
    """Measure a trained bundle on labelled scans, print the metrics and write them as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="folder of a trained bundle")
    parser.add_argument("dataset", type=Path, help="with test/images and test/labels")
    parser.add_argument("--output", type=Path, default="output", help="folder of the CSV files")
    args = parser.parse_args()

    bundle = load_bundle_config(str(args.bundle), "inference.json")
    bundle["bundle_root"] = str(args.bundle)
    device, detector, preprocessing = (
        bundle.get_parsed_content(name) for name in ("device", "network", "preprocessing")
    )
    scans = Dataset(
        datalist(args.dataset, "test", labels=True), Compose([preprocessing, LoadLabeld()])
    )
    postprocessing = Compose(
        [
            CopyItemsd("pred", names="anomaly"),  # "pred" keeps the thresholds of the network
            Invertd("anomaly", transform=preprocessing, orig_keys="image"),  # the scan's own grid
            ThresholdAnomalyd("anomaly", false_positive_rate=0.01, output_keys="mask"),
        ]
    )
    metrics = AnomalyMetrics(detector, pred_key="anomaly")
    mean_dice = MeanDice(output_transform=from_engine(["mask", "label"]))
    evaluator = SupervisedEvaluator(
        device=device,
        val_data_loader=DataLoader(scans),
        network=detector,
        inferer=AnomalyInferer(bundle["slice_axis"], spacing_mm=bundle["slice_spacing_mm"]),
        postprocessing=postprocessing,
        key_val_metric={"pixel_auroc": metrics["pixel_auroc"]},
        additional_metrics={"lesions": metrics, "mean_dice": mean_dice},
        val_handlers=[
            StatsHandler(iteration_log=False),
            MetricsSaver(
                args.output,
                metrics=METRICS,
                metric_details="mean_dice",  # one line a scan
                batch_transform=lambda batch: [item["image"].meta for item in batch],
            ),
        ],
    )
    evaluator.run()
    for name in METRICS:
        print(f"{name}: {evaluator.state.metrics[name]:.3f}")


if __name__ == "__main__":
    main()
