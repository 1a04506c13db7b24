"""Embeddings on disk: made once, by content, whole or not at all, read slice by slice."""

import logging
import resource
import shutil

import pytest
import torch
from monai.transforms import Compose
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F

from monai_dpmm.engines import embedding_store as module
from monai_dpmm.engines.embedding_store import StoredEmbeddings
from monai_dpmm.engines.engines import EMTrainer
from monai_dpmm.engines.slices import SliceDataLoader, SliceDataset
from monai_dpmm.errors import FileError, InputError
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.transforms.dictionary import EmbedPatchesd, ExtractSlicesd

D = 6


class Read:
    """A scan of a tensor file."""

    def __call__(self, item):
        scan = torch.load(item["image"], weights_only=True)
        return {"image": scan}


class Backbone(nn.Conv2d):
    """Patches of 2 x 2 pixels to D features, features last in memory; counts its calls."""

    calls = 0

    def __init__(self):
        torch.manual_seed(1)
        super().__init__(3, D, 2, stride=2)

    def forward(self, images):
        Backbone.calls += 1
        return super().forward(images).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def scans(tmp_path):
    """Five volumes of 5 to 9 slices, of which one is background."""
    items = []
    for i in range(5):
        volume = torch.rand(3, 8, 6 + 2 * i, 5 + i)
        volume[..., 2] = -9  # below 0 on ImageNet's scale, too
        path = tmp_path / f"scan{i}.pt"
        torch.save(volume, path)
        items.append({"image": str(path)})
    return items


def steps(axis=2, *, batch_size=16, **options):
    embed = EmbedPatchesd("image", Backbone(), batch_size, ignore_background=True, **options)
    return Compose([Read(), ExtractSlicesd("image", axis), embed])


def calls(run):
    before = Backbone.calls
    result = run()
    return Backbone.calls - before, result


def trained(source, **options):
    model = DPMM(D, 5, variance_floor=1e-3, initialization="k-means++", **options)
    EMTrainer("cpu", 3, SliceDataLoader(source, 4, shuffle=True), model).run()
    return model.state_dict()


@pytest.mark.filterwarnings("ignore:ignore_background leaves out nothing")  # along axis 0
@pytest.mark.parametrize("axis", [2, [0, 2]])
def test_a_model_is_the_same_with_the_store_and_without(axis, scans, tmp_path):
    transform = steps(axis)
    stored = StoredEmbeddings(scans, transform, tmp_path / "kept")
    slices, expected = SliceDataset(stored), SliceDataset([transform(item) for item in scans])
    assert len(slices) == len(expected) > 0
    assert torch.equal(slices.directions, expected.directions)
    if axis == 2:
        for one, other in zip(slices, expected, strict=True):
            assert torch.equal(one["image"], other["image"])
            assert one["direction"] == other["direction"] == 0
    one, other = trained(stored), trained([transform(item) for item in scans])
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_second_training_calls_no_backbone(scans, tmp_path):
    first, state = calls(lambda: trained(StoredEmbeddings(scans, steps(), tmp_path / "kept")))
    assert first == 5
    again = StoredEmbeddings(scans[::-1], steps(batch_size=3), tmp_path / "kept")
    second, other = calls(lambda: trained(again, covariance="full"))
    assert second == 0
    assert other["offsets"].shape == state["offsets"].shape


def test_the_transforms_are_the_same_after_they_have_run(scans, tmp_path):
    """Validation's scans are embedded by transforms that training's have been through."""
    transform = steps()
    before = StoredEmbeddings(scans[:1], transform, tmp_path).path(0)
    transform(scans[0])
    assert StoredEmbeddings(scans[:1], transform, tmp_path).path(0) == before


