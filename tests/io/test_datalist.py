"""Which files the sections of a data set hold, in every layout."""

import json
from pathlib import Path

import pytest

from monai_dpmm.errors import InputError
from monai_dpmm.io.datalist import data_root, datalist, existing_file, find_images
from monai_dpmm.io.result_files import result_files


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
    with pytest.raises(InputError, match=r"must have a list 'test' .* got lists training"):
        datalist(tmp_path, "test")
    items = [{"image": f"{name}.nii"} for name in "abcde"]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    drawn = [_names(datalist(tmp_path, section)) for section in ("train", "val")]
    assert sorted([*drawn[0], *drawn[1]]) == [f"{name}.nii" for name in "abcde"]
    assert len(drawn[1]) == 1


def test_inference_takes_a_folder_or_one_file(tmp_path):
    _touch(tmp_path, "a.nii", "b.nii")
    assert _names(datalist(tmp_path, "test")) == ["a.nii", "b.nii"]
    assert _names(datalist(tmp_path / "a.nii", "test")) == ["a.nii"]
    assert data_root(tmp_path / "a.nii") == data_root(tmp_path) == str(tmp_path)


def test_bad_data_sets(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: must be a data set's folder"):
        datalist(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match=r"must hold images \(.nii.gz, .* got 0 other files"):
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


@pytest.mark.parametrize(
    "names",
    [
        ("a.nii.gz", "a.nii"),
        ("a.nii.gz", "a.nrrd"),
        ("b/a.mha", "b/a.nii"),
        ("a.nii.gz", "a/1.dcm"),
    ],
)
def test_scans_that_differ_in_their_format_only_have_results_of_their_own(tmp_path, names):
    _touch(tmp_path, *names)
    scans = [item["image"] for item in datalist(tmp_path, "test")]
    files = [result_files(scan, tmp_path / "out", str(tmp_path)) for scan in scans]
    assert len({file for of_scan in files for file in of_scan.values()}) == 8
    assert {of_scan["findings"].parent.name for of_scan in files} == {
        "a" if path.is_dir() else path.name for path in map(Path, scans)
    }


def test_scans_whose_results_would_replace_each_other_are_refused(tmp_path):
    _touch(tmp_path, "a.nii", "a.mha", "a.nii.mha")
    with pytest.raises(InputError, match=r"must have another name than .*both be named a.nii$"):
        datalist(tmp_path, "test")


def test_names_of_other_folders_and_series_do_not_matter(tmp_path):
    series = ("1.2.840.1/1.dcm", "1.2.840.2/1.dcm")
    _touch(tmp_path, "a.nii.gz", "b/a.nii.gz", "a.1.nii.gz", "a.2.nii.gz", *series)
    assert len(datalist(tmp_path, "test")) == 6


@pytest.mark.parametrize("elsewhere", ["../private/a.nii", "/private/a.nii", "x/../../a.nii"])
def test_scans_to_test_outside_the_data_set_are_refused(tmp_path, elsewhere):
    """Their results would lie outside the folder for results."""
    (tmp_path / "dataset.json").write_text(json.dumps({"test": [elsewhere]}))
    with pytest.raises(InputError, match=r"dataset.json: scans to test must lie below its folder"):
        datalist(tmp_path, "test")


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_a_broken_datalist_is_refused(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=r"dataset.json: must be JSON with lists by name"):
        datalist(tmp_path, "test")


@pytest.mark.parametrize("item", ["a.nii", {"label": "a.nii"}, {"image": 3}])
def test_a_datalist_of_other_things_is_refused(tmp_path, item):
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [item]}))
    with pytest.raises(InputError, match=r"dataset.json: training must be a list of paths by name"):
        datalist(tmp_path, "train")


def test_a_series_folder_is_one_scan_whose_results_keep_its_name(tmp_path):
    (tmp_path / "CT1").mkdir()
    (tmp_path / "CT1/0.dcm").touch()
    assert data_root(tmp_path / "CT1") == str(tmp_path)
    assert data_root(tmp_path) == str(tmp_path)
    assert [item["image"] for item in datalist(tmp_path / "CT1", "test")] == [str(tmp_path / "CT1")]


def test_results_and_reports_are_no_scans(tmp_path):
    """Also not where they lie among the scans; a scan whose name is like a result's stays one."""
    results = ["a/a_anomaly.nii.gz", "a/a_mask.nii.gz", "a/a_findings.json", "report/report.html"]
    results += ["report/metrics.json", "report/figures/001-a.png"]
    scans = ["a.nii.gz", "b_mask.nii.gz", "a/ab.nii.gz", "other/report.png"]
    for name in results + scans:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert {p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)} == set(scans)


def test_what_is_no_folder_is_told(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(InputError, match="must be a data set's folder, a file is none"):
        datalist(tmp_path / "a.nii.gz", "train")
    with pytest.raises(InputError, match="there is no such file or folder"):
        datalist(tmp_path / "none", "test")
