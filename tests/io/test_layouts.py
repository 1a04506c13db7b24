"""Data sets of slices as they are shipped, and the variants that copies show."""

import shutil
from pathlib import Path

import pytest
from slice_trees import COUNTS, LAYOUTS, write_tree

from monai_dpmm.errors import InputError
from monai_dpmm.io.datalist import datalist
from monai_dpmm.io.layouts import patient_of, slice_groups

BMAD = ["brats2021", "liver", "resc"]


def _counts(root, **options):
    sections = {name: datalist(root, name, **options) for name in ("train", "val")}
    return {name: len(items) for name, items in sections.items()}


@pytest.mark.parametrize("layout", BMAD)
def test_bmad_has_three_layouts(tmp_path, layout):
    root = write_tree(tmp_path, layout)
    assert _counts(root) == {"train": COUNTS["train"], "val": COUNTS["val/good"]}
    test = datalist(root, "test", labels=True)
    assert [item["anomalous"] for item in test] == [False] * 3 + [True] * 4
    for item in test:
        assert Path(item["image"]).stem == Path(item["label"]).stem
        assert item["label"] != item["image"]
    assert not any("label" in item or "anomalous" in item for item in datalist(root, "train"))


def test_mvtec_has_a_folder_for_each_defect_and_no_validation(tmp_path):
    root = write_tree(tmp_path, "mvtec")
    train, val = datalist(root, "train"), datalist(root, "val")
    assert (len(train), len(val)) == (5, 1)
    assert not {i["image"] for i in train} & {i["image"] for i in val}
    test = datalist(root, "test", labels=True)
    assert ["label" in item for item in test] == [False] * 3 + [True] * 4
    assert test[-1]["label"].endswith(
        "ground_truth/crack/" + Path(test[-1]["image"]).stem + "_mask.png"
    )


@pytest.mark.parametrize("layout", BMAD)
def test_copies_differ_in_case_and_lie_in_a_folder(tmp_path, layout):
    root = write_tree(tmp_path / "copy" / "Data", layout)
    for name in ("valid", "Ungood"):
        for path in sorted(root.rglob(name), reverse=True):
            path.rename(path.with_name({"valid": "Val", "Ungood": "ungood"}[name]))
    assert _counts(tmp_path / "copy") == {"train": 6, "val": 3}
    assert sum(item["anomalous"] for item in datalist(tmp_path / "copy", "test")) == 4


def test_a_copy_may_lie_beside_something_else(tmp_path):
    write_tree(tmp_path / "hist_DIY", "liver")
    (tmp_path / "__MACOSX/hist_DIY").mkdir(parents=True)
    (tmp_path / "__MACOSX/hist_DIY/._train.png").touch()
    assert _counts(tmp_path) == {"train": 6, "val": 3}


def test_a_folder_of_two_data_sets_is_neither(tmp_path):
    for name in ("brats2021", "liver"):
        write_tree(tmp_path / name, name)
    with pytest.raises(InputError, match="must hold one data set, got 2: brats2021, liver"):
        datalist(tmp_path, "train")


@pytest.mark.parametrize(("layout", "split"), [*zip(BMAD, ("test", "test", "Test"), strict=True)])
def test_a_split_can_be_tested_without_the_others(tmp_path, layout, split):
    root = write_tree(tmp_path / "data", layout)
    whole = datalist(root, "test")
    assert datalist(root / split, "test") == whole
    (root / split).rename(tmp_path / split)
    shutil.rmtree(root)
    root.mkdir()
    (tmp_path / split).rename(root / split)
    assert datalist(root, "test") == whole


def test_a_class_can_be_tested_without_its_masks_becoming_images(tmp_path):
    root = write_tree(tmp_path, "brats2021")
    items = datalist(root / "test/Ungood", "test", labels=True)
    assert {Path(item["image"]).parent.name for item in items} == {"img"}
    assert {Path(item["label"]).parent.name for item in items} == {"label"}
    assert len(items) == COUNTS["test/bad"]


@pytest.mark.parametrize("name", ["test", "Label", "masks", "Ungood"])
def test_what_may_not_be_healthy_is_never_trained_on(tmp_path, name):
    for folder in ("healthy", f"site/{name}"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(2):
            (tmp_path / folder / f"{number}.nii.gz").touch()
    for section in ("train", "val"):
        with pytest.raises(InputError, match=f"must hold healthy scans only.* folder named {name}"):
            datalist(tmp_path, section)


def test_healthy_images_need_no_masks(tmp_path):
    root = write_tree(tmp_path, "brats2021")
    good = root / "test/good"
    for path in (good / "img").iterdir():
        path.rename(good / path.name)
    for path in (good / "label").iterdir():
        path.unlink()
    (good / "img").rmdir()
    (good / "label").rmdir()
    test = datalist(root, "test", labels=True)
    assert ["label" in item for item in test] == [False] * 3 + [True] * 4


def test_an_anomalous_image_needs_one(tmp_path):
    root = write_tree(tmp_path, "liver")
    next((root / "test/label/Ungood").iterdir()).unlink()
    with pytest.raises(InputError, match=r"must have a mask of its lesions.* 1 of 7 images"):
        datalist(root, "test", labels=True)


def test_a_split_that_is_missing_is_named(tmp_path):
    root = write_tree(tmp_path, "mvtec", counts=COUNTS | {"test/good": 0, "test/bad": 0})
    with pytest.raises(InputError, match="must have images in its split 'test', got none"):
        datalist(root, "test")


def test_volumes_are_no_slices(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.nii.gz").touch()
    assert slice_groups(tmp_path) is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_patient_is_on_one_side_of_a_drawn_split(tmp_path, layout):
    root = write_tree(tmp_path, "mvtec")
    for number, path in enumerate(sorted((root / "train/good").iterdir())):
        path.rename(path.with_name(f"S{number // 2}_flair_{number}.png"))
    train, val = datalist(root, "train", val_fraction=0.4), datalist(root, "val", val_fraction=0.4)
    patients = [{item["patient"] for item in items} for items in (train, val)]
    assert patients[0] | patients[1] == {"S0", "S1", "S2"}
    assert not patients[0] & patients[1]


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("BraTS2021_00012_flair_60.png", "BraTS2021_00012"),
        ("BraTS2021_00012_60.png", "BraTS2021_00012"),
        ("liver_12_345.png", "liver_12"),
        ("PC016-slice-7.bmp", "PC016"),
        ("sub-03_T1_slice_12.nii.gz", "sub-03"),
        ("001.png", None),
        ("slice_12.png", None),
        ("BraTS2021_00012_flair.png", None),
    ],
)
def test_patients_are_read_off_the_names_of_slices(name, patient):
    assert patient_of(Path(name)) == patient
