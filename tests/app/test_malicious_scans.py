"""Scans and folders from strangers: what they say of themselves moves no file and no setting."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from dicom_files import headers, write_series
from monai.transforms import LoadImage
from refusal import refusal

from monai_dpmm.app.cli import main
from monai_dpmm.io.datalist import datalist
from monai_dpmm.io.formats import SaveVolumed
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.report.volumes import subject_volume
from monai_dpmm.study.tables import as_csv

SHAPE = (24, 24, 24)
COMMANDS = "\x1b]0;PWNED\x07\x1b[31m"  # sets a terminal's title and turns its text red


def _voxels():
    return np.random.default_rng(0).random(SHAPE, np.float32).tobytes()


def _nrrd(path, *lines):
    sizes = " ".join(map(str, SHAPE))
    header = ["NRRD0004", "type: float", "dimension: 3", f"sizes: {sizes}", "encoding: raw"]
    header += ["endian: little", "space: left-posterior-superior", "space origin: (0,0,0)"]
    header += ["space directions: (4,0,0) (0,4,0) (0,0,4)", *lines]
    attached = not any(line.startswith("data") for line in lines)
    path.write_bytes("\n".join(header).encode() + b"\n\n" + (_voxels() if attached else b""))


def _mha(path, *lines, data="LOCAL"):
    header = ["ObjectType = Image", "NDims = 3", f"DimSize = {' '.join(map(str, SHAPE))}"]
    header += ["ElementSpacing = 4 4 4", "ElementType = MET_FLOAT", *lines]
    path.write_bytes("\n".join([*header, f"ElementDataFile = {data}\n"]).encode())
    if data == "LOCAL":
        path.write_bytes(path.read_bytes() + _voxels())


def _infer(scans, trained, out):
    main(["infer", str(scans), "-f", str(trained), "-s", f"output_dir={out}"])


def test_what_a_header_says_moves_no_result(trained, tmp_path):
    scans, out, home = tmp_path / "scans", tmp_path / "out", tmp_path / "home"
    scans.mkdir()
    home.mkdir()
    for name in ("a", "b"):
        (home / f"{name}.nii.gz").write_text("precious")
        away = f"/../../../home/{name}"
        keys = {"patch_index": away, "saved_to": f"{home}/{name}_x.nii.gz", "pixdim": "x"}
        if name == "a":
            _nrrd(scans / "a.nrrd", *(f"{key}:={value}" for key, value in keys.items()))
        else:
            _mha(scans / "b.mha", *(f"{key} = {value}" for key, value in keys.items()))
        said = LoadImage("ITKReader")(next(scans.glob(f"{name}.*"))).meta
        assert said["patch_index"] == away  # MONAI's reader passes it on
    _infer(scans, trained, out)
    assert sorted(path.name for path in home.iterdir()) == ["a.nii.gz", "b.nii.gz"]
    assert {path.read_text() for path in home.iterdir()} == {"precious"}
    for name in ("a", "b"):
        assert nib.load(out / name / f"{name}_anomaly.nii.gz").shape == SHAPE
        assert (out / name / f"{name}_findings.json").is_file()


def test_an_index_that_is_text_is_not_part_of_a_path(tmp_path):
    """A pipeline of others loads with MONAI's own transform, which keeps what the header says."""
    _nrrd(tmp_path / "a.nrrd", "patch_index:=/../../away")
    image = LoadImage("ITKReader", ensure_channel_first=True)(tmp_path / "a.nrrd")
    save = SaveVolumed(keys="image", output_dir=tmp_path / "out/deep", print_log=False)
    assert "patch_index must be a number, got '/../../away'" in refusal(save, {"image": image})
    assert not list(tmp_path.rglob("away*"))


