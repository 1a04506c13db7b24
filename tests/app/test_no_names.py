"""No patient's name and no UID is printed or written, but into DICOM results, whatever is wrong."""

import re

import numpy as np
import pytest
from dicom_files import headers, write_series

from monai_dpmm.app.cli import main
from monai_dpmm.errors import expected_error

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

UID = "1.2.826.0.1.424242"
SECRET = re.compile(rb"(?i)sesame|hidden4711|19010203|1\.2\.826\.0\.1\.424242")


def _series(folder, number):
    volume = np.random.default_rng(number).integers(1, 900, (24, 20, 12))
    write_series(folder, volume, spacing=(5.0, 5.0, 5.0), series=f"{UID}.{number}.7")
    for file, data in headers(folder):
        data.PatientName, data.PatientID = "Sesame^Zaphod", "hidden4711"
        data.PatientBirthDate, data.AccessionNumber = "19010203", "hidden4711"
        data.ReferringPhysicianName = data.InstitutionName = "Sesame"
        data.SeriesDescription = data.StudyDescription = data.PatientComments = "Sesame"
        data.StudyInstanceUID, data.FrameOfReferenceUID = f"{UID}.{number}.1", f"{UID}.{number}.2"
        data.SOPInstanceUID = f"{UID}.{number}.3.{data.InstanceNumber}"
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.save_as(file, enforce_file_format=True)
    return [file for file, _ in headers(folder)]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A good series, and each thing that goes wrong with one."""
    root = tmp_path_factory.mktemp("names") / "scans"
    _series(root / "good", 1)
    _series(root / "gap", 2)[4].unlink()
    cut = _series(root / "cut", 3)[5]
    cut.write_bytes(cut.read_bytes()[:700])
    twice = _series(root / "twice", 4)[3]
    (root / "twice/copy.dcm").write_bytes(twice.read_bytes())
    for name, number, change in (
        ("sizes", 5, lambda data, index: setattr(data, "Rows", data.Rows - (index == 3))),
        ("values", 6, lambda data, _: data.add_new(0x00101010, "AS", "Sesame is of no age")),
        ("mixed", 7, lambda d, index: setattr(d, "SeriesInstanceUID", f"{UID}.7.{7 + index % 2}")),
        ("pictureless", 8, lambda data, _: data.__delattr__("PixelData")),
    ):
        _series(root / name, number)
        for index, (file, data) in enumerate(headers(root / name)):
            change(data, index)
            data.save_as(file)
    return root


@pytest.mark.parametrize("option", [[], ["-v"], ["-q"]])
def test_infer(scans, trained, tmp_path, capfd, option):
    output = tmp_path / "out"
    arguments = ["infer", str(scans), "-f", str(trained), "--output", str(output), *option]
    with pytest.raises(RuntimeError) as error:  # MONAI's, around ours
        main(arguments)
    shown = "".join(capfd.readouterr()) + str(expected_error(error.value))
    assert "5 of 9 scans were skipped" in shown
    assert "gap: must be one DICOM series" in shown
    assert not SECRET.search(shown.encode())
    files = [file for file in output.rglob("*") if file.is_file()]
    assert any(file.name == "report.html" for file in files)
    assert [
        f for f in files if SECRET.search(f.read_bytes()) or SECRET.search(str(f).encode())
    ] == []


def test_check(scans, capfd):
    with pytest.raises(SystemExit, match="1"):
        main(["check", str(scans)])
    shown = "".join(capfd.readouterr())
    assert "cut" in shown
    assert not SECRET.search(shown.encode())
