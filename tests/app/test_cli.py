"""Exit codes and lines of the commands, as their users meet them."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_series
from monai.bundle import ConfigParser
from workflows import SMALL

from monai_dpmm import __version__
from monai_dpmm.app import cli
from monai_dpmm.app.cli import configs_dir, main

INTERRUPTED = """\
import os, sys
from monai_dpmm.app import cli
from monai_dpmm.app.commands import bundled

def interrupted(names, **overrides):
    raise KeyboardInterrupt

bundled.run_workflow = interrupted
cli.main(sys.argv[1:])
"""

# a process in the background may have been told to ignore Ctrl-C
AT_A_TERMINAL = """\
import shutil
import signal
from monai_dpmm.app.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


def _run(*arguments, code=("-m", "monai_dpmm")):
    command = [sys.executable, *code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=False)


def _last_lines(text):
    """Lines without what libraries log."""
    return [line for line in text.splitlines() if " - INFO - " not in line and line][-1:]


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_names_the_commands(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for command in ("demo", "train", "calibrate", "evaluate", "infer", "score", "check", "report"):
        assert command in text


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(option, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([option])
    assert exit_.value.code == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "DATASET"),
        (["train", "x", "-s", "epochs"], "must be KEY=VALUE, got 'epochs'"),
        (["guess"], "invalid choice"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["train", "calibrate", "evaluate", "infer", "compare", "figures"]
)
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("-s", "imag_size=9", "got 'imag_size' (nearest: image_size"),
        ("-c", "stedy", "got 'stedy'"),
    ],
)
def test_what_does_not_exist_is_one_line_and_runs_nothing(
    command, option, value, message, tmp_path, capsys
):
    with pytest.raises(SystemExit) as exit_:
        main([command, str(tmp_path / "none"), "-f", str(tmp_path), option, value])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {option} must ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_a_problem_of_the_data_is_one_line_and_exits_with_1(tmp_path):
    (tmp_path / "scan.nii.gz").touch()
    result = _run("infer", tmp_path / "scan.nii.gz", "-f", tmp_path)
    assert result.returncode == 1
    (line,) = _last_lines(result.stderr)
    assert line.startswith("error: ")
    assert "must exist, there is no such file (train a model first)" in line
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "way"),
    [
        (["benchmark", "scan.nii.gz", "--threads", "1"], "python benchmarks/costs.py SCAN -f"),
        (["completion", "bash"], "shtab --shell bash monai_dpmm.app.cli.command_parser"),
    ],
)
def test_a_command_that_moved_names_the_new_way(arguments, way, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {arguments[0]} is ")
    assert way in line


@pytest.mark.slow
def test_a_refused_scan_does_not_stop_the_others_and_exits_with_1(trained, cohort, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "a.nii.gz").write_bytes((cohort / "test/images/test_000.nii.gz").read_bytes())
    (scans / "b.nii.gz").write_text("no scan")
    result = _run("infer", scans, "-f", trained, "-s", f"output_dir={tmp_path / 'out'}")
    assert result.returncode == 1
    assert "error: 1 of 2 scans were skipped:\n" in result.stderr
    assert (tmp_path / "out/a/a_findings.json").is_file()


def test_an_interruption_exits_with_130_and_no_traceback(tmp_path):
    result = _run("train", tmp_path, code=("-c", INTERRUPTED))
    assert result.returncode == 130
    assert result.stderr.splitlines()[-1].startswith("interrupted before an epoch was over; the")
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is no signal there")
def test_ctrl_c_during_a_training_exits_with_130(cohort, tmp_path):
    settings = {**SMALL, "max_epochs": 100_000}
    options = [part for key, value in settings.items() for part in ("-s", f"{key}={value}")]
    command = [sys.executable, "-c", AT_A_TERMINAL, "train", cohort, "-f", tmp_path, *options]
    process = subprocess.Popen(
        [*map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
    line = "Epoch 0"
    while not line.startswith("Epoch 2 of 100000: log-likelihood"):
        line = process.stdout.readline()
        assert line.startswith("Epoch ")  # one line each, and nothing else in a pipe
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in rest
    *_, last = rest.splitlines()
    assert re.fullmatch(
        r"interrupted after epoch [23]; the same command with --resume goes on", last
    )


def test_the_configs_are_found():
    names = {path.name for path in configs_dir().glob("*.json")}
    assert {"train.json", "evaluate.json", "inference.json", "metadata.json"} <= names


def test_what_others_import_is_there():
    assert {"command_parser", "configs_dir", "main", "run_workflow"} == set(cli.__all__)


def _printed_config(capsys):
    text = capsys.readouterr().out
    return json.loads(text[text.index("{\n") :])


@pytest.mark.parametrize("command", ["train", "infer", "calibrate", "evaluate"])
def test_the_config_is_shown_and_nothing_is_run(command, trained, tmp_path, capsys):
    """The model's settings, what `-s` sets, and the folders; the data need not be there."""
    (tmp_path / "models").mkdir()
    settings = (trained / "models/model.json").read_text()
    (tmp_path / "models/model.json").write_text(settings)
    before = sorted(tmp_path.rglob("*"))
    data = str(tmp_path / "none")
    main([command, data, "-f", str(tmp_path), "-s", "embedding_batch_size=7", "--show-config"])
    config = _printed_config(capsys)
    assert config["bundle_root"] == str(tmp_path)
    assert config["dataset_dir"] == data
    assert config["embedding_batch_size"] == 7
    assert (config["components"] == json.loads(settings)["components"]) == (command != "train")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_config_merges_overlays_in_the_order_of_a_run(tmp_path, capsys):
    main(
        [
            "train",
            "healthy",
            "-f",
            str(tmp_path),
            "-c",
            "demo",
            "-s",
            "step_size=0.5",
            "--show-config",
        ]
    )
    file = tmp_path / "all.json"
    file.write_text(json.dumps(_printed_config(capsys)))
    config = ConfigParser.load_config_file(file)
    demo = ConfigParser.load_config_file(configs_dir() / "demo.json")
    for name, value in demo.items():
        expected = {"step_size": 0.5, "dataset_dir": "healthy"}.get(name, value)
        assert config[name] == expected


@pytest.mark.parametrize("command", ["train", "infer"])
def test_a_dry_run_says_what_would_be_done_and_does_nothing(command, trained, cohort, capsys):
    before = sorted(trained.rglob("*"))
    main([command, str(cohort), "-f", str(trained), "--seed", "3", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 20
    text = "\n".join(lines)
    assert f"{command} would do this" in lines[0]
    assert "Settings of the command line: seed=3" in lines
    if command == "train":
        assert "  3 scans to train on: train_000.nii.gz, train_001.nii.gz" in text
        assert f"is kept as {trained / 'models'}/earlier-N" in text
    else:
        assert "  3 scans to look at: test_000.nii.gz" in text
        assert "(trained on 3 scans, 20" in text
    assert sorted(trained.rglob("*")) == before


def test_a_dry_run_names_the_scans_that_the_pattern_chooses(tmp_path, capsys):
    for name in ("a_T1w", "a_T2w", "b_T1w", "b_T2w"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"")
    main(["infer", str(tmp_path), "-s", "pattern=*_T2w.nii.gz", "--dry-run"])
    assert "  2 scans to look at: a_T2w.nii.gz, b_T2w.nii.gz" in capsys.readouterr().out


def test_options_of_their_own_are_settings(tmp_path, capsys):
    options = ["--output", "out", "--model", "old/model.pt", "--seed", "7", "--device", "cpu"]
    main(["infer", "scans", *options, "--show-config"])
    config = _printed_config(capsys)
    assert (config["output_dir"], config["ckpt_dir"]) == ("out", "old")
    assert (config["seed"], config["device"]) == (7, "cpu")
    main(["train", "scans", "--epochs", "3", "--resume", "--overwrite", "--show-config"])
    config = _printed_config(capsys)
    assert (config["max_epochs"], config["resume"], config["overwrite"]) == (3, True, True)
    with pytest.raises(SystemExit) as exit_:
        main(["infer", "scans", "--model", "old/other.pt", "--show-config"])
    assert exit_.value.code == 2
    assert "--model must be a folder with model.pt, or that file" in capsys.readouterr().err


def test_a_model_is_found_where_ckpt_dir_says(trained, cohort, tmp_path, capsys):
    """With its settings: without them the size of the mixture would be another."""
    shutil.copytree(trained / "models", tmp_path / "elsewhere")
    scan = cohort / "test/images/test_000.nii.gz"
    command = ["infer", str(scan), "-f", str(tmp_path), "-s", f"ckpt_dir={tmp_path / 'elsewhere'}"]
    main(command)
    assert (tmp_path / "output/test_000/test_000_findings.json").is_file()
    assert "Not all config files" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_results_of_a_series_lie_beside_it_and_not_in_it(trained, tmp_path):
    study = tmp_path / "study"
    write_series(study / "CT1", np.random.default_rng(0).integers(1, 1000, (24, 20, 8)))
    before = sorted(study.rglob("*"))
    options = ["-s", "dicom_output=True", "-s", f"output_dir={tmp_path / 'out'}"]
    main(["infer", str(study / "CT1"), "-f", str(trained), *options])
    assert sorted(study.rglob("*")) == before
    names = {path.name for path in (tmp_path / "out/CT1").iterdir()}
    assert {"CT1_anomaly.nii.gz", "CT1_findings.json", "CT1_mask.dcm"} <= names


@pytest.mark.slow
def test_metrics_of_an_evaluation_outlive_an_inference(trained, cohort, tmp_path, capsys):
    options = ["-f", str(trained), "-s", f"output_dir={tmp_path}", "-s", "bootstrap=0"]
    main(["evaluate", str(cohort), *options])
    metrics = (tmp_path / "report/metrics.json").read_text()
    main(["infer", str(cohort / "test/images/test_000.nii.gz"), *options[:4]])
    assert (tmp_path / "report-1/metrics.json").read_text() == metrics
    assert not json.loads((tmp_path / "report/metrics.json").read_text())["metrics"]
    assert f"The report that was there before: {tmp_path / 'report-1'}" in (capsys.readouterr().out)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such pipe there")
def test_a_reader_that_has_had_enough_gets_no_error():
    command = f"{sys.executable} -m monai_dpmm train none --show-config | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, encoding="utf-8")
    assert done.stdout == "{\n"
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes them")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_streams_change_nothing(closed):
    done = subprocess.run(f"{sys.executable} -m monai_dpmm settings {closed}", shell=True)
    assert done.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device")
def test_an_output_that_cannot_be_written_is_one_line():
    command = f"{sys.executable} -m monai_dpmm settings > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, encoding="utf-8")
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"
