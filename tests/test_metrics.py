import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from monai_dpmm.metrics import AnomalyMetrics, dice_score, pixel_metrics


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


def test_one_class_has_no_curve():
    for labels in (torch.zeros(5).bool(), torch.ones(5).bool()):
        assert all(math.isnan(value) for value in pixel_metrics(torch.rand(5), labels).values())


def test_dice():
    mask = torch.tensor([1, 1, 0, 0]).bool()
    assert dice_score(mask, mask) == 1
    assert dice_score(mask, ~mask) == 0
    assert dice_score(mask, torch.tensor([1, 0, 0, 0]).bool()) == pytest.approx(2 / 3)
    assert math.isnan(dice_score(mask & ~mask, mask & ~mask))


def test_pooled_metrics_do_not_depend_on_batches_and_order():
    items = _items(6)
    one, other = AnomalyMetrics(_Detector()), AnomalyMetrics(_Detector())
    one.update(items)
    for item in reversed(items):
        other.update([item])
    assert one.compute() == pytest.approx(other.compute())
    scores = torch.cat([item["pred"].flatten() for item in items])
    labels = torch.cat([item["label"].flatten() for item in items]) > 0
    result = one.compute()
    assert result["pixel_auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert result["dice_at_fpr_0.05"] == pytest.approx(dice_score(scores > 0.7, labels))
    assert result["dice_at_fpr_0.1"] == pytest.approx(dice_score(scores > 0.5, labels))


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
