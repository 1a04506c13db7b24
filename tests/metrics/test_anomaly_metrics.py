import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from monai.data import MetaTensor
from sklearn.metrics import average_precision_score, roc_auc_score

from monai_dpmm.engines import distributed
from monai_dpmm.metrics.anomaly_metrics import AnomalyMetrics, pixel_metrics
from monai_dpmm.metrics.bootstrap import drawn_counts
from monai_dpmm.metrics.image_metrics import dice_score
from monai_dpmm.metrics.score_histogram import MAX_BINS
from monai_dpmm.report.html import report_page
from monai_dpmm.report.report import metrics_table


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
    items = _items(5)
    for i, item in enumerate(items):
        item["patient"] = f"p{i // 2}"
    for exact in (False, True):
        metrics = AnomalyMetrics(_Detector(), exact=exact, bootstrap=40)
        metrics.update(distributed.own_items(items))
        results.append((metrics.compute(), metrics.intervals, metrics.froc))
    return results


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    torch.multiprocessing.spawn(_worker, (tmp_path,), nprocs=2)
    for expected, *found in zip(
        _evaluated(),
        *(torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)),
        strict=True,
    ):
        assert len(expected[1]) == 16
        for metrics, intervals, curve in found:
            assert metrics == expected[0]
            assert intervals == expected[1]
            assert all(map(torch.equal, curve, expected[2]))


@pytest.mark.parametrize("bootstrap", [0, 50])
def test_the_report_shows_all_of_them(bootstrap):
    metrics = AnomalyMetrics(_Detector(), bootstrap=bootstrap)
    metrics.update(_items(4))
    table = metrics_table(metrics.compute(), [], metrics.intervals)
    shown = dict(line.split(maxsplit=1) for line in table.splitlines()[2:])
    assert float(shown["pixel_best_dice"].split()[0]) == pytest.approx(
        metrics.compute()["pixel_best_dice"], abs=1e-4
    )
    assert shown["pixel_binning_error"].strip() == "0.0000"
    report = {"metrics": metrics.compute(), "subjects": [], "left_out": [], "training": None}
    report |= {"intervals": metrics.intervals, "settings": {}, "environment": {}}
    page = report_page(report)
    for title in ("Pixel best dice", "Pixel best dice threshold", "Pixel binning error"):
        assert f'<th scope="row">{title}</th>' in page
    if not bootstrap:
        assert "interval" not in page + table
        return
    low, high = metrics.intervals["pixel_aupro"]
    assert shown["pixel_aupro"].endswith(f"  [{low:.4f}, {high:.4f}]")
    assert f"<td>[{low:.4f}, {high:.4f}]</td>" in page


def test_image_metrics_separate_healthy_from_anomalous():
    metrics = AnomalyMetrics(_Detector())
    metrics.update(_items(8, shift=2.0))
    assert metrics.compute()["image_auroc"] == 1
    assert [subject["anomalous"] for subject in metrics.subjects] == [False, True] * 4
    assert math.isnan(metrics.subjects[0]["auroc"])
    assert metrics.subjects[1]["auroc"] > 0.9


@pytest.mark.parametrize("wrap", [bool, torch.tensor])
def test_an_image_known_to_be_anomalous_is_though_its_mask_is_empty(wrap):
    empty = torch.zeros(1, 4, 4)
    lesion = empty.clone()
    lesion[0, :2, :2] = 1
    scores = {"healthy": 0.1, "anomalous, empty mask": 0.8, "anomalous": 0.5}
    items = [
        {
            "pred": torch.full((1, 4, 4), score) + 0.01 * torch.rand(1, 4, 4),
            "label": lesion if name == "anomalous" else empty,
        }
        for name, score in scores.items()
    ]
    by_mask, known = AnomalyMetrics(_Detector()), AnomalyMetrics(_Detector())
    by_mask.update(items)
    known.update([{**item, "anomalous": wrap(i > 0)} for i, item in enumerate(items)])
    assert by_mask.compute()["image_auroc"] == 0.5  # one of two that it takes for healthy is above
    assert known.compute()["image_auroc"] == 1
    assert [subject["anomalous"] for subject in known.subjects] == [False, True, True]
    assert known.compute()["pixel_auroc"] == by_mask.compute()["pixel_auroc"]
    assert known.compute()["mean_best_dice"] == by_mask.compute()["mean_best_dice"]


