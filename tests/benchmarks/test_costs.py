"""The costs of a machine as one dictionary and one table."""

import json

import pytest
import torch
from costs import costs_table, main
from workload import StepSize

from monai_dpmm.errors import InputError, expected_error

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

SMALL = [
    *("--patches", "300", "--features", "16", "--components", "12", "--repeats", "1"),
    *("--backbone", "efficientnet_lite0", "--image-size", "48", "--images", "2", "--device", "cpu"),
]


def _run(capsys, tmp_path, *options):
    file = tmp_path / "costs.json"
    main([*map(str, options), *SMALL, "--json", str(file)])
    return json.loads(file.read_text()), capsys.readouterr().out


def test_without_a_scan_there_are_two_costs(capsys, tmp_path):
    found, shown = _run(capsys, tmp_path, "--threads", torch.get_num_threads())
    assert list(found) == [
        *("environment", "device", "threads", "repeats", "step", "scoring", "volume")
    ]
    assert StepSize(*(found["step"][name] for name in StepSize._fields)) == StepSize(300, 16, 12)
    assert found["scoring"]["weights"] == "random"
    assert found["volume"] is None
    assert "One volume: not timed, no scan was given" in shown
    assert "efficientnet_lite0 with random weights" in shown
    assert f"Processor: {found['environment']['processor']}" in shown
    assert f"{found['step']['ratio']:.2f}\n" in shown
    assert f"{100 * found['scoring']['share']:.2f} %\n" in shown


def test_of_a_scan_and_a_model_the_stages_are_told(trained, cohort, capsys, tmp_path):
    scans = cohort / "test/images"
    before = sorted(trained.rglob("*"))
    found, shown = _run(capsys, tmp_path, scans, "-f", trained)
    assert found["volume"]["scan"] == str(scans / "test_000.nii.gz")  # the first of them
    assert sorted(trained.rglob("*")) == before  # its results are not kept
    table = shown.split("One volume: ")[1].splitlines()
    for line, (name, share) in zip(table[1:], found["volume"]["shares"].items(), strict=False):
        assert line.split() == [*name.split(), f"{100 * share:.1f}", "%"]
    assert table[-1].endswith(f"{found['volume']['to_embedding']:.2f}")


def test_times_of_a_cpu_are_not_told(capsys, tmp_path):
    found, shown = _run(capsys, tmp_path)
    assert "_ms" not in json.dumps(found)
    assert " ms" not in shown


def test_times_of_a_gpu_are_told():
    found = {
        "environment": dict.fromkeys(("date", "python", "torch", "monai", "processor"), "x"),
        "device": "cuda",
        "threads": 1,
        "repeats": 3,
        "step": {**StepSize()._asdict(), "ratio": 1.5, "memory_mb": None, "input_mb": 18.9},
        "scoring": {"backbone": "b", "image_size": 8, "images": 1, "share": 0.01},
        "volume": {"scan": "s\x1b[31m", "shares": {"load": 1.0}, "to_embedding": 1.25},
    }
    found["environment"]["gpu"] = "Some GPU"
    found["step"]["step_ms"], found["scoring"]["forward_ms"] = 1.25, 20
    found["volume"]["total_ms"] = 345.6
    text = costs_table(found)
    assert "Measured on: Some GPU; medians over 3 repeats" in text
    for name, value in (("time, ms", "1.25"), ("forward pass, ms", "20.00"), ("all", "345.60")):
        assert [line for line in text.splitlines() if name in line and line.endswith(value)]
    assert "unknown" in text  # the memory
    assert "\x1b" not in text


@pytest.mark.parametrize("missing", ["model", "scan"])
def test_what_a_volume_needs_is_asked_for_first(missing, trained, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("costs.step_cost", None)  # nothing is measured
    folder = tmp_path if missing == "model" else trained
    scan = tmp_path / "none" if missing == "scan" else cohort / "test/images/test_000.nii.gz"
    with pytest.raises(
        InputError, match=r"model\.pt: must exist|none: must be a data set's folder"
    ):
        main([str(scan), "-f", str(folder), *SMALL])


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, capsys):
    file = tmp_path / "none" / "costs.json"
    with pytest.raises(OSError, match=r"costs\.json: could not be written, No such file") as caught:
        main([*SMALL, "--json", str(file)])
    assert expected_error(caught.value) is caught.value
    assert "One EM step" in capsys.readouterr().out
