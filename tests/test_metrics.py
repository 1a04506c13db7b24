import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.data import MetaTensor
from sklearn.metrics import average_precision_score, roc_auc_score

from monai_dpmm import distributed
from monai_dpmm.metrics import AnomalyMetrics, dice_score, pixel_metrics
from monai_dpmm.page import report_page
from monai_dpmm.report import metrics_table
from monai_dpmm.streaming import MAX_BINS


class _Detector:
    false_positive_rates = torch.tensor([0.05, 0.1])
    thresholds = torch.tensor([0.7, 0.5])


def _items(count, seed=0, shift=0.5, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    items = []
    for i in range(count):
        label = (torch.rand(1, 6, 7, 8, generator=generator) > 0.9).float() * (i % 2)
        pred = (torch.rand(1, 6, 7, 8, generator=generator) + shift * label) * scale
        items.append({"pred": pred, "label": label})
    return items


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
def test_curves_agree_with_scikit_learn_at_any_scale(scale):
    items = _items(4, scale=scale)
    scores = torch.cat([item["pred"].flatten() for item in items])
    labels = torch.cat([item["label"].flatten() for item in items]) > 0
    metrics = pixel_metrics(scores, labels)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert metrics["aupr"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)


def test_negative_and_tied_scores():
    scores = torch.tensor([-3.0, -3, -1, -1, 5, 5, 5])
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 1]).bool()
    metrics = pixel_metrics(scores, labels)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert metrics["aupr"] == pytest.approx(average_precision_score(labels, scores))


def test_an_outlier_does_not_tie_the_others():
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 1e30])
    labels = torch.tensor([0, 1, 0, 1, 0]).bool()
    metrics = pixel_metrics(scores, labels)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert metrics["aupr"] == pytest.approx(average_precision_score(labels, scores))


def test_one_class_has_no_curve():
    for labels in (torch.zeros(5).bool(), torch.ones(5).bool()):
        assert all(math.isnan(value) for value in pixel_metrics(torch.rand(5), labels).values())


def test_dice():
    mask = torch.tensor([1, 1, 0, 0]).bool()
    assert dice_score(mask, mask) == 1
    assert dice_score(mask, ~mask) == 0
    assert dice_score(mask, torch.tensor([1, 0, 0, 0]).bool()) == pytest.approx(2 / 3)
    assert math.isnan(dice_score(mask & ~mask, mask & ~mask))