def _pooled(items):
    scores = torch.cat([item["pred"].flatten() for item in items])
    return scores, torch.cat([item["label"].flatten() for item in items]) > 0


def test_intervals_are_those_of_resampled_images():
    """Every resample evaluated anew, with its images several times, gives the same interval."""
    items = _items(6, shift=0.2)
    metrics = AnomalyMetrics(_Detector(), bootstrap=30)
    metrics.update(items)
    result = metrics.compute()
    found = {}
    for weights in drawn_counts(6, 30).int().tolist():
        drawn = [item for item, n in zip(items, weights, strict=True) for _ in range(n)]
        again = AnomalyMetrics(_Detector())
        again.update(drawn)
        for name, value in again.compute().items():
            found.setdefault(name, []).append(value)
    assert metrics.intervals.keys() == result.keys() - {
        *("pixel_binning_error", "pixel_best_dice_threshold", "froc_sensitivity")
    }
    for name, interval in metrics.intervals.items():
        defined = [value for value in found[name] if not math.isnan(value)]
        assert interval == pytest.approx(np.quantile(defined, [0.025, 0.975]), abs=1e-5), name
        assert interval[0] <= result[name] <= interval[1], name


def test_patients_are_drawn_as_a_whole():
    """Slices of one patient that are all alike tell nothing new: as wide as with one slice each."""
    single, repeated = (AnomalyMetrics(_Detector(), bootstrap=50) for _ in range(2))
    for i, item in enumerate(_items(6)):
        single.update([{**item, "patient": i}])
        repeated.update([{**item, "patient": torch.tensor(i)}] * 4)
    single.compute()
    result = repeated.compute()
    for name, interval in single.intervals.items():
        assert repeated.intervals[name] == pytest.approx(interval), name
    assert result["patient_auroc"] == result["image_auroc"]
    assert repeated.subjects[4]["patient"] == "1"


def test_a_patients_score_is_the_highest_of_their_images():
    values = {"a": [0.1, 0.9], "b": [0.3, 0.2], "c": [0.8, 0.8]}  # a has one lesion, on its second
    metrics = AnomalyMetrics(_Detector())
    for patient, scores in values.items():
        for score in scores:
            label = torch.zeros(1, 4, 4)
            label[0, 0, 0] = float(score == 0.9)
            metrics.update(
                [{"pred": torch.full((1, 4, 4), score), "label": label, "patient": patient}]
            )
    assert metrics.compute()["patient_auroc"] == 1
    metrics.update([{"pred": torch.ones(1, 4, 4), "label": torch.zeros(1, 4, 4), "patient": "b"}])
    assert metrics.compute()["patient_auroc"] == 0.5


def test_one_patient_has_no_interval():
    metrics = AnomalyMetrics(_Detector(), bootstrap=20)
    metrics.update([{**item, "patient": "x"} for item in _items(3)])
    metrics.compute()
    assert metrics.intervals == {}


def test_means_over_images_are_those_of_images_with_a_lesion():
    metrics = AnomalyMetrics(_Detector())
    metrics.update(_items(4))
    result = metrics.compute()
    sick = [subject for subject in metrics.subjects if subject["anomalous"]]
    assert len(sick) == 2
    for name in ("best_dice", "dice_at_fpr_0.05", "dice_at_fpr_0.1"):
        expected = np.mean([subject[name] for subject in sick])
        assert result[f"mean_{name}"] == pytest.approx(expected)


