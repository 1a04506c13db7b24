"""The scripts are asked to complete by the shells themselves, where these are there."""

import builtins
import shlex
import shutil
import subprocess

import pytest

from monai_dpmm.app.cli_options import SHELLS
from monai_dpmm.app.cli_parser import command_parser
from monai_dpmm.app.completion import completion_script
from monai_dpmm.app.workflows import config_names

ASK = {
    "bash": """\
source {script}
COMP_WORDS=({words})
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_shtab_monai_dpmm
printf '%s\\n' "${{COMPREPLY[@]}}"
""",
    "fish": "source {script}\ncomplete -C {line} | string split -f 1 \\t\ntrue\n",
}


def _shell(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture(params=["bash", "fish"])
def completed(request, tmp_path):
    """What a shell completes a command line to, its last word being begun, in a folder of files."""
    shell, name = _shell(request.param), request.param
    for file in ("scan.nii.gz", "own.json", "metrics.json"):
        (tmp_path / file).touch()
    for folder in ("scans", "models"):
        (tmp_path / folder).mkdir()
    script = tmp_path / f".script.{name}"
    script.write_text(completion_script(command_parser(), name))

    def ask(line):
        words = " ".join(shlex.quote(word) for word in line.split(" "))
        text = ASK[name].format(script=script, words=words, line=shlex.quote(line))
        command = [shell, *(["--norc"] if name == "bash" else ["--no-config"]), "-c", text]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
        assert result.stderr == ""
        return {found.rstrip("/") for found in result.stdout.split("\n") if found}

    return ask


def test_commands_and_options(completed):
    assert completed("monai-dpmm tr") == {"train"}
    assert {"demo", "report", "completion"} <= completed("monai-dpmm ")
    assert completed("monai-dpmm train --d") == {"--dry-run"}
    assert completed("monai-dpmm completion ") == {*SHELLS}


def test_names_of_configs_and_json_files(completed):
    assert completed("monai-dpmm train -c st") == {"steady"}
    assert {*config_names(), "own.json"} <= completed("monai-dpmm infer scans -c ")
    assert "scan.nii.gz" not in completed("monai-dpmm train -c ")
    assert completed("monai-dpmm train -c demo -c o") == {"own.json"}


def test_files_and_folders(completed):
    assert completed("monai-dpmm infer s") == {"scan.nii.gz", "scans"}
    assert completed("monai-dpmm train s") == {"scans"}
    assert completed("monai-dpmm bundle out --metrics met") == {"metrics.json"}
    assert completed("monai-dpmm evaluate scans -f m") == {"models"}


@pytest.mark.parametrize("name", SHELLS)
def test_the_script_is_one_of_its_shell(name, tmp_path):
    script = tmp_path / "script"
    script.write_text(completion_script(command_parser(), name))
    assert "_monai_dpmm_configs" in script.read_text()
    check = subprocess.run(
        [_shell(name), "-n", script], capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stderr) == (0, "")


def test_without_shtab_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "shtab":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match="completion needs shtab: pip install shtab"):
        completion_script(command_parser(), "bash")
