"""Scans embedded as they come: each slice once a pass, in an order that the epoch decides."""

import math

import pytest
import torch
from torch.nn import functional as F

from monai_dpmm.engines.embedding_store import StoredEmbeddings
from monai_dpmm.engines.engines import EMTrainer
from monai_dpmm.engines.slices import SliceDataLoader
from monai_dpmm.engines.streaming import StreamedBatches
from monai_dpmm.errors import InputError
from monai_dpmm.mixture.planes import create_mixture

D = 6


class Embedded:
    """Scans of two directions, 3 to 5 slices of each, whose first is background; counts itself."""

    def __init__(self):
        self.calls = 0

    def __call__(self, item):
        self.calls += 1
        generator = torch.Generator().manual_seed(item["number"])
        found = []
        for direction, (height, width) in enumerate([(3, 4), (2, 5)]):
            count = 3 + (item["number"] + direction) % 3
            grids = torch.rand(count, height, width, D, generator=generator)
            grids = F.normalize(grids, dim=-1)
            grids[0] = 0
            place = torch.rand(count, height, width, 3, generator=generator)
            found.append({"image": grids, "place": place, "direction": direction})
        return found


def source(folder, *, keep, count=7):
    items = [{"number": i} for i in range(count)]
    return StoredEmbeddings(items, Embedded(), folder, keep=keep)


def rows(batches):
    """All patches with their places, sorted, and the sizes of the batches by direction."""
    found, sizes = [], {0: [], 1: []}
    for batch in batches:
        found.append(torch.cat([batch["image"], batch["place"]], dim=1))
        sizes[batch["direction"]].append(len(batch["image"]))
    table = torch.cat(found)
    return table[torch.argsort(table[:, 0])], sizes


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_pass_gives_each_slice_once(shuffle, tmp_path):
    streamed = SliceDataLoader(source(tmp_path / "none", keep=False), 4, shuffle=shuffle)
    kept = SliceDataLoader(source(tmp_path / "kept", keep=True), 4, shuffle=shuffle)
    table, sizes = rows(streamed)
    expected, of_kept = rows(kept)
    torch.testing.assert_close(table, expected, rtol=0, atol=1e-3)  # places are kept in float16
    for direction, found in sizes.items():
        assert sorted(found) == sorted(of_kept[direction])
        assert len(found) == math.ceil(sum(found) / {0: 48, 1: 40}[direction])
    assert not (tmp_path / "none").exists()


def test_the_order_follows_from_seed_and_epoch(tmp_path):
    loader = SliceDataLoader(source(tmp_path, keep=False), 4, shuffle=True, seed=3)
    passes = []
    for epoch in (1, 1, 2):
        loader.sampler.set_epoch(epoch)
        passes.append([batch["image"] for batch in loader])
    assert all(map(torch.equal, passes[0], passes[1]))
    assert not all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(*passes[1:], strict=True)
    )
    with pytest.raises(TypeError, match="known after a pass"):
        len(loader)


def test_batches_mix_scans(tmp_path):
    streamed = StreamedBatches(source(tmp_path, keep=False, count=40), 4, shuffle=True, seed=0)
    expected = {i: Embedded()({"number": i}) for i in range(40)}

    def scan(grid):
        return next(
            i
            for i, parts in expected.items()
            if any(
                grid.shape == one.shape and torch.equal(grid, one)
                for part in parts
                for one in part["image"]
            )
        )

    mixed = [len({scan(item["image"]) for item in batch}) for batch in streamed]
    assert sum(mixed) / len(mixed) > 2.5  # of 4


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_embeds_every_scan_once_an_epoch(epochs, tmp_path):
    data = source(tmp_path / "none", keep=False)
    mixture = create_mixture(2, features=D, components=5, schedule="exp", step_size=0.6, seed=0)
    trainer = EMTrainer("cpu", epochs, SliceDataLoader(data, 4, shuffle=True), mixture)
    trainer.run()
    assert data.transform.transforms[0].calls == 7 * epochs
    assert trainer.state.iteration == epochs * trainer.state.epoch_length
    assert math.isfinite(trainer.state.metrics["train_log_likelihood"])


def test_a_source_without_patches_is_an_error(tmp_path):
    empty = StoredEmbeddings(
        [{}], lambda _: {"image": torch.zeros(2, 2, 2, D)}, tmp_path, keep=False
    )
    with pytest.raises(InputError, match="all those of its 1 scans are background"):
        list(SliceDataLoader(empty, 4))


def test_batches_of_one_direction_are_embedded_and_left_out(tmp_path):
    loader = SliceDataLoader(source(tmp_path, keep=False), 4)
    for number in (0, 1):
        found = list(loader.of_direction(number))
        expected = [batch for batch in loader if batch["direction"] == number]
        assert len(found) == len(expected) > 0
        pairs = zip(found, expected, strict=True)
        assert all(torch.equal(own["image"], other["image"]) for own, other in pairs)
