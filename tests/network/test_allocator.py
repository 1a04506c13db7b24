"""Freed memory is kept, unless the environment says otherwise; results are what they were."""

import json
import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource
import torch
from monai_dpmm.network.allocator import keep_freed_memory
kept = keep_freed_memory()
layer = torch.nn.Conv2d(3, 64, 3, padding=1)
images = torch.rand(8, 3, 256, 256)
with torch.no_grad():
    for _ in range(3):
        layer(images).sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        layer(images).sum()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([kept, faults / 32]))
"""


def faults(**environment):
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, env=own | environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep their ways")
def test_a_layer_makes_no_page_faults_once_it_has_run():
    kept, after = faults()
    assert kept
    assert after < 100  # its output alone is 4,096 pages an image
    for name, value in (
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ):
        kept, before = faults(**{name: value})
        assert not kept
        assert before > 2000
