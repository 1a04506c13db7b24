"""Embeddings on disk: made once, by content, whole or not at all, read slice by slice."""

import copy
import errno
import logging
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from monai_dpmm.engines import embedding_file
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


class Meta:
    """The scan as MONAI's loaders leave it."""

    def __call__(self, item):
        return {"image": MetaTensor(item["image"], affine=torch.eye(4))}


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


@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_the_transforms_are_the_same_after_they_have_run(kind, scans, tmp_path):
    """Validation's scans are embedded by transforms that training's have been through."""
    first, *others = steps().transforms
    turned = [Meta(), Orientationd("image", "PLI", labels=None)] if kind is MetaTensor else []
    transform = Compose([first, *turned, *others])
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


def flip(path, start):
    """Change one bit of the byte where some bytes begin."""
    content = bytearray(path.read_bytes())
    content[content.index(start)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["image", "place", "label", "foreground", "check"])
def test_a_flipped_bit_is_noticed_when_it_is_read(part, scans, tmp_path, caplog):
    def with_label(item):
        item = steps()(item)
        return item | {"label": torch.rand(len(item["image"]), 1, 3, 3) > 0.5}

    stored = StoredEmbeddings(scans, with_label, tmp_path / "kept")
    # copied: what is read is the mapped file, which is overwritten below
    expected = [copy.deepcopy(stored.slices().item(i)) for i in range(len(stored.slices()))]
    path = stored.path(2)
    with safe_open(path, "pt") as file:
        bytes_ = file.get_slice(f"{part}_0")[4].numpy().tobytes()
    if part in ("foreground", "check"):
        with safe_open(path, "pt") as file:
            bytes_ = file.get_tensor(f"{part}_0").numpy().tobytes()
    whole = path.read_bytes()
    flip(path, bytes_)
    caplog.set_level(logging.WARNING)
    again = StoredEmbeddings(scans, with_label, tmp_path / "kept")
    slices = again.slices()
    found = [slices.item(i) for i in range(len(slices))]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("image", "place"))
    assert f"{path.name} is damaged and made again" in caplog.text
    if part != "label":  # which is random
        flip(path, bytes_)
    assert again.read(2)["label"].any()
    assert len(path.read_bytes()) == len(whole)
    embedding_file.read(path)


def test_a_scan_that_changes_during_a_run_is_an_error(scans, tmp_path):
    stored = StoredEmbeddings(scans, steps(), tmp_path / "kept")
    slices = stored.slices()
    volume = torch.load(scans[0]["image"], weights_only=True)
    torch.save(volume + 0.5, scans[0]["image"])
    stored.path(0).unlink()
    with pytest.raises(InputError, match="must stay as it is during a run, it has changed"):
        slices.item(0)


def test_what_is_cleared_during_a_run_is_made_again(scans, tmp_path):
    stored = StoredEmbeddings(scans, steps(), tmp_path / "kept")
    slices = stored.slices()
    before = [slices[i] for i in range(len(slices))]
    for path in (tmp_path / "kept").iterdir():
        path.unlink()
    assert all(torch.equal(slices[i], before[i]) for i in range(len(slices)))


def test_float16_is_half_the_size_and_nearly_the_same(scans, tmp_path):
    kinds = {
        dtype: StoredEmbeddings(scans, steps(), tmp_path / dtype, dtype=dtype)
        for dtype in ("float32", "float16")
    }
    full, half = (kinds[dtype].slices() for dtype in kinds)
    for one, other in zip(full, half, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
    sizes = [kinds[dtype].path(4).stat().st_size for dtype in kinds]
    assert sizes[1] < 0.8 * sizes[0]  # places and header are there twice
    assert kinds["float32"].path(0).name != kinds["float16"].path(0).name
    with pytest.raises(InputError, match="dtype must be one of float32, float16, got 'int8'"):
        StoredEmbeddings(scans, steps(), tmp_path, dtype="int8")


def test_what_float16_cannot_hold_is_an_error(tmp_path):
    def huge(item):
        return {"image": torch.full((2, 2, 2, D), 1e5)}

    stored = StoredEmbeddings([{}], huge, tmp_path, dtype="float16")
    with pytest.raises(InputError, match=r"must be float32 .* reach 1e\+05, got float16"):
        stored.embed()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_stays_within_its_limit(scans, tmp_path):
    stored = StoredEmbeddings(scans, steps(), tmp_path / "kept", limit_gb=7e-6)
    with pytest.raises(FileError, match="must stay within embedding_limit_gb=7e-06; clear it"):
        stored.embed()
    files = list((tmp_path / "kept").glob("*.safetensors"))
    assert 0 < sum(path.stat().st_size for path in files) < 10e3
    assert len(StoredEmbeddings(scans, steps(), tmp_path / "kept", limit_gb=1).embed()) == 5


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
    assert len(list(folder.glob("*.safetensors"))) == 5
    assert path.read_bytes() == content
    assert all(map(torch.equal, slices, expected))
    assert (damage == "foreign") or f"{path.name} is damaged and made again" in caplog.text


def test_a_file_is_there_whole_or_not_at_all(scans, tmp_path, monkeypatch):
    def half(path, content):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
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


def test_a_second_training_begins_within_seconds(tmp_path):
    """150 scans of the paper's size, from the making of the loader to the first EM step."""

    def wide(item):
        return {"image": torch.rand(2, 32, 32, 384) + item["number"]}

    items = [{"number": i} for i in range(150)]
    StoredEmbeddings(items, wide, tmp_path, dtype="float16").embed()
    start = time.process_time()
    again = StoredEmbeddings(items, wide, tmp_path, dtype="float16")
    batch = next(iter(SliceDataLoader(again, 12, shuffle=True)))
    DPMM(384, 20).initialize(batch["image"])
    assert time.process_time() - start < 5
