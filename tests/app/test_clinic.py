"""The page for the clinic: its commands are ones that the program takes, its pictures are there."""

import re
import shlex
from pathlib import Path

import pytest

from monai_dpmm.app.cli import command_parser
from monai_dpmm.app.release import configs_dir

PAGE = Path(__file__).parents[2] / "docs" / "clinic.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
COMMANDS = [
    shlex.split(line)[3:]
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if "monai_dpmm" in line
]


def test_the_page_has_commands():
    names = [command[0] for command in COMMANDS]
    assert names == ["train", "infer", "calibrate", "infer", "evaluate", "figures"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_the_program_takes_every_command(command):
    args = command_parser().parse_args(command)
    base = "train" if command[0] == "train" else "inference"
    config = (configs_dir() / f"{base}.json").read_text()
    for key, _ in getattr(args, "set", None) or []:
        assert f'"{key}":' in config
    for name in args.config or ():
        assert (configs_dir() / f"{name}.json").is_file()


def test_pictures_and_pages_that_it_shows_are_there_and_small():
    addresses = re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text())
    assert len(addresses) >= 5
    for address in addresses:
        assert (PAGE.parent / address).is_file(), address
        assert (PAGE.parent / address).stat().st_size < 300_000


def test_the_options_that_it_names_exist():
    known = "".join((configs_dir() / f"{name}.json").read_text() for name in ("train", "inference"))
    for key in re.findall(r"-s (\w+)=", PAGE.read_text()):
        assert f'"{key}":' in known, key
    for name in re.findall(r"`-c (\w+)`", PAGE.read_text()):
        assert (configs_dir() / f"{name}.json").is_file(), name
