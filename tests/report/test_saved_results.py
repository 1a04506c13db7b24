"""Reports of results on disk: as the run itself wrote them, and of no others."""

import json
import re
import shutil

import pytest
from workflows import run_bundle

from monai_dpmm.app.cli import main
from monai_dpmm.errors import InputError
from monai_dpmm.report.saved_results import rewrite_report

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

UUID = re.compile(r"[0-9a-f]{32}")


@pytest.fixture(scope="module")
def evaluated(trained, cohort, tmp_path_factory):
    """Results of an evaluation, with its report; leave them as they are."""
    results = tmp_path_factory.mktemp("evaluated")
    shutil.copy(trained / "output/history.json", results)
    configs = ["inference", str(trained / "models/model.json"), "evaluate"]
    options = {"bundle_root": trained, "dataset_dir": cohort, "output_dir": results}
    run_bundle("run", configs, **options, bootstrap=20)
    return results


@pytest.fixture(scope="module")
def inferred(trained, cohort, tmp_path_factory):
    """Results of an inference, with its report; leave them as they are."""
    results = tmp_path_factory.mktemp("inferred")
    configs = ["inference", str(trained / "models/model.json")]
    options = {"bundle_root": trained, "dataset_dir": cohort, "output_dir": results}
    run_bundle("run", configs, **options, output_ext=".nrrd")
    return results


@pytest.fixture
def results(evaluated, tmp_path):
    """A copy to change."""
    return shutil.copytree(evaluated, tmp_path / "results")


def _files(folder):
    """Contents by name; a viewer has ids of its own in every writing."""
    files = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {
        name: UUID.sub("id", content.decode()) if name.parent.name == "viewers" else content
        for name, content in files.items()
    }


