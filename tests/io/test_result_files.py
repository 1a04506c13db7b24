"""Results of a scan: what they are called, and that they appear together or not at all."""

import json
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_files import write_series
from monai.data import MetaTensor
from monai.transforms import Compose, SaveImaged
from PIL import Image

from monai_dpmm import LoadVolume, SaveResultsd
from monai_dpmm.errors import expected_error
from monai_dpmm.io.pictures import heat_map
from monai_dpmm.io.result_files import VOLUMES, result_files
from monai_dpmm.io.survey import find_images

FINDINGS = {"score": 0.7, "threshold": 0.5, "lesions": []}


def _data(scan, findings=FINDINGS):
    """A scan's results as the workflows have them, on the grid of the scan."""
    anomaly = torch.rand(scan.shape)
    volumes = {"anomaly": anomaly, "mask": anomaly > 0.5, "component": (anomaly * 500).round()}
    data = {
        f"pred_{name}": MetaTensor(volume, affine=scan.affine, meta=dict(scan.meta))
        for name, volume in volumes.items()
    }
    return data | {"findings": findings}


def _scan(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(0).random((7, 6, 5)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 1, 3, 1])), path)
    return LoadVolume()(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("name", ["scan", "sub-01_T1.5w"])
def test_a_scans_results_lie_in_its_folder_and_are_found_again(tmp_path, name, suffix):
    file = tmp_path / f"data/day 1/{name}.nii.gz"
    data = _data(_scan(file))
    saved = SaveResultsd(tmp_path / "out", tmp_path / "data", suffix)(data)
    names = {f"{name}_{kind}{suffix}" for kind in VOLUMES} | {f"{name}_findings.json"}
    folder = tmp_path / f"out/day 1/{name}"
    assert {path.name for path in folder.iterdir()} == names
    files = result_files(str(file), tmp_path / "out", str(tmp_path / "data"))
    assert saved["findings_path"] == str(files["findings"])
    for kind, dtype in VOLUMES.items():
        assert saved[f"pred_{kind}"].meta["saved_to"] == str(files[kind])
        read = LoadVolume(allow_constant=True)(files[kind])
        np.testing.assert_array_equal(read, data[f"pred_{kind}"].numpy().astype(dtype))
        np.testing.assert_allclose(read.affine, data["pred_mask"].affine, atol=1e-5)
    text = files["findings"].read_text()
    assert json.loads(text, parse_constant=pytest.fail) == FINDINGS


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_results_on_a_gpu_are_written(tmp_path, monkeypatch, suffix):
    data = _data(_scan(tmp_path / "data/scan.nii.gz"))
    expected = data["pred_anomaly"].numpy()

    as_array = torch.Tensor.__array__

    def elsewhere(tensor, *dtype):  # NumPy's own way to a volume that is not in its memory
        if tensor.ndim > 2:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return as_array(tensor, *dtype)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__array__", elsewhere)
        SaveResultsd(tmp_path / "out", tmp_path / "data", suffix)(data)
    read = LoadVolume()(tmp_path / f"out/scan/scan_anomaly{suffix}")
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("name", ["1.2.840.113.7", "ct"])
def test_a_series_has_dicom_results_under_its_whole_name(tmp_path, name):
    folder = tmp_path / "data" / name
    write_series(folder, np.random.default_rng(0).integers(1, 900, (7, 6, 5)))
    data = _data(LoadVolume()(folder))
    SaveResultsd(tmp_path / "out", tmp_path / "data", dicom=True)(data)
    out = tmp_path / "out" / name
    kinds = [*(f"{kind}.nii.gz" for kind in VOLUMES), "findings.json", "mask.dcm", "anomaly.dcm"]
    assert {path.name for path in out.iterdir()} == {f"{name}_{kind}" for kind in kinds}
    assert highdicom.seg.segread(out / f"{name}_mask.dcm").NumberOfFrames == 5
    files = result_files(str(folder), tmp_path / "out", str(tmp_path / "data"))
    assert all(path.is_file() for path in files.values())


def _full_disk(path, text):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("before", [False, True])
def test_what_fails_last_leaves_nothing_of_the_scan_and_all_that_was_there(
    tmp_path, monkeypatch, before
):
    data = _data(_scan(tmp_path / "data/scan.nii.gz"))
    save = SaveResultsd(tmp_path / "out", tmp_path / "data")
    if before:
        save(data)
    old = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr(Path, "write_text", _full_disk)
    message = "out: results could not be written there, .*No space left on device"
    with pytest.raises(OSError, match=message) as caught:
        save(_data(_scan(tmp_path / "data/scan.nii.gz")))
    assert expected_error(caught.value) is caught.value
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path: path.read_bytes() for path in files} == old
    assert (tmp_path / "out/scan").exists() == before


def test_a_volume_that_cannot_be_written_is_told_in_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    data = _data(_scan(tmp_path / "scan.nii.gz"))
    monkeypatch.setattr(nib.Nifti1Image, "to_filename", full)
    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OSError, match=r"out: results could not be written .*No space left"):
        SaveResultsd(tmp_path / "out")(data)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_findings_that_are_no_json_are_not_written(tmp_path):
    data = _data(_scan(tmp_path / "scan.nii.gz"), {"score": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        SaveResultsd(tmp_path / "out")(data)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_results_of_a_scan_outside_the_root_are_refused(tmp_path):
    data = _data(_scan(tmp_path / "scan.nii.gz"))
    with pytest.raises(ValueError, match=r"a scan must lie below data_root_dir .*data, got .*scan"):
        SaveResultsd(tmp_path / "out", tmp_path / "data")(data)
    with pytest.raises(ValueError, match=r"output_ext must be one of .*, got '\.foo'"):
        SaveResultsd(tmp_path / "out", output_ext=".foo")


def test_servers_that_leave_savers_out_leave_it_out(tmp_path):
    """MONAI Label asks for the class, MONAI Deploy App SDK for a part of its name."""
    (save,) = Compose([SaveResultsd(tmp_path)]).transforms
    assert isinstance(save, SaveImaged)
    assert "SaveImage" in type(save).__name__


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".bmp"])
def test_results_of_a_picture_are_pictures_beside_the_float_map(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (9, 14)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    data = _data(LoadVolume()(tmp_path / f"a{suffix}"))
    SaveResultsd(tmp_path / "out", tmp_path)(data)
    heat, mask = (Image.open(tmp_path / f"out/a/a_{end}.png") for end in ("anomaly", "mask"))
    assert heat.size == mask.size == (14, 9)
    scores = data["pred_anomaly"][0].numpy().T
    assert np.array_equal(np.asarray(mask), 255 * (scores > 0.5))
    reds, greens, blues = np.moveaxis(np.asarray(heat).astype(float) / 255, -1, 0)
    share = (reds + greens + blues) / 3  # of twice the threshold
    np.testing.assert_allclose(share, np.clip(scores / 1.0, 0, 1), atol=0.01)
    read = nib.load(tmp_path / "out/a/a_anomaly.nii.gz").get_fdata().squeeze()
    np.testing.assert_allclose(read.T, scores, atol=1e-6)
    assert [path.name for path in find_images(tmp_path)] == [f"a{suffix}"]


def test_a_heat_map_without_a_threshold_reaches_to_its_highest_score():
    scores = np.array([[-1.0, 0.0], [0.25, 0.5]])
    assert heat_map(scores, 0).tolist() == [
        [[0, 0, 0], [255, 128, 0]],
        [[0, 0, 0], [255, 255, 255]],
    ]
