import json

import pytest
import torch
from monai.data import CacheDataset, PersistentDataset
from torch.utils.data import DataLoader

from monai_dpmm.data import (
    SliceDataset,
    collate_patches,
    data_root,
    datalist,
    existing_file,
    find_images,
)
from monai_dpmm.loading import InputError


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def _names(items, key="image"):
    return [item[key].rsplit("/", 1)[-1] for item in items]


def test_images_of_every_format_and_dicom_series(tmp_path):
    _touch(tmp_path, "b.nii.gz", "a/x.mgz", "a/y.PNG", "s/1.dcm", "s/2.dcm", "notes.txt", ".z.nii")
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert found == ["a/x.mgz", "a/y.PNG", "b.nii.gz", "s"]


def test_one_folder_is_split_once_and_for_all(tmp_path):
    _touch(tmp_path, *(f"{i:02d}.nii" for i in range(20)))
    train, val = datalist(tmp_path, "train", seed=3), datalist(tmp_path, "val", seed=3)
    assert len(val) == 4
    assert sorted(_names(train) + _names(val)) == [f"{i:02d}.nii" for i in range(20)]
    assert val == datalist(tmp_path, "val", seed=3)
    assert val != datalist(tmp_path, "val", seed=4)


@pytest.mark.parametrize(
    ("count", "fraction", "expected"), [(2, 0.2, 1), (3, 0.9, 2), (10, 0.01, 1)]
)
def test_both_sides_of_a_split_have_a_scan(tmp_path, count, fraction, expected):
    _touch(tmp_path, *(f"{i}.nii" for i in range(count)))
    assert len(datalist(tmp_path, "val", val_fraction=fraction)) == expected
    assert len(datalist(tmp_path, "train", val_fraction=fraction)) == count - expected


def test_folders_of_sections(tmp_path):
    _touch(tmp_path, "train/a.nii", "train/b.nii", "val/c.nii")
    _touch(tmp_path, "test/images/d.nii", "test/images/e.nii", "test/labels/d.nii")
    assert _names(datalist(tmp_path, "train")) == ["a.nii", "b.nii"]
    assert _names(datalist(tmp_path, "val")) == ["c.nii"]
    test = datalist(tmp_path, "test")
    assert _names(test) == ["d.nii", "e.nii"]
    assert test[0]["label"].endswith("test/labels/d.nii")
    assert "label" not in test[1]
    with pytest.raises(InputError, match=r"e.nii: must have a mask .* 1 of 2 images have none"):
        datalist(tmp_path, "test", labels=True)


def test_training_folder_without_validation_folder_is_split(tmp_path):
    _touch(tmp_path, *(f"train/{i}.nii" for i in range(5)), "test/x.nii")
    assert len(datalist(tmp_path, "train")) == 4
    assert _names(datalist(tmp_path, "test")) == ["x.nii"]


def test_decathlon_datalist(tmp_path):
    lists = {
        "name": "x",
        "training": [{"image": "imagesTr/a.nii.gz"}],
        "validation": [{"image": "imagesTr/b.nii.gz"}],
        "test": [{"image": "imagesTs/c.nii.gz", "label": "labelsTs/c.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    assert datalist(tmp_path, "train") == [{"image": str(tmp_path / "imagesTr/a.nii.gz")}]
    assert datalist(tmp_path, "val") == [{"image": str(tmp_path / "imagesTr/b.nii.gz")}]
    assert datalist(tmp_path, "test", labels=True)[0]["label"].endswith("labelsTs/c.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"test": ["imagesTs/c.nii.gz"]}))
    assert datalist(tmp_path, "test") == [{"image": str(tmp_path / "imagesTs/c.nii.gz")}]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [{"image": "a"}]}))
    with pytest.raises(InputError, match=r"must have a list 'validation' .* got lists training"):
        datalist(tmp_path, "val")


def test_inference_takes_a_folder_or_one_file(tmp_path):
    _touch(tmp_path, "a.nii", "b.nii")
    assert _names(datalist(tmp_path, "test")) == ["a.nii", "b.nii"]
    assert _names(datalist(tmp_path / "a.nii", "test")) == ["a.nii"]
    assert data_root(tmp_path / "a.nii") == data_root(tmp_path) == str(tmp_path)


def test_bad_data_sets(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: must be a data set's folder"):
        datalist(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match=r"must hold images \(.nii, .* got 0 other files"):
        datalist(tmp_path, "train")
    _touch(tmp_path, "only.nii")
    with pytest.raises(InputError, match=r"at least 2 healthy scans, .* got 1"):
        datalist(tmp_path, "train")
    with pytest.raises(InputError, match=r"only.nii: must be a folder of images"):
        find_images(tmp_path / "only.nii")
    with pytest.raises(ValueError, match="section must be one of train, val, test, got 'tset'"):
        datalist(tmp_path, "tset")
    with pytest.raises(ValueError, match=r"val_fraction must lie in \(0, 1\), got 1"):
        datalist(tmp_path, "train", val_fraction=1)


def test_existing_file(tmp_path):
    _touch(tmp_path, "model.pt")
    assert existing_file(tmp_path / "model.pt") == str(tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"other.pt: must exist, .*train a model first"):
        existing_file(tmp_path / "other.pt")


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