def test_results_of_a_scan_outside_the_root_are_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for file in (tmp_path / "a.nii.gz", root / "..b.nii.gz"):
        nib.save(nib.Nifti1Image(np.random.default_rng(0).random(SHAPE), np.eye(4)), file)
    save = SaveVolumed("image", output_dir=tmp_path / "out", data_root_dir=root, print_log=False)
    outside = {"image": LoadVolume()(tmp_path / "a.nii.gz")}
    assert f"a scan must lie below data_root_dir {root}" in refusal(save, outside)
    save({"image": LoadVolume()(root / "..b.nii.gz")})
    assert [path.name for path in (tmp_path / "out").rglob("*.nii.gz")] == ["..b_trans.nii.gz"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.raw", "a/../../x", "C:\\x", "\\\\h\\x"])
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("listed", [False, True])
def test_voxels_lie_in_the_scans_folder(name, suffix, listed, tmp_path):
    file = tmp_path / f"a{suffix}"
    field = f"LIST\ninside.raw\n{name}" if listed else name
    if suffix in (".nrrd", ".nhdr"):
        _nrrd(file, f"data file: {field}")
    else:
        _mha(file, data=field)
    assert refusal(LoadVolume(), file) == f"{file}: its voxels must lie in its folder, got {name!r}"


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_voxels_beside_a_header_are_read(suffix, tmp_path):
    (tmp_path / "a.raw").write_bytes(_voxels())
    if suffix == ".nhdr":
        _nrrd(tmp_path / "a.nhdr", "data file: a.raw")
    else:
        _mha(tmp_path / "a.mhd", data="a.raw")
    image = LoadVolume()(tmp_path / f"a{suffix}")
    values = np.frombuffer(_voxels(), np.float32).reshape(SHAPE, order="F")
    assert np.array_equal(image[0].numpy(), values)


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_line_ends_hide_no_field(end, tmp_path):
    file = tmp_path / "a.nhdr"
    _nrrd(file, "data file: ../x")
    file.write_bytes(file.read_bytes().replace(b"\n", end.encode()))
    assert "its voxels must lie in its folder" in refusal(LoadVolume(), file)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_header_without_end_is_refused(suffix, tmp_path):
    file = tmp_path / f"a{suffix}"
    lines = ["# " + " " * 98] * 20_000 + ["data file: ../x"]
    if suffix == ".nrrd":
        _nrrd(file, *lines)
    else:
        _mha(file, *(f"c{i} = {'x' * 98}" for i in range(20_000)), data="../x")
    assert refusal(LoadVolume(), file) == f"{file}: the header must end within 1 MB"


def test_blanks_in_a_header_cost_no_time(tmp_path):
    """A search that went back over them would take the better part of an hour."""
    file = tmp_path / "a.nrrd"
    file.write_bytes(f"NRRD0004\nspace: x{' ' * 900_000}y z\n\n".encode())
    assert "space must be one that NRRD defines" in refusal(LoadVolume(), file)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ImageOrientationPatient", None, "ImageOrientationPatient must have 6 values, got 0"),
        ("ImageOrientationPatient", [1, 0, 0], "ImageOrientationPatient must have 6 values, got 3"),
        ("ImagePositionPatient", [1, 0], "ImagePositionPatient must have 3 values, got 2"),
        ("PixelSpacing", [1, 1, 1], "PixelSpacing must have 2 values, got 3"),
        ("Rows", [12, 12], "Rows must have 1 values, got 2"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*nvImageCodec", "ignore:The value length")
def test_broken_dicom_headers_are_refused(name, value, message, tmp_path):
    folder = tmp_path / "series"
    write_series(folder, np.random.default_rng(0).integers(1, 1000, (12, 9, 8)))
    for file, dataset in headers(folder):
        setattr(dataset, name, value)
        dataset.save_as(file)
    assert message in refusal(LoadVolume(), folder)


@pytest.mark.parametrize(
    ("offset", "kind", "value"), [(42, "<i2", -5), (108, "<f4", 1e38), (280, "<f4", np.nan)]
)
def test_damaged_results_are_refused(offset, kind, value, tmp_path):
    """Numbers of a NIfTI header: a size, where the voxels begin, and the matrix."""
    file = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.eye(4)), file)
    raw = bytearray(file.read_bytes())
    raw[offset : offset + np.dtype(kind).itemsize] = np.array(value, kind).tobytes()
    file.write_bytes(raw)
    seen = refusal(subject_volume, {"image": file, "anomaly": file}, "anomaly")
    assert seen.startswith(f"anomaly must be a readable volume, got {file}")


