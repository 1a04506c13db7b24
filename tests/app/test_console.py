"""What a command prints: our own lines; no line of another package, no name and no UID."""

import json
import logging
import warnings

import pydicom
import pytest

from monai_dpmm.app.closing import calibration_summary, interruption_line, training_summary
from monai_dpmm.app.console import console
from monai_dpmm.errors import one_line_errors
from monai_dpmm.io import outliers


def _noise():
    print("our line")
    logging.getLogger("monai.engines").info("an engine's line")
    logging.getLogger("somebody").warning("Not all config files are there")
    logging.getLogger("monai_dpmm.io").warning("%s is damaged", "x")
    warnings.warn("third party", UserWarning, stacklevel=1)
    warnings.warn_explicit("of ours", UserWarning, outliers.__file__, 1)


def test_only_our_own_lines_and_warnings_are_printed(capsys):
    with console():
        _noise()
    shown = capsys.readouterr()
    assert shown.out == "our line\n"
    assert shown.err == "warning: x is damaged\nwarning: of ours\n"


def test_quiet_leaves_warnings_and_afterwards_all_is_as_before(capsys):
    before = logging.getLogger().handlers[:]
    with console(quiet=True):
        _noise()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "warning: x is damaged" in shown.err
    assert logging.getLogger().handlers == before
    assert logging.root.manager.disable == logging.NOTSET
    print("again")
    assert capsys.readouterr().out == "again\n"


def test_what_names_patients_is_never_heard(caplog):
    one_line_errors()
    with warnings.catch_warnings(record=True) as heard:
        one_line_errors()
        logging.getLogger("pydicom").warning("Patient Doe^John")
        data = pydicom.Dataset()
        data.PatientName = "Doe^John" * 20
        data.StudyInstanceUID = "1.2.840.not a UID"
    assert [str(w.message) for w in heard] == []
    assert caplog.text == ""


@pytest.fixture
def values(tmp_path):
    return {"bundle_root": str(tmp_path)}


def _there(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "output").mkdir()
    one = {"ml_per_scan": 2, "threshold": 1.2034, "mean_ml": 2.0, "findings_per_scan": 3.3}
    settings = {"volume_thresholds": [one | {"scans": 4}], "scan_reference": {"usage": []}}
    (tmp_path / "models/model.json").write_text(json.dumps(settings))
    history = [{"epoch": 1, "components": 90.0}, {"epoch": 2, "components": 88.0}]
    (tmp_path / "output/history.json").write_text(json.dumps(history))


def test_a_training_ends_with_its_model_its_threshold_and_the_next_command(values, tmp_path):
    _there(tmp_path)
    lines = training_summary(values, 61.4).splitlines()
    assert lines == [
        f"Model: {tmp_path / 'models/model.pt'} (88 prototypes, 61 s)",
        "Threshold: infer marks scores above 1.2; a healthy scan then has 2 ml and 3.3 false"
        " findings (mean of 4 held-back scans)",
        f"Next: monai-dpmm infer SCANS -f {tmp_path}",
    ]
    text = calibration_summary(values)
    assert lines[1] in text
    file = tmp_path / "models/model.json"
    left_out = {"healthy_scans": {"scores": [0.1] * 4, "left_out": 3}}
    file.write_text(json.dumps(json.loads(file.read_text()) | left_out))
    assert "(mean of 1 held-back scan and 3 left out)" in training_summary(values, 1)
    assert "infer warns of scans that are unlike the training data" in text


def test_an_interruption_says_how_to_go_on(values, tmp_path):
    assert "before an epoch was over" in interruption_line("train", values)
    _there(tmp_path)
    (tmp_path / "models/checkpoint.pt").write_text("")
    line = interruption_line("train", values)
    assert line == "interrupted after epoch 2; the same command with --resume goes on"
    (tmp_path / "output/a_findings.json").write_text("")
    assert "holds results of 1 scans" in interruption_line("infer", values)
    assert interruption_line("calibrate", values) == "interrupted"
