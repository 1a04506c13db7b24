import json

import pytest
from monai.bundle import ConfigParser

from monai_dpmm import __version__
from monai_dpmm.cli import configs_dir, main


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for command in ("demo", "train", "calibrate", "evaluate", "infer", "score", "check"):
        assert command in text


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["train"], "dataset"),
        (["train", "x", "-s", "epochs"], "must be KEY=VALUE, got 'epochs'"),
        (["guess"], "invalid choice"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_the_configs_are_found():
    names = {path.name for path in configs_dir().glob("*.json")}
    assert {"train.json", "evaluate.json", "inference.json", "metadata.json"} <= names


def _printed_config(capsys):
    text = capsys.readouterr().out
    return json.loads(text[text.index("{\n") :])


@pytest.mark.parametrize("command", ["train", "infer", "calibrate", "evaluate"])
def test_a_dry_run_prints_the_config_and_runs_nothing(command, trained, tmp_path, capsys):
    """The model's settings, what `-s` sets, and the folders; the data need not be there."""
    (tmp_path / "models").mkdir()
    settings = (trained / "models/model.json").read_text()
    (tmp_path / "models/model.json").write_text(settings)
    before = sorted(tmp_path.rglob("*"))
    data = str(tmp_path / "none")
    main([command, data, "-f", str(tmp_path), "-s", "embedding_batch_size=7", "--dry-run"])
    config = _printed_config(capsys)
    assert config["bundle_root"] == str(tmp_path)
    assert config["dataset_dir"] == data
    assert config["embedding_batch_size"] == 7
    assert (config["components"] == json.loads(settings)["components"]) == (command != "train")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_merges_overlays_in_the_order_of_a_run(tmp_path, capsys):
    main(["train", "healthy", "-f", str(tmp_path), "-c", "demo", "-s", "rate=0.5", "--dry-run"])
    file = tmp_path / "all.json"
    file.write_text(json.dumps(_printed_config(capsys)))
    config = ConfigParser.load_config_file(file)
    demo = ConfigParser.load_config_file(configs_dir() / "demo.json")
    for name, value in demo.items():
        expected = {"rate": 0.5, "dataset_dir": "healthy"}.get(name, value)
        assert config[name] == expected
