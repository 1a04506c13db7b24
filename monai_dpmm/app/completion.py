"""Completion of the commands in a shell: sub-commands, options, files, folders, configs."""

from __future__ import annotations

from argparse import Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from typing import Any

from monai_dpmm.app.workflows import config_names
from monai_dpmm.errors import MissingPackageError

# metavars of the arguments
_FILES, _FOLDERS = {"FILE", "SCAN", "SCANS"}, {"DATASET", "DIR", "MAPS", "OUT"}

__all__ = ["completion_script"]


def completion_script(parser: ArgumentParser, shell: str) -> str:
    """Text that a shell reads to complete the command line of a parser.

    Arguments with a metavar of a file or a folder complete to those, `-c` to the names of the
    configs and to JSON files, and what has choices to these.

    Args:
        parser: with sub-commands; its `prog` is what the script completes.
        shell: "bash", "zsh" or "fish".

    Raises:
        ImportError: where shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise MissingPackageError("completion needs shtab: pip install shtab") from error
    configs = _configs(shtab.glob("*.json"))
    for action in _actions(parser):
        if action.dest == "config":
            complete: Any = configs
        elif action.metavar in _FILES:
            complete = shtab.FILE
        elif action.metavar in _FOLDERS:
            complete = shtab.DIRECTORY
        else:
            continue
        action.complete = complete  # type: ignore[attr-defined]
    return shtab.complete(parser, shell=shell)


def _actions(parser: ArgumentParser) -> Iterator[Action]:
    """All arguments of a parser and its sub-commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, _SubParsersAction):
            for command in dict.fromkeys(action.choices.values()):
                yield from _actions(command)


def _configs(json_files: dict[str, Any]) -> dict[str, Any]:
    """Completion of `-c` by shell: the configs' names, or a JSON file."""
    names = " ".join(config_names())
    bash = f"""
_monai_dpmm_configs() {{
  compgen -W "{names}" -- "$1"
  {json_files["bash"]} "$1"
}}
"""
    zsh = f"""
_monai_dpmm_configs() {{
  local -a names=({names})
  compadd -a names
  _files -g '*.json'
}}
"""
    fish = f"""
function _monai_dpmm_configs
  printf '%s\\n' {names}
  {json_files["fish"].strip("()")}
end
"""
    preambles = {shell: json_files["preamble"].get(shell, "") for shell in ("bash", "fish")}
    return {
        "bash": "_monai_dpmm_configs",
        "zsh": "_monai_dpmm_configs",
        "fish": "(_monai_dpmm_configs)",
        "preamble": {
            "bash": preambles["bash"] + bash,
            "zsh": zsh,
            "fish": preambles["fish"] + fish,
        },
    }
