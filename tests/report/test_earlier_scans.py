"""Inferences of other scans into one folder: one report of all that belong together."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from monai_dpmm.report.environment import environment
from monai_dpmm.report.saved_findings import SavedScan
from monai_dpmm.report.saved_results import report_measured

SETTINGS = {"model": "m/model.pt", "model_digest": "0" * 64, "false_positive_volume_ml": 2.0}
FINDINGS = {"threshold": 0.3, "false_positive_rate": None, "false_positive_volume_ml": 2.0}


def _results(output, name, peak=0.6):
    """Results of a scan, below output/NAME, and the scan beside them."""
    folder = output / name
    folder.mkdir(parents=True, exist_ok=True)
    stem, affine = name.rpartition("/")[2], np.diag([4.0, 4, 4, 1])
    scores = np.full((12, 12, 6), 0.1, np.float32)
    scores[4:6, 4:6, 2:4] = peak
    volumes = {"anomaly": scores, "mask": (scores > 0.3) * 1, "component": (scores > 0) * 1}
    files = {}
    for end, voxels in volumes.items():
        files[end] = folder / f"{stem}_{end}.nii.gz"
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), files[end])
    image = output.parent / f"{name.replace('/', '-')}-of/{stem}.nii.gz"
    image.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(1000 * scores, affine), image)
    files["findings"] = folder / f"{stem}_findings.json"
    found = FINDINGS | {"score": peak, "mask_volume_ml": 0.5, "lesions": []}
    files["findings"].write_text(json.dumps(found))
    return SavedScan(str(image), None, files)


def _run(output, *names, left_out=(), metrics=None, peak=0.6, **settings):
    """A run over scans."""
    scans = [_results(output, name, peak) for name in names]
    subjects = [
        {"name": name, "score": peak, "threshold": 0.3, "metrics": {}}
        for name in (name.rpartition("/")[2] for name in names)
    ]
    measured = {"metrics": metrics or {}, "intervals": {}, "history": None, "subjects": subjects}
    measured |= {"left_out": list(left_out), "environment": environment()}
    measured["settings"] = SETTINGS | {"data": "data of " + " ".join(names)} | settings
    return report_measured(scans, output / "report", measured)


def _report(output, folder="report"):
    return json.loads((output / folder / "metrics.json").read_text())


def _names(output, folder="report"):
    return [subject["name"] for subject in _report(output, folder)["subjects"]]


def _missing(folder):
    """Addresses on a page that lead nowhere."""
    page = (folder / "report.html").read_text()
    found = set(re.findall(r'(?:src|href)="((?:figures|viewers)/[^"#]+)"', page))
    assert found
    return [address for address in found if not (folder / address).is_file()]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "output"


def test_two_runs_give_one_report_and_nothing_is_drawn_again(output, capsys):
    _run(output, "a", "b", peak=0.5)
    drawn = {p.name: p.stat().st_ino for p in (output / "report/figures").iterdir()}
    _run(output, "c", peak=0.6)
    assert _names(output) == ["c", "a", "b"]  # the highest score first
    now = {p.name: p.stat().st_ino for p in (output / "report/figures").iterdir()}
    assert drawn.items() <= now.items()
    assert len(now) == 3
    assert _missing(output / "report") == []
    report = _report(output)
    assert report["settings"]["data"] == "data of a b, data of c"
    numbers = [subject["number"] for subject in report["subjects"]]
    page = (output / "report/report.html").read_text()
    for subject, number in zip(report["subjects"], numbers, strict=True):
        viewer = (output / "report" / subject["viewer"]).read_text()
        assert f"report.html#subject-{number}" in viewer
        assert page.count(f'id="subject-{number}"') == 1
    order = (output / "report/viewers/scans.js").read_text()
    assert re.findall(r"-([abc])\.html", order) == ["c", "a", "b"]
    assert "The report has 2 scans of earlier runs, too" in capsys.readouterr().out
    assert not list(output.glob(".*"))


def test_a_scan_that_is_done_again_takes_the_place_of_its_own(output):
    _run(output, "a", "b", peak=0.5)
    _run(output, "b", peak=0.7)
    _run(output, "a", "b", peak=0.7)
    assert [s["score"] for s in _report(output)["subjects"]] == [0.7, 0.7]
    assert len(list((output / "report/figures").iterdir())) == 2
    assert _report(output)["settings"]["data"] == "data of a b, data of b"


def test_scans_of_one_name_have_their_folders_names(output):
    _run(output, "anna/scan")
    _run(output, "ben/scan")
    assert sorted(_names(output)) == ["ben/scan", "scan"]
    assert _missing(output / "report") == []


def test_the_scale_of_colours_stays_where_it_serves(output):
    _run(output, "a", peak=0.6)
    heat = _report(output)["heat"]
    _run(output, "b", peak=0.5)
    _run(output, "c", peak=0.95)  # above it: on a scale of its own, and said so
    assert _report(output)["heat"] == heat
    pages = {p.name[4:5]: p.read_text() for p in (output / "report/viewers").glob("*.html")}
    ends = {name: re.search(r'"heat": ?\[[^]]*\]', text)[0] for name, text in pages.items()}
    assert ends["a"] == ends["b"] != ends["c"]


@pytest.mark.parametrize(
    "other",
    [
        {"model_digest": "1" * 64},
        {"model_settings": {"smoothing_mm": 5}},
        {"false_positive_volume_ml": 5.0},
    ],
)
def test_another_model_or_setting_moves_the_report_aside(output, other, capsys):
    _run(output, "a", "b")
    _run(output, "c", **other)
    assert (_names(output), sorted(_names(output, "report-1"))) == (["c"], ["a", "b"])
    assert _missing(output / "report") == _missing(output / "report-1") == []
    assert f"report that was there before: {output / 'report-1'}" in capsys.readouterr().out


def test_the_same_scans_by_another_setting_replace_the_report(output):
    _run(output, "a", "b")
    _run(output, "a", "b", model_digest="1" * 64)
    assert sorted(_names(output)) == ["a", "b"]
    assert not (output / "report-1").exists()


def test_a_report_with_metrics_is_not_joined(output):
    _run(output, "a", metrics={"pixel_auroc": 0.9})
    _run(output, "b")
    assert (_names(output), _names(output, "report-1")) == (["b"], ["a"])
    _run(output, "c", metrics={"pixel_auroc": 0.8})
    assert (_names(output), _names(output, "report-2")) == (["c"], ["b"])


def test_scans_whose_results_are_gone_or_others_leave_the_report(output, capsys):
    _run(output, "a", "b", "c", "d")
    shutil.rmtree(output / "a")
    file = output / "b/b_findings.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"score": 0.1}))
    next((output / "report/figures").glob("*-c.png")).unlink()
    _run(output, "e")
    assert sorted(_names(output)) == ["d", "e"]
    assert _missing(output / "report") == []
    assert "3 scans of it whose results or figures are gone" in capsys.readouterr().out


def test_lines_of_scans_that_were_left_out_stay_until_they_are_read_or_gone(output, tmp_path):
    paths = {name: tmp_path / f"{name}.nii" for name in "xyz"}
    for path in paths.values():
        path.write_text("broken")
    _run(output, "a", left_out=[f"{path}: must be a scan" for path in paths.values()])
    paths["x"].unlink()
    _run(output, "b", left_out=[f"{paths['y']}: is still none"])
    lines = _report(output)["left_out"]
    assert lines == [f"{paths['z']}: must be a scan", f"{paths['y']}: is still none"]
    assert "2 left out" in (output / "report/report.html").read_text()


def test_runs_that_read_no_scan_are_joined(output, tmp_path):
    (tmp_path / "x.nii").write_text("broken")
    none = dict.fromkeys(("false_positive_volume_ml",))
    _run(output, left_out=[f"{tmp_path / 'x.nii'}: must be a scan"], **none)
    _run(output, "a")
    assert len(_report(output)["left_out"]) == 1
    _run(output, left_out=[f"{tmp_path / 'x.nii'}: must be a scan"], **none)
    assert _names(output) == ["a"]


def test_a_run_that_was_killed_while_it_drew_loses_nothing_of_the_others(output, monkeypatch):
    _run(output, "a", "b")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("monai_dpmm.report.saved_results.write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            _run(output, "c")
    assert not (output / "report/report.html").exists()
    _run(output, "d")
    assert sorted(_names(output)) == ["a", "b", "d"]
    _run(output, "c")
    assert sorted(_names(output)) == ["a", "b", "c", "d"]
    assert _missing(output / "report") == []


@pytest.mark.parametrize(
    "change",
    [
        {"results": "../../a/a_findings.json"},
        {"results": "/etc/passwd"},
        {"results": None},
        {"figure": "../secret.png"},
        {"figure": "figures/../../001-a.png"},
        {"figure": 5},
        {"viewer": "viewers/niivue.js"},
        {"figure_size": ["<b>", 1]},
        {"figure_size": None},
        {"score": "<script>"},
        {"rows": [{"rank": 1}]},
        {"rows": 5},
        {"verdict": None},
        {"found": "1"},
        {"marked": 10**400},
    ],
)
def test_a_record_of_a_stranger_is_left_out(change, output):
    _run(output, "a", "b")
    file = output / "report/metrics.json"
    report = json.loads(file.read_text())
    (one,) = (subject for subject in report["subjects"] if subject["name"] == "a")
    one.update(change)
    file.write_text(json.dumps(report))
    _run(output, "c")
    assert sorted(_names(output)) == ["b", "c"]
    assert "<script>" not in (output / "report/metrics.json").read_text()


def test_text_of_a_stranger_is_text(output):
    _run(output, "a")
    file = output / "report/metrics.json"
    report = json.loads(file.read_text())
    evil = "<script>alert(1)</script>\x1b]0;owned\x07"
    report["subjects"][0] |= {"name": evil, "sentence": evil, "unit": evil, "verdict": [evil]}
    report["left_out"] = [f"{file}: {evil}"]
    report["heat"] = evil
    file.write_text(json.dumps(report))
    _run(output, "b")
    page = (output / "report/report.html").read_text()
    assert "&lt;script&gt;alert" in page
    assert "<script>alert" not in page
    assert "\x1b" not in page


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"subjects": 5}', "{}"])
def test_what_is_no_report_is_replaced(text, output):
    (output / "report").mkdir(parents=True)
    (output / "report/metrics.json").write_text(text)
    _run(output, "a")
    assert _names(output) == ["a"]


def test_a_link_is_no_figure(output, tmp_path):
    _run(output, "a", "b")
    figure = next((output / "report/figures").glob("*-a.png"))
    secret = tmp_path / "secret.png"
    figure.rename(secret)
    figure.symlink_to(secret)
    _run(output, "c")
    assert sorted(_names(output)) == ["b", "c"]
    assert secret.exists()