def test_a_copy_is_found_and_an_altered_scan_embedded_again(scans, tmp_path):
    folder = tmp_path / "kept"
    StoredEmbeddings(scans, steps(), folder).embed()
    moved = tmp_path / "elsewhere.pt"
    shutil.copy(scans[1]["image"], moved)
    assert calls(StoredEmbeddings([{"image": str(moved)}], steps(), folder).embed)[0] == 0
    volume = torch.load(moved, weights_only=True)
    volume[0, 0, 0, 0] += 0.5
    torch.save(volume, moved)
    altered = StoredEmbeddings([{"image": str(moved)}], steps(), folder)
    count, _ = calls(altered.embed)
    assert count == 1
    torch.testing.assert_close(altered[0]["image"], steps()({"image": str(moved)})["image"])


def test_other_steps_and_other_weights_are_other_embeddings(scans, tmp_path):
    other = steps()
    with torch.no_grad():
        other.transforms[-1].transform.backbone.bias[0] += 1e-3
    kinds = [steps(), steps(axis=1), steps(patch_grid=[2, 2]), other, Compose([Read(), Read()])]
    paths = {StoredEmbeddings(scans, kind, tmp_path).path(0) for kind in kinds}
    assert len(paths) == len(kinds)
    assert StoredEmbeddings(scans, steps(unit_norm=False), tmp_path).path(0) in paths


@pytest.mark.parametrize("damage", ["torn", "empty", "foreign"])
def test_a_damaged_file_is_made_again(damage, scans, tmp_path, caplog):
    folder = tmp_path / "kept"
    stored = StoredEmbeddings(scans, steps(), folder)
    expected = list(stored.slices())
    path = stored.path(3)
    content = path.read_bytes()
    if damage == "foreign":
        path.write_bytes(stored.path(1).read_bytes())
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "torn" else 0])
    caplog.set_level(logging.WARNING)
    count, slices = calls(StoredEmbeddings(scans, steps(), folder).slices)
    assert count == 1
    assert path.read_bytes() == content
    assert all(map(torch.equal, slices, expected))
    assert (damage == "foreign") or f"{path.name} is damaged and made again" in caplog.text


def test_a_file_is_there_whole_or_not_at_all(scans, tmp_path, monkeypatch):
    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(module, "save_file", half)
    stored = StoredEmbeddings(scans, steps(), tmp_path / "kept")
    with pytest.raises(FileError, match="could not be written, No space left"):
        stored.embed()
    assert list((tmp_path / "kept").iterdir()) == []


def test_embeddings_are_kept_as_the_backbone_gives_them(scans, tmp_path):
    stored = StoredEmbeddings(scans, steps(), tmp_path)
    raw = steps(unit_norm=False)(scans[2])["image"]
    assert torch.equal(stored.read(2)["image"], raw)
    assert torch.equal(stored[2]["image"], F.normalize(raw, dim=-1))
    unscaled = stored.slices(unit_norm=False)
    assert torch.equal(unscaled[0], stored.read(0)["image"][0])
    doubled = Compose([*steps().transforms, lambda item: {"image": 2 * item["image"]}])
    kept = StoredEmbeddings(scans, doubled, tmp_path)
    assert torch.equal(kept[2]["image"], doubled(scans[2])["image"])


def test_background_slices_are_left_out_and_all_background_is_refused(scans, tmp_path):
    stored = StoredEmbeddings(scans, steps(), tmp_path / "kept")
    assert len(stored.slices()) == sum(4 + i for i in range(5))
    for item in scans:
        torch.save(torch.full((3, 8, 6, 4), -9.0), item["image"])
    with pytest.raises(InputError, match="all those of its 5 scans are background"):
        SliceDataset(StoredEmbeddings(scans, steps(), tmp_path / "kept"))


def test_memory_does_not_grow_with_the_number_of_slices(tmp_path):
    """150 MB of embeddings are passed over twice in less than 60 MB."""

    def wide(item):
        return {"image": torch.rand(16, 32, 32, 384) + item["number"]}

    items = [{"number": i} for i in range(6)]
    loader = SliceDataLoader(StoredEmbeddings(items, wide, tmp_path / "kept"), 2, shuffle=True)
    assert sum(p.stat().st_size for p in (tmp_path / "kept").iterdir()) > 150e6
    next(iter(loader))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = sum(len(batch["image"]) for _ in range(2) for batch in loader)
    assert total == 2 * 6 * 16 * 32 * 32
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000