def test_lesions_of_volumes_worked_by_hand():
    """Two lesions, of which the weaker is found at the lower threshold alone; a false alarm."""
    pred, label = torch.zeros(1, 9, 9, 9), torch.zeros(1, 9, 9, 9)
    label[0, 1:3, 1:3, 1:3] = label[0, 6:8, 6:8, 6:8] = 1
    pred[0, 1, 1, 1], pred[0, 6, 6, 6], pred[0, 4, 4, 4] = 0.9, 0.6, 0.8
    healthy = {"pred": torch.zeros(1, 9, 9, 9), "label": torch.zeros(1, 9, 9, 9)}
    metrics = AnomalyMetrics(_Detector())
    metrics.update([{"pred": pred, "label": label}, healthy])
    result = metrics.compute()
    assert result["lesion_sensitivity_at_fpr_0.05"] == 0.5
    assert result["lesion_sensitivity_at_fpr_0.1"] == 1
    assert result["false_positives_per_scan_at_fpr_0.1"] == 0.5
    assert metrics.froc.sensitivity.tolist() == [0.5, 1]
    assert metrics.froc.false_positives.tolist() == [0, 0.5]
    assert result["froc_sensitivity"] == pytest.approx((2 * 0.5 + 5) / 7)
    assert metrics.subjects[0]["lesions"] == 2
    assert metrics.subjects[0]["found_at_fpr_0.05"] == 1
    strict = AnomalyMetrics(_Detector(), lesion_iou=0.5)
    strict.update([{"pred": pred, "label": label}, healthy])
    result = strict.compute()
    assert result["lesion_sensitivity_at_fpr_0.1"] == 0
    assert result["false_positives_per_scan_at_fpr_0.1"] == 1.5
    assert strict.froc is None
    assert "froc_sensitivity" not in result


def test_aupro_of_images_worked_by_hand():
    """A region of one pixel and one of three count the same: found at 0 and at 1/4 alarms."""
    pred = torch.tensor([[[0.9, 0, 0.7], [0.1, 0.2, 0.7], [0.8, 0.3, 0.7]]])
    label = torch.tensor([[[1.0, 0, 1], [0, 0, 1], [0, 0, 1]]])
    metrics = AnomalyMetrics(_Detector())
    metrics.update([{"pred": pred, "label": label}])
    result = metrics.compute()
    # (0, 1/2), (1/5, 1/2), then straight up to (1/5, 1)
    expected = (0.2 * 0.5 + 0.1 * 1) / 0.3
    assert result["pixel_aupro"] == pytest.approx(expected, abs=1e-6)
    assert metrics.subjects[0]["aupro"] == pytest.approx(expected, abs=1e-6)
    assert "froc_sensitivity" not in result


def test_uncalibrated_thresholds_give_no_froc_curve():
    class _Uncalibrated(_Detector):
        thresholds = torch.tensor([math.nan, math.nan])

    metrics = AnomalyMetrics(_Uncalibrated())
    metrics.update(_items(2))
    assert "froc_sensitivity" not in metrics.compute()


@pytest.mark.parametrize("protocol", ["224", 224, "448"])
def test_a_protocol_resizes_map_and_mask(protocol):
    size = int(protocol)
    label = torch.zeros(1, 28, 56)
    label[:, 7:14, 14:28] = 255
    metrics = AnomalyMetrics(_Detector(), protocol=protocol)
    metrics.update([{"pred": label / 255, "label": label}])
    counted = metrics.pool.bins[:, 2:4].sum(0).tolist()
    assert counted == [size * size * 15 // 16, size * size // 16]
    result = metrics.compute()
    assert metrics.protocol == str(protocol)
    assert result["dice_at_fpr_0.1"] > 0.95


def test_a_protocol_for_images_refuses_volumes():
    item = {"pred": MetaTensor(torch.rand(1, 4, 4, 4), meta={"filename_or_obj": "v.nii"})}
    with pytest.raises(ValueError, match=r"v\.nii: protocol 224 is for 2D images, got a volume of"):
        AnomalyMetrics(_Detector(), protocol="224").update(
            [item | {"label": torch.zeros(1, 4, 4, 4)}]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "256"}, "protocol must be one of native, 224, 448, got '256'"),
        ({"bootstrap": -1}, "bootstrap must be a number of resamples or 0, got -1"),
        ({"lesion_iou": 2}, r"lesion_iou must lie in \[0, 1\], got 2"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        AnomalyMetrics(_Detector(), **options)


def test_the_engines_batch_names_the_patients():
    from ignite.engine import Engine

    engine = Engine(lambda engine, batch: [{k: i[k] for k in ("pred", "label")} for i in batch])
    metrics = AnomalyMetrics(_Detector())
    metrics.attach(engine, "all")
    named = [{**item, "patient": f"p{i}"} for i, item in enumerate(_items(3))]
    engine.run([named[:2], named[2:], _items(1)])
    assert [subject.get("patient") for subject in metrics.subjects] == ["p0", "p1", "p2", None]


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
