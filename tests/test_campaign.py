"""The quick part of the campaign: what is killed, cut off, filled up and attacked."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # whole workflows, in processes of its own

TESTS = Path(__file__).parent
PARTS = {"training", "inference", "store", "comparison", "input", "model.pt"}


def test_nothing_is_torn_foreign_or_hangs(tmp_path):
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "campaign", "--quick", "--folder", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stdout + found.stderr[-2000:]
    rows = re.findall(r"^\| ([\w.]+).*?\| (\d+) \|(.*)$", found.stdout, re.MULTILINE)
    assert {name for name, *_ in rows} >= PARTS
    assert sum(int(trials) for _, trials, _ in rows) > 400
    assert not any(int(count) for *_, counts in rows for count in counts.strip(" |").split("|"))
