"""Every irregularity of a data set is found, and a clean one is clean."""

import re
import shutil

import pytest
from PIL import Image, ImageFilter
from slice_trees import LAYOUTS, write_tree

from monai_dpmm.app.cli import main
from monai_dpmm.io.dataset_check import check_dataset


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_clean_data_set_is_clean(tmp_path, layout):
    found = check_dataset(write_tree(tmp_path, layout))
    assert found.problems == []
    test = found.splits["test"]
    assert (test.images, test.healthy, test.anomalous) == (7, 3, 4)
    assert test.sizes == {(64, 48): 7}
    assert test.masks == (4 if layout == "mvtec" else 7)
    assert found.splits["val"].anomalous == (0 if layout == "mvtec" else 2)
    assert "irregularities: 0" in str(found)
    assert "64x48 (7)" in str(found)


def _bad(root):
    return sorted((root / "test/Ungood/img").iterdir())


def _label(root, number):
    return root / "test/Ungood/label" / _bad(root)[number].name


def _missing_mask(root):
    _label(root, 0).unlink()


def _extra_mask(root):
    shutil.copy(_label(root, 0), root / "test/Ungood/label/other.png")


def _other_size(root):
    Image.new("L", (10, 10), 255).save(_label(root, 0))


def _empty(root):
    Image.new("L", (64, 48), 0).save(_label(root, 0))


def _healthy_with_lesion(root):
    Image.new("L", (64, 48), 255).save(next((root / "test/good/label").iterdir()))


def _broken(root):
    _bad(root)[0].write_bytes(b"no picture")


def _cut(root):
    picture = _bad(root)[0]
    Image.open(picture).save(picture.with_suffix(".jpg"))
    content = picture.with_suffix(".jpg").read_bytes()
    picture.with_suffix(".jpg").write_bytes(content[: len(content) // 2])
    picture.unlink()


def _grey_mask(root):
    mask = Image.open(_label(root, 0))
    mask.filter(ImageFilter.GaussianBlur(3)).save(_label(root, 0))


def _coloured(root):
    Image.merge("RGB", [Image.open(path) for path in _bad(root)[:3]]).save(_bad(root)[0])


def _blank(root):
    Image.new("L", (64, 48), 7).save(root / "train/good/blank.png")


def _missing_mask_of_validation(root):
    next((root / "valid/Ungood/label").iterdir()).unlink()


def _broken_mask(root):
    _label(root, 0).write_bytes(b"no picture")


def _same_patient(root):
    for path in (_label(root, 0), _bad(root)[0]):
        shutil.move(path, path.with_name("P000_train_9.png"))


def _duplicate(root):
    source = sorted((root / "train/good").iterdir())[0]
    shutil.copy(source, sorted((root / "test/good/img").iterdir())[0])


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_missing_mask, "test: anomalous images without a mask: 1 "),
        (_extra_mask, "masks without an image: 1 .*other.png"),
        (_other_size, r"must have the size \(64, 48\) of .*got \(10, 10\)"),
        (_empty, "test: anomalous images with an empty mask: 1 "),
        (_healthy_with_lesion, "test: healthy images with a mask that is not empty: 1 "),
        (_broken, "must be a scalar image that can be read"),
        (_cut, "must be a scalar image that can be read.*truncated"),
        (_coloured, "pictures in colour among grey ones: 1 "),
        (_grey_mask, "masks of many grey levels.*: 1 "),
        (_blank, "must not be constant, every voxel is 7"),
        (_missing_mask_of_validation, "val: anomalous images without a mask: 1 "),
        (_broken_mask, "must be a scalar image that can be read"),
        (_same_patient, r"patients in both train and test: 1 \(P000"),
        (_duplicate, "files of the same content in train and test: 1 "),
    ],
)
def test_each_irregularity_is_named(tmp_path, spoil, problem, capsys):
    root = write_tree(tmp_path, "brats2021")
    spoil(root)
    with pytest.raises(SystemExit) as exit_:
        main(["check", str(root)])
    assert exit_.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert "irregularities: 1" in lines
    assert re.search(problem, lines[-1])


def _table(text):
    """Lines from the table of splits on; before it volumes are compared with each other."""
    before, head, rest = text.partition("split  ")
    assert "volumes beside each other:\n  axes point to " in before
    return f"{head}{rest}".splitlines()


def test_volumes_are_checked_as_well(cohort, capsys):
    main(["check", str(cohort)])
    lines = _table(capsys.readouterr().out)
    assert lines[-1] == "  none"
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["train", "3", "3", "0"],
        ["val", "2", "2", "0"],
        ["test", "3", "1", "2"],
    ]


def test_a_data_set_without_test_images_says_so(tmp_path):
    root = write_tree(tmp_path, "mvtec")
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "ground_truth")
    found = check_dataset(root)
    assert found.problems == []
    assert "no test split: scans to train on, none to measure with" in str(found).splitlines()


def test_a_folder_of_healthy_scans_is_one_to_train_on(cohort, capsys):
    """Though inference would take all its scans, they are no test split."""
    main(["check", str(cohort / "train")])
    lines = _table(capsys.readouterr().out)
    assert [line.split()[:2] for line in lines[1:3]] == [["train", "2"], ["val", "1"]]
    assert lines[3].startswith("no test split")
    assert lines[-1] == "  none"
