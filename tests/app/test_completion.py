"""shtab's own command line makes the completion of our commands, as the docs tell."""

import subprocess
import sys

import pytest

from monai_dpmm.app import completion
from monai_dpmm.app.options import override
from monai_dpmm.app.settings import SETTINGS

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
        ("train -s val_", {"val_fraction=", "val_interval="}),
        (
            "train x -s wind",
            {"window=", *(f"window={w}" for w in ("null", "brain", "liver", "lung"))},
        ),
        ("infer -s max_ep", {"max_epochs=", "max_epochs=40"}),
        ("train -c k", {"kmeans_start"}),
        ("settings smoo", {"smoothing_mm"}),
        ("compare d --methods dpmm k", {"k-means"}),
    ],
)
def test_bash_completes(words, found, script):
    last = "''" if words.endswith(" ") else ""
    text = ASK.format(script=script, words=words + last)
    command = ["bash", "--norc", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == found


def test_every_value_that_is_offered_is_allowed():
    names, pairs = completion._settings()
    settable = {name for name, row in SETTINGS.items() if row.rule is not None}
    assert {name.removesuffix("=") for name in names} == settable
    for pair in pairs:
        key, value = override(pair)
        assert SETTINGS[key].rule.holds(value), pair
    assert "score=likelihood" in pairs