# Folders


def test_an_item_of_a_data_set_sets_nothing(cohort, tmp_path):
    shutil.copy(cohort / "test/images/test_000.nii.gz", tmp_path)
    said = {"false_positive_rate": 0.1, "scan_check": {}, "pred_mask": "x", "saved_to": "/x"}
    item = {"image": "test_000.nii.gz"} | said
    (tmp_path / "dataset.json").write_text(json.dumps({"test": [item]}))
    assert datalist(tmp_path, "test") == [{"image": str(tmp_path / "test_000.nii.gz")}]


@pytest.fixture
def linked(trained, cohort, tmp_path):
    """A stranger's model folder, and a function that plants a link in it to a file of the user."""
    model, home = tmp_path / "model", tmp_path / "home"
    shutil.copytree(trained / "models", model / "models")
    home.mkdir()

    def plant(link, name):
        (home / name).write_text("precious")
        (model / link).parent.mkdir(parents=True, exist_ok=True)
        (model / link).symlink_to(home / name)

    return model, home, plant


@pytest.mark.slow
def test_no_link_is_written_through(linked, cohort):
    """Also not where a file lay until it was complete, in releases that could be foreseen."""
    model, home, plant = linked
    scan = cohort / "test/images/test_000.nii.gz"
    plant("models/.model.json.partial", "1")
    plant("models/model.json.partial", "2")
    for number, name in enumerate(("mask.nii.gz", "anomaly.nii.gz", "findings.json")):
        plant(f"output/test_000/.partial.test_000_{name}", f"a{number}")
        plant(f"output/test_000/test_000_{name}", f"b{number}")
    plant("output/report/report.html", "3")
    main(["calibrate", str(cohort), "-f", str(model)])
    main(["infer", str(scan), "-f", str(model)])
    assert {path.read_text() for path in home.iterdir()} == {"precious"}
    assert not (model / "output/test_000/test_000_mask.nii.gz").is_symlink()


@pytest.mark.slow
def test_no_folder_behind_a_link_is_cleared(linked, cohort, capsys):
    model, home, _ = linked
    (home / "2024-holiday.png").write_text("precious")
    (model / "output/report").mkdir(parents=True)
    (model / "output/report/figures").symlink_to(home)
    scan = cohort / "test/images/test_000.nii.gz"
    seen = refusal(main, ["infer", str(scan), "-f", str(model)])
    assert "must be a folder, whose files are replaced, got a link" in seen
    assert (home / "2024-holiday.png").read_text() == "precious"


def test_a_files_name_commands_no_terminal(cohort, trained, tmp_path, capsys):
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    for number in range(2):
        shutil.copy(cohort / f"train/train_00{number}.nii.gz", data / "train")
    (data / "train" / f"bad{COMMANDS}.nii.gz").write_text("junk")
    with pytest.raises(SystemExit):
        main(["check", str(data)])
    assert "bad?]0;PWNED??[31m.nii.gz" in capsys.readouterr().out

    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(cohort / "test/images/test_000.nii.gz", scans)
    _infer(scans, trained, tmp_path / "out")
    shutil.copy(cohort / "test/images/test_001.nii.gz", scans / f"x{COMMANDS}.nii.gz")
    capsys.readouterr()
    main(["report", str(scans), "--results", str(tmp_path / "out")])
    seen = capsys.readouterr().out
    assert "x?]0;PWNED" in seen
    assert "\x1b]" not in seen


def test_a_spreadsheet_runs_no_name():
    rows = [["=1+1", "+1 2", "-cmd", "@x", "\t=1", "-", "-1.5", "-3e-7", "a=b", -2.5]]
    cells = as_csv(["=x"] * 10, rows).splitlines()
    assert cells[0].split(",")[0] == "'=x"
    assert cells[1] == "'=1+1,'+1 2,'-cmd,'@x,'\t=1,-,-1.5,-3e-7,a=b,-2.5"
