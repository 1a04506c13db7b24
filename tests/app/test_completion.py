"""shtab's own command line makes the completion of our commands, as the docs tell."""

import subprocess
import sys

import pytest

ASK = """\
source {script}
COMP_WORDS=(monai-dpmm {words})
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_shtab_monai_dpmm
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    file = tmp_path_factory.mktemp("completion") / "script"
    way = ["--shell", "bash", "--error-unimportable", "monai_dpmm.app.cli.command_parser"]
    command = [sys.executable, "-m", "shtab", *way, "--output", str(file)]
    subprocess.run(command, check=True)
    return file


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("tr", {"train"}),
        ("infer --dr", {"--dry-run"}),
        ("report scans --axis ", {"0", "1", "2"}),
    ],
)
def test_bash_completes(words, found, script):
    last = "''" if words.endswith(" ") else ""
    text = ASK.format(script=script, words=words + last)
    command = ["bash", "--norc", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == found