def _report(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_of_an_evaluation_nothing_is_measured_again(
    evaluated, cohort, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("monai_dpmm.metrics.anomaly_metrics.AnomalyMetrics.__init__", None)
    main(["report", str(cohort), "--results", str(evaluated), "-o", str(tmp_path / "new")])
    shown = capsys.readouterr().out
    value = _report(evaluated / "report")["metrics"]["pixel_auroc"]
    assert re.search(rf"^pixel_auroc +{value:.4f} +\[", shown, re.MULTILINE)
    assert shown.splitlines()[-1] == f"Report: {tmp_path / 'new/report.html'}"


def test_prototypes_keep_their_colours(results, cohort):
    (colors,) = {tuple(_report(results / "report")["prototype_colors"])}
    assert colors
    assert all(re.fullmatch("([0-9a-f]{6} ?)*", text) for text in colors)
    report = json.loads((results / "report/metrics.json").read_text())
    report["prototype_colors"] = ["red"]
    (results / "report/metrics.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match=r"metrics\.json: must be .* colours must be written as"):
        rewrite_report(cohort, results)


def test_the_report_is_replaced_in_its_place(results, cohort):
    before = _files(results)
    (results / "report/report.html").unlink()
    rewrite_report(cohort, results)
    assert _files(results) == before


def test_other_slices_are_shown_where_they_are_asked_for(evaluated, cohort, tmp_path):
    folder, options = tmp_path / "new", ["--axis", "0", "--slices", "3"]
    main(["report", str(cohort), "--results", str(evaluated), "-o", str(folder), *options])
    old, new = _report(evaluated / "report"), _report(folder)
    assert new["metrics"] == old["metrics"]
    for one, other in zip(new["subjects"], old["subjects"], strict=True):
        (width, height), (old_width, old_height) = one["figure_size"], other["figure_size"]
        assert height / width > 1.2 * old_height / old_width  # which may show a lesion's slice, too


def test_results_are_looked_for_in_the_models_folder(results, cohort, tmp_path):
    results.rename(tmp_path / "output")
    before = _files(tmp_path / "output/report")
    main(["report", str(cohort), "-f", str(tmp_path)])
    assert _files(tmp_path / "output/report") == before


def test_without_an_earlier_report_what_is_known_is_told(results, cohort):
    old = _report(results / "report")
    shutil.rmtree(results / "report")
    rewrite_report(cohort, results)
    new = _report(results / "report")
    assert new["metrics"] == {}
    assert new["settings"] == {"false_positive_volume_ml": 2.0}
    assert new["history"] == old["history"]
    for one, other in zip(new["subjects"], old["subjects"], strict=True):
        assert one == {**other, "metrics": {}}


def test_a_scan_without_results_is_left_out_and_named(results, cohort, capsys):
    gone = results / "test/images/test_001/test_001_mask.nii.gz"
    gone.unlink()
    rewrite_report(cohort, results, results / "new")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The pooled metrics are those of other scans or results, and left out"
    assert lines[-1] == f"Left out, 1 of 3 scans have no: {gone}"
    old, new = _report(results / "report"), _report(results / "new")
    assert (new["metrics"], new["intervals"]) == ({}, {})
    kept = {subject["name"]: subject["metrics"] for subject in old["subjects"]}
    assert len(new["subjects"]) == 2
    for subject in new["subjects"]:
        assert subject["metrics"] == kept[subject["name"]] != {}


def test_metrics_of_other_results_are_not_told(results, cohort):
    """Another model has run since: its scores are others."""
    file = results / "test/images/test_002/test_002_findings.json"
    findings = json.loads(file.read_text())
    file.write_text(json.dumps({**findings, "score": findings["score"] + 0.1}))
    rewrite_report(cohort, results, results / "new")
    new = _report(results / "new")
    assert new["metrics"] == {}
    assert [s["name"] for s in new["subjects"] if not s["metrics"]] == ["test_002"]


def test_a_pattern_chooses_scans(results, cohort, capsys):
    options = ["--results", str(results), "-o", str(results / "new"), "--pattern", "*_00[02]*"]
    main(["report", str(cohort), *options])
    assert {s["name"] for s in _report(results / "new")["subjects"]} == {"test_000", "test_002"}
    assert "Left out" not in capsys.readouterr().out


def test_without_results_it_is_an_error(cohort, tmp_path):
    with pytest.raises(
        InputError, match=r"none: must hold results of a scan .* got none of 3: there"
    ):
        rewrite_report(cohort, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("report/metrics.json", "{", r"metrics\.json: must be the metrics\.json of a report"),
        ("report/metrics.json", "{}", "KeyError"),
        ("report/metrics.json", "[1]", "values by name are needed, got list"),
        ("report/metrics.json", "[" * 100_000, "it is nested too deeply"),
        ("test/images/test_000/test_000_findings.json", '{"score": 1}', "must be the findings"),
        ("test/images/test_000/test_000_findings.json", '{"score": "<b>"}', "must be the findings"),
        (
            "report/metrics.json",
            f'{{"subjects": [], "metrics": {{"a": {10**400}}}}}',
            "metrics.json of a report",
        ),
    ],
)
def test_broken_files_are_refused(name, text, message, results, cohort):
    (results / name).write_text(text)
    with pytest.raises(InputError, match=message):
        rewrite_report(cohort, results)


@pytest.mark.parametrize(
    "text",
    ['{"epoch": 1}', '[{"epoch": "<b>"}]', '[{"epoch": "1.5"}]', "[1]", f'[{{"a": {10**400}}}]'],
)
def test_a_broken_history_is_refused(text, results, cohort):
    shutil.rmtree(results / "report")
    (results / "history.json").write_text(text)
    with pytest.raises(InputError, match=r"history\.json: must be a training's history"):
        rewrite_report(cohort, results)


@pytest.mark.parametrize("part", ["metrics", "intervals"])
def test_text_in_place_of_a_number_is_refused(part, results, cohort):
    file = results / "report/metrics.json"
    report = json.loads(file.read_text())
    report[part] = {"pixel_auroc": ["<script>"] * 2}
    file.write_text(json.dumps(report))
    with pytest.raises(InputError, match="a number is needed"):
        rewrite_report(cohort, results)


def test_text_of_a_stranger_is_no_markup_and_no_command(results, cohort, capsys):
    file = results / "report/metrics.json"
    report = json.loads(file.read_text())
    evil = "<script>alert(1)</script>\x1b]0;owned\x07"
    report["settings"] = {evil: evil, "protocol": evil}
    report["environment"] = {evil: evil}
    report["metrics"][evil] = 0.5
    report["subjects"][0]["metrics"][evil] = evil
    file.write_text(json.dumps(report))
    rewrite_report(cohort, results)
    page = (results / "report/report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "\x1b" not in capsys.readouterr().out


def test_the_format_written_last_counts(inferred, cohort, tmp_path):
    results = shutil.copytree(inferred, tmp_path / "results")
    for name in ("anomaly", "mask", "component"):
        (results / f"test/images/test_000/test_000_{name}.mha").write_text("newer, and broken")
    with pytest.raises(ValueError, match=r"test_000_anomaly\.mha"):
        rewrite_report(cohort, results)
