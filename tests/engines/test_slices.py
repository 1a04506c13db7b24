import pytest
import torch
from monai.data import CacheDataset, PersistentDataset
from torch.utils.data import DataLoader

from monai_dpmm.engines.slices import SliceDataLoader, SliceDataset, collate_patches
from monai_dpmm.errors import InputError


class _Embed:
    """Embeddings of scan i: i + 2 slices of a grid of (2, i + 1), all features equal to i + 1."""

    calls = 0

    def __call__(self, item):
        _Embed.calls += 1
        i = item["scan"]
        return {"image": torch.full((i + 2, 2, i + 1, 5), i + 1.0)}


@pytest.mark.parametrize("kind", ["cache", "persistent"])
def test_batches_mix_the_slices_of_all_scans_and_embed_each_scan_once(kind, tmp_path):
    _Embed.calls = 0
    data = [{"scan": i} for i in range(4)]
    source = (
        CacheDataset(data, _Embed(), progress=False)
        if kind == "cache"
        else PersistentDataset(data, _Embed(), cache_dir=tmp_path)
    )
    slices = SliceDataset(source)
    assert len(slices) == 2 + 3 + 4 + 5
    loader = DataLoader(slices, batch_size=14, collate_fn=collate_patches)
    for _ in range(3):
        (batch,) = loader
        expected = sum((i + 2) * 2 * (i + 1) for i in range(4))
        assert batch["image"].shape == (expected, 5)
        assert batch["image"].unique().tolist() == [1, 2, 3, 4]
    assert _Embed.calls == 4


def test_a_scan_may_come_as_a_list_of_its_axes():
    axes = [torch.rand(2, 3, 3, 4) + 0.1, torch.rand(3, 4, 2, 4) + 0.1]
    slices = SliceDataset([[{"image": one} for one in axes], {"image": axes[1]}])
    assert len(slices) == 8
    patches = collate_patches([slices[i] for i in range(8)])["image"]
    assert torch.equal(patches.sum(1).sort().values, _sums([*axes, axes[1]]))


def _sums(embeddings):
    return torch.cat([one.flatten(0, 2) for one in embeddings]).sum(1).sort().values


def test_slices_of_different_embeddings_are_refused():
    source = [{"image": torch.rand(2, 3, 3, 4)}, {"image": torch.rand(2, 3, 3, 5)}]
    with pytest.raises(ValueError, match=r"slices of one embedding size, got \[4, 5\]"):
        SliceDataset(source)


def test_no_scan_and_no_patch_are_refused_each_with_its_reason():
    with pytest.raises(InputError, match="must hold at least one scan each, got none"):
        SliceDataset([])
    with pytest.raises(ValueError, match="all those of its 2 scans are background or lie under"):
        SliceDataset([{"image": torch.zeros(2, 3, 3, 4)}] * 2)


def test_background_patches_and_slices_are_left_out():
    scan = torch.rand(3, 2, 2, 4) + 0.1
    scan[0] = 0
    scan[1, 0, 1] = 0
    slices = SliceDataset([{"image": scan}])
    assert len(slices) == 2
    batch = collate_patches([slices[0], slices[1]])["image"]
    assert batch.shape == (7, 4)
    assert batch.any(dim=1).all()


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_of_one_direction_are_those_of_the_loader(shuffle):
    scan = [{"image": torch.rand(n, 2, 2, 4) + 0.1, "direction": n % 2} for n in (5, 6, 7)]
    loader = SliceDataLoader([scan, scan], 4, shuffle=shuffle, seed=3)
    for number in (0, 1):
        found = list(loader.of_direction(number))
        expected = [batch for batch in loader if batch["direction"] == number]
        assert len(found) == len(expected) == {0: 3, 1: 6}[number]
        for own, other in zip(found, expected, strict=True):
            assert torch.equal(own["image"], other["image"])
            assert own["direction"] == number
    assert list(loader.of_direction(2)) == []
