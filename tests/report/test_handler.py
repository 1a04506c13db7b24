import errno

import pytest
from ignite.engine import Engine

from monai_dpmm.errors import expected_error
from monai_dpmm.report import handler as reporting
from monai_dpmm.report.handler import ReportWriter, _shown


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reporting, "write_report", full)
    writer = ReportWriter(tmp_path / "report")
    writer.subjects = [{"name": "a"}]
    with pytest.raises(
        OSError, match=r"report: could not be written, No space left on device$"
    ) as caught:
        writer(Engine(lambda engine, batch: None))
    assert expected_error(caught.value) is caught.value


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

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reporting, "write_report", full)
    with pytest.raises(OSError, match="report: could not be written, No space left"):
        reporting.publish_report(folder, [])
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert "0.9" in (folder / "metrics.json").read_text()

    monkeypatch.setattr(reporting, "write_report", lambda *args, **kwargs: folder / "report.html")
    reporting.publish_report(folder, [])
    assert [path.name for path in tmp_path.iterdir()] == ["report-1"]
    assert f"The report with metrics that was there: {tmp_path / 'report-1'}" in (
        capsys.readouterr().out
    )
