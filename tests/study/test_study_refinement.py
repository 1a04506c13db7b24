"""What each step does to the maps of a scan, and that only the body's pixels count."""

import pytest
import torch

from monai_dpmm.metrics.anomaly_metrics import pixel_metrics
from monai_dpmm.network.postprocessing import less_baseline, smoothed
from monai_dpmm.study.embedded_dataset import LabelledScan
from monai_dpmm.study.refinement import RESAMPLES, STEPS, RefinementMetrics, refined

SPACING = (3.0, 1.0, 1.0)


def scan(name, seed=0, *, lesion=True, group=None, matched=True):
    """Maps of two slices with noise, and a lesion that a lift of the whole scan hides."""
    generator = torch.Generator().manual_seed(seed)
    body = torch.zeros(2, 24, 24, dtype=torch.bool)
    body[:, 3:21, 3:21] = True
    mask = torch.zeros_like(body)
    mask[0, 8:14, 8:14] = lesion
    maps = torch.rand(body.shape, generator=generator) + 0.6 * mask + 0.5 * seed
    grids = torch.ones(2, 3, 3, 4)
    places = torch.full((2, 3, 3, 3), 0.5)
    about = (SPACING, group or name, matched)
    return maps * body, LabelledScan(name, grids, places, mask, body, *about)


def test_steps_are_those_of_a_workflow():
    maps, one = scan("a", 3)
    steps = refined(maps, one, 2.0)
    smooth = smoothed(maps, one.foreground, 2.0, SPACING)
    assert tuple(steps) == STEPS
    assert torch.equal(steps["raw"], maps)
    assert torch.equal(steps["smoothed"], smooth)
    assert torch.equal(steps["less baseline"], less_baseline(maps, one.foreground)[0])
    assert torch.equal(steps["both"], less_baseline(smooth, one.foreground)[0])


def test_a_scan_without_a_body_stays_and_does_not_count():
    maps, one = scan("a", lesion=False)
    nothing = one._replace(foreground=torch.zeros_like(one.foreground))
    assert all(torch.equal(step, maps) for step in refined(maps, nothing, 2.0).values())
    with_it, without = RefinementMetrics(2.0, 1e-4), RefinementMetrics(2.0, 1e-4)
    for metrics in (with_it, without):
        metrics.add(*scan("b", 1))
        metrics.add(*scan("c", 2, lesion=False))
    with_it.add(maps, nothing)
    assert with_it.compute() == without.compute()


def test_pixels_are_those_of_the_body():
    metrics, scores, lesions = RefinementMetrics(2.0, 1e-4), [], []
    for seed in range(3):
        maps, one = scan(f"s{seed}", seed)
        metrics.add(maps, one)
        scores.append(maps[one.foreground])
        lesions.append(one.masks[one.foreground])
    found = metrics.compute()
    expected = pixel_metrics(torch.cat(scores), torch.cat(lesions))
    assert {k: found["raw"][k] for k in expected} == pytest.approx(expected, abs=1e-4)
    # smoothing finds the lesion, and the baseline takes off what hides it in other scans
    auprs = [found[step]["aupr"] for step in STEPS]
    assert auprs[3] > max(auprs[1:3]) > auprs[0]


def test_a_lesion_outside_the_body_is_a_lesion_missed():
    maps, one = scan("a")
    missed = one._replace(foreground=one.foreground & ~one.masks)
    metrics = RefinementMetrics(0.0, 1e-4)
    metrics.add(torch.where(missed.foreground, maps + 1, 0), missed)
    assert metrics.compute()["raw"]["auroc"] == 0


def test_patients_are_drawn_and_slices_ranked():
    metrics = RefinementMetrics(2.0, 1e-4)
    for seed in range(4):
        metrics.add(*scan(f"s{seed}", 0, lesion=seed < 2, group=f"p{seed // 2}", matched=seed > 0))
    found = metrics.compute()["both"]
    assert len(found["resampled"]) == RESAMPLES
    # two patients, of which one has all lesions: without it there is no curve
    assert 0.1 < found["resampled"].count(None) / RESAMPLES < 0.4
    assert found["image_auroc"] == found["matched_auroc"] == 1
    everything = RefinementMetrics(2.0, 1e-4)
    everything.add(*scan("a"))
    everything.add(*scan("b", 1, lesion=False))
    assert everything.compute()["both"]["matched_auroc"] is None


def test_scores_in_multiples_of_a_unit_are_as_good():
    fine, coarse = RefinementMetrics(2.0, 1e-7), RefinementMetrics(2.0, 1e-3)
    for metrics in (fine, coarse):
        for seed in range(3):
            metrics.add(*scan(f"s{seed}", seed))
    for step in STEPS:
        for name in ("auroc", "aupr", "best_dice"):
            exact, rounded = (m.compute()[step][name] for m in (fine, coarse))
            assert rounded == pytest.approx(exact, abs=2e-3)
