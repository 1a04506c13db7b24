"""The report that a run writes: its numbers are kept first, then the page is made of the files."""

import json
from types import SimpleNamespace

import pytest
import torch
from monai.data import MetaTensor

from monai_dpmm.errors import expected_error
from monai_dpmm.io.result_files import VOLUMES
from monai_dpmm.report import saved_results
from monai_dpmm.report.handler import ReportWriter, _direction, _shown

POINT = {"threshold": 0.3, "false_positive_rate": 0.01, "false_positive_volume_ml": None}


def _finished(writer, tmp_path, **metrics):
    """The writer, told of a run over one scan whose findings lie on disk."""
    findings = tmp_path / "a_findings.json"
    findings.write_text(json.dumps({"score": 0.5, **POINT}))
    saved = {f"pred_{k}": MetaTensor([0.0], meta={"saved_to": f"{k}.nii"}) for k in VOLUMES}
    image = MetaTensor([0.0], meta={"filename_or_obj": "a.nii.gz"})
    item = {"image": image, "score": 0.5, "threshold": POINT, "findings_path": str(findings)}
    engine = SimpleNamespace(state=SimpleNamespace(output=[item | saved], metrics=metrics))
    writer._collect(engine)
    writer(engine)


def _full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_line_and_the_numbers_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_results, "write_report", _full)
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.html").write_text("of the run before")
    with pytest.raises(
        OSError, match=r"report: could not be written, No space left on device$"
    ) as caught:
        _finished(ReportWriter(tmp_path / "report"), tmp_path, pixel_auroc=0.9)
    assert expected_error(caught.value) is caught.value
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["metrics.json"]
    kept = json.loads((tmp_path / "report/metrics.json").read_text())
    assert kept["metrics"] == {"pixel_auroc": 0.9}
    assert kept["settings"] == {"false_positive_rate": 0.01}
    (scan,) = kept["subjects"]
    assert scan == {"name": "a", "score": 0.5, "threshold": 0.3, "metrics": {}, "direction": 0}


def test_a_scan_knows_whose_prototypes_it_shows():
    mixtures = tuple(SimpleNamespace(fitted=fitted) for fitted in (False, True, True))
    engine = SimpleNamespace(
        network=SimpleNamespace(mixtures=mixtures), inferer=SimpleNamespace(axes=(2, 0, 1))
    )
    cube, thick = torch.eye(4), torch.diag(torch.tensor([9.0, 1.0, 9.0, 1.0]))
    image = torch.zeros(1, 20, 20, 20)
    assert _direction(engine, MetaTensor(image, affine=cube)) == 1  # the first that is fitted
    assert _direction(engine, MetaTensor(image, affine=thick)) == 2  # the only one that suits
    engine.inferer = object()  # of another package
    assert _direction(engine, MetaTensor(image, affine=cube)) == 0
    engine.network = object()
    assert _direction(engine, MetaTensor(image, affine=cube)) == 0


def test_the_table_counts_lesions_at_the_rate_of_the_mask_only():
    detail = {"name": "a", "score": 0.5, "auroc": 0.9, "lesions": 2}
    rates = ("0.01", "0.1")
    detail |= {f"{k}_at_fpr_{r}": 1 for r in rates for k in ("dice", "found", "false_positives")}
    assert list(_shown(detail, 0.1)) == [
        *("auroc", "lesions", "dice_at_fpr_0.01", "dice_at_fpr_0.1"),
        *("found_at_fpr_0.1", "false_positives_at_fpr_0.1"),
    ]
    assert list(_shown(detail, None)) == ["auroc", "lesions", "dice_at_fpr_0.01", "dice_at_fpr_0.1"]


def test_arguments_that_the_data_answer_are_deprecated(tmp_path):
    with pytest.deprecated_call(match="the threshold is among the data"):
        ReportWriter(tmp_path / "report", object(), 0.01)


def test_a_report_with_metrics_is_moved_aside_and_back_where_the_new_one_fails(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "metrics.json").write_text('{"metrics": {"pixel_auroc": 0.9}}')
    monkeypatch.setattr(saved_results, "write_report", _full)
    with pytest.raises(OSError, match="report: could not be written, No space left"):
        _finished(ReportWriter(folder), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["report"]
    assert "0.9" in (folder / "metrics.json").read_text()

    monkeypatch.setattr(saved_results, "write_report", lambda *_, **__: folder / "report.html")
    _finished(ReportWriter(folder), tmp_path)
    assert "0.9" in (tmp_path / "report-1/metrics.json").read_text()
    assert json.loads((folder / "metrics.json").read_text())["metrics"] == {}
    assert f"The report that was there before: {tmp_path / 'report-1'}" in (capsys.readouterr().out)