@pytest.mark.parametrize("exact", [False, True])
def test_pooled_metrics_do_not_depend_on_batches_and_order(exact):
    items = _items(6)
    one, other = (AnomalyMetrics(_Detector(), exact=exact) for _ in range(2))
    one.update(items)
    for item in reversed(items):
        other.update([item])
    assert one.compute() == pytest.approx(other.compute())
    scores = torch.cat([item["pred"].flatten() for item in items])
    labels = torch.cat([item["label"].flatten() for item in items]) > 0
    result = one.compute()
    assert result["pixel_auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert result["pixel_aupr"] == pytest.approx(average_precision_score(labels, scores))
    best = dice_score(scores > result["pixel_best_dice_threshold"], labels)
    assert result["pixel_best_dice"] == pytest.approx(best)
    assert best >= max(result["dice_at_fpr_0.05"], result["dice_at_fpr_0.1"])
    assert result["dice_at_fpr_0.05"] == pytest.approx(dice_score(scores > 0.7, labels))
    assert result["dice_at_fpr_0.1"] == pytest.approx(dice_score(scores > 0.5, labels))


def test_more_scores_than_bins_are_binned_unless_exact():
    generator = torch.Generator().manual_seed(0)
    items = []
    for _ in range(3):
        label = (torch.rand(1, 400, 400, generator=generator) > 0.99).float()
        pred = torch.randn(label.shape, generator=generator) + label
        items.append({"pred": pred, "label": label})
    assert sum(item["pred"].numel() for item in items) > MAX_BINS
    found = []
    for exact in (False, True):
        metrics = AnomalyMetrics(_Detector(), exact=exact)
        metrics.update(items)
        found.append((metrics.compute(), metrics.subjects))
    (binned, subjects), (whole, expected) = found
    assert 0 < binned["pixel_binning_error"] < 1e-4
    assert whole["pixel_binning_error"] == 0
    for name in ("pixel_auroc", "pixel_aupr"):
        assert abs(binned[name] - whole[name]) <= binned["pixel_binning_error"]
    assert binned["pixel_best_dice"] == pytest.approx(whole["pixel_best_dice"], abs=1e-4)
    assert binned["dice_at_fpr_0.05"] == whole["dice_at_fpr_0.05"]
    assert subjects == expected


def test_each_image_has_its_metrics():
    item = _items(2)[1]
    metrics = AnomalyMetrics(_Detector())
    metrics.update([{key: MetaTensor(value) for key, value in item.items()}])
    subject = metrics.subjects[0]
    scores, labels = item["pred"].flatten(), item["label"].flatten() > 0
    assert subject["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert subject["aupr"] == pytest.approx(average_precision_score(labels, scores))
    assert subject["dice_at_fpr_0.1"] == pytest.approx(dice_score(scores > 0.5, labels))
    assert subject["best_dice"] >= subject["dice_at_fpr_0.1"]


def _worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    torch.save(_evaluated(), folder / f"{rank}.pt")
    distributed.close_process_group()


def _evaluated():
    results = []
    for exact in (False, True):
        metrics = AnomalyMetrics(_Detector(), exact=exact)
        metrics.update(distributed.own_items(_items(5)))
        results.append(metrics.compute())
    return results


def test_two_processes_give_what_one_gives(tmp_path):
    torch.multiprocessing.spawn(_worker, (tmp_path,), nprocs=2)
    expected = _evaluated()
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [expected, expected]


def test_the_report_shows_all_of_them():
    metrics = AnomalyMetrics(_Detector())
    metrics.update(_items(4))
    table = metrics_table(metrics.compute(), [])
    shown = dict(line.split() for line in table.splitlines()[2:])
    assert float(shown["pixel_best_dice"]) == pytest.approx(
        metrics.compute()["pixel_best_dice"], abs=1e-4
    )
    assert shown["pixel_binning_error"] == "0.0000"
    report = {"metrics": metrics.compute(), "subjects": [], "training": None}
    page = report_page(report | {"settings": {}, "environment": {}})
    for title in ("Pixel best dice", "Pixel best dice threshold", "Pixel binning error"):
        assert f"<dt>{title}</dt>" in page


def test_image_metrics_separate_healthy_from_anomalous():
    metrics = AnomalyMetrics(_Detector())
    metrics.update(_items(8, shift=2.0))
    assert metrics.compute()["image_auroc"] == 1
    assert [subject["anomalous"] for subject in metrics.subjects] == [False, True] * 4
    assert math.isnan(metrics.subjects[0]["auroc"])
    assert metrics.subjects[1]["auroc"] > 0.9


def test_reset_forgets():
    metrics = AnomalyMetrics(_Detector())
    metrics.update(_items(2))
    metrics.reset()
    with pytest.raises(ValueError, match="at least one image with a label, got none"):
        metrics.compute()


def test_a_label_of_another_shape_is_refused():
    item = {"pred": torch.rand(1, 4, 4, 4), "label": torch.zeros(1, 4, 4, 5)}
    with pytest.raises(ValueError, match=r"image's shape \(4, 4, 4\), got \(4, 4, 5\)"):
        AnomalyMetrics(_Detector()).update([item])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_refused_by_name(value):
    item = _items(1)[0]
    item["pred"] = MetaTensor(item["pred"], meta={"filename_or_obj": "case_7.nii.gz"})
    item["pred"][0, 0, 0, 0] = value
    metrics = AnomalyMetrics(_Detector())
    with pytest.raises(ValueError, match=r"case_7\.nii\.gz: scores must be finite, got . NaN"):
        metrics.update([item])
    assert metrics.subjects == []


def test_in_an_ignite_engine_every_number_is_a_metric():
    from ignite.engine import Engine

    engine = Engine(lambda engine, batch: batch)
    metrics = AnomalyMetrics(_Detector())
    metrics["pixel_auroc"].attach(engine, "key")
    metrics.attach(engine, "all")
    engine.run([_items(2), _items(2, seed=1)])
    assert len(metrics.subjects) == 4
    assert engine.state.metrics["key"] == engine.state.metrics["pixel_auroc"]
    assert np.isfinite(engine.state.metrics["dice_at_fpr_0.05"])
