"""Help reads well in 80 columns, and every command has all its parts."""

import re

import pytest

from monai_dpmm.app.cli import command_parser
from monai_dpmm.app.commands import all_commands
from monai_dpmm.app.workflows import PLANS

COMMANDS = next(a for a in command_parser()._actions if a.dest == "command").choices


def test_every_command_is_listed_once_the_workflows_first():
    names = [command.name for command in all_commands()]
    assert names[:5] == ["demo", "train", "calibrate", "evaluate", "infer"]
    assert list(COMMANDS) == names
    assert set(PLANS) <= {*names}


def test_the_help_tells_the_exit_codes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = command_parser().format_help()
    codes = text.split("exit codes:")[1]
    assert re.findall(r"^  (\d+) ", codes, re.MULTILINE) == ["0", "1", "2", "130"]
    for name in COMMANDS:
        assert re.search(rf"^    {name}  +\w", text, re.MULTILINE), (
            name
        )  # on one line with its help


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_fits_a_terminal_of_80_columns(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = command_parser() if name is None else COMMANDS[name]
    lines = parser.format_help().splitlines()
    assert len(lines) > 5
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_commands_that_the_parser_takes(name):
    lines = re.findall(r"^  monai-dpmm ([^>]*?)(?:   .*)?$", COMMANDS[name].epilog, re.MULTILINE)
    for line in lines:
        assert command_parser().parse_args(line.split()).command == name
    assert lines or name not in ("train", "evaluate", "infer", "report")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "scans", "--seeds", "0"], "must be a whole number from 1 on, got '0'"),
        (["compare", "scans", "--seeds", "x"], "must be a whole number from 1 on, got 'x'"),
        (["report", "scans", "--axis", "3"], "invalid choice: 3"),
        (["report", "scans", "--slices", "-1"], "must be a whole number from 1 on, got '-1'"),
    ],
)
def test_values_out_of_range_are_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        command_parser().parse_args(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
