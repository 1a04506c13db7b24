"""Quality of a model whose scores are known, time and memory."""

import math
import time

import pytest
import torch
from torch import nn

from monai_dpmm.metrics.anomaly_metrics import pixel_metrics
from monai_dpmm.network.geometry import upsample_scores
from monai_dpmm.study import runs as module
from monai_dpmm.study.embedded_dataset import LabelledScan
from monai_dpmm.study.runs import cost, quality


class FirstFeature:
    """A model whose score is the first feature; it takes as long and as much as it is told."""

    def __init__(self, seconds=0.0, megabytes=0.0):
        self.module = nn.Module()
        self.module.register_buffer("state", torch.zeros(250_000))  # 1 MB
        self.seconds, self.megabytes = seconds, megabytes

    def score(self, slices, kind, places=None):
        assert kind == "first"
        time.sleep(self.seconds)
        torch.ones(int(self.megabytes * 250_000))
        return slices[..., 0] * slices.any(-1)


def placed(slices):
    """Slices with places of their patches, which the model does not know of."""
    return [(grid, torch.full((*grid.shape[:-1], 3), 0.5)) for grid in slices]


def embeddings(scores):
    """Patches (S, h, w, 2) with these scores, all of them foreground."""
    return torch.stack([scores, torch.ones_like(scores)], dim=-1)


HELD_OUT = [embeddings(torch.arange(100.0).view(10, 10) / 100)]
GENERATOR = torch.Generator().manual_seed(0)
MASKS = torch.zeros(3, 8, 8, dtype=torch.bool)
MASKS[0, 2:5, 2:5] = True
MASKS[2, 6:, 6:] = True
SCORES = torch.rand(3, 4, 4, generator=GENERATOR) + 0.5 * (MASKS[:, ::2, ::2])
SIGMA = 2.0


def labelled(name, some):
    """A scan of some slices, all of it body."""
    scores, masks = SCORES[some], MASKS[some]
    grids, there = embeddings(scores), torch.ones_like(masks)
    places = torch.full((*scores.shape, 3), 0.5)
    return LabelledScan(name, grids, places, masks, there, (1.0, 1.0, 1.0), name)


SCANS = [labelled("a", slice(2)), labelled("b", slice(2, None))]


def measured(held_out=HELD_OUT):
    return quality(FirstFeature(), "first", placed(held_out), SCANS, SIGMA)


def test_quality_is_that_of_the_maps_at_the_size_of_the_masks():
    found = measured()
    maps = upsample_scores(SCORES, (8, 8))[:, 0]
    exact = pixel_metrics(maps.flatten(), MASKS.flatten())
    for metric in ("auroc", "aupr"):
        assert found[metric] == pytest.approx(exact[metric], abs=5e-3)  # in units of 3e-4
    assert found["binning_error"] < 1e-6
    for threshold, dice in zip((0.89, 0.94, 0.98), found["dice"], strict=True):  # 10, 5 and 1 %
        mask = maps > threshold
        expected = 2 * (mask & MASKS).sum() / (mask.sum() + MASKS.sum())
        assert dice == pytest.approx(float(expected), abs=0.03)
    assert max(found["dice"]) <= found["best_dice"]


def test_images_are_the_slices_with_a_lesion():
    found = measured()
    assert [(i["scan"], i["slice"]) for i in found["images"]] == [("a", 0), ("b", 0)]
    maps = upsample_scores(SCORES, (8, 8))[:, 0]
    for i, row in zip((0, 2), found["images"], strict=True):
        expected = pixel_metrics(maps[i].flatten(), MASKS[i].flatten())
        assert {k: row[k] for k in expected} == pytest.approx(expected, abs=5e-3)
    top = maps.flatten(1).amax(1)  # the highest 1 % of 64 pixels is one
    assert found["image_auroc"] == float((top[[0, 2]] > top[1]).double().mean())


def test_background_of_healthy_slices_sets_no_threshold():
    held_out = torch.cat([HELD_OUT[0], torch.zeros(50, 10, 2)])
    with_background = measured([held_out])
    assert with_background == measured()


@pytest.mark.slow
def test_time_is_that_of_one_slice():
    slices = placed(embeddings(torch.ones(4, 4)) for _ in range(3))
    assert 20 <= cost(FirstFeature(seconds=0.02), "first", slices).milliseconds < 60


@pytest.mark.slow
@pytest.mark.skipif(not module._RESET.exists(), reason="memory is read from Linux")
def test_memory_is_of_the_model_and_of_scoring():
    slices = placed([embeddings(torch.ones(4, 4))])
    small = cost(FirstFeature(), "first", slices).megabytes
    large = cost(FirstFeature(megabytes=200), "first", slices).megabytes
    assert 1 <= small < 30
    assert 195 < large < 240


def test_memory_that_cannot_be_read_is_nan(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_RESET", tmp_path / "missing" / "clear_refs")
    slices = placed([embeddings(torch.ones(4, 4))])
    assert math.isnan(cost(FirstFeature(), "first", slices).megabytes)
