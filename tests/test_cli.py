import pytest

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
