import math
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import timing
import torch
from timing import STATM, Clock, available_device, in_turn, median_ratio, peak

from monai_dpmm.errors import UsageError

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

CPU = torch.device("cpu")


@pytest.fixture
def clock_of_ticks(monkeypatch):
    """Time that passes only when it is told to."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def spend(amount):
        now[0] += amount

    return spend


def test_calls_are_timed_in_turn_after_one_to_warm_up(clock_of_ticks):
    calls = []
    costs = {"a": iter([9, 1, 2, 3]), "b": iter([9, 2, 2, 12])}

    def call(name):
        calls.append(name)
        clock_of_ticks(next(costs[name]))

    times = in_turn({"a": lambda: call("a"), "b": lambda: call("b")}, CPU, repeats=3)
    assert calls == ["a", "b"] * 4
    assert times == {"a": [1, 2, 3], "b": [2, 2, 12]}
    assert median_ratio(times, "b", "a") == 2  # of 2, 1 and 4: not the ratio of the medians


def test_a_stage_within_another_is_taken_out_of_it(clock_of_ticks):
    highest = iter([5, 6, 7])
    clock = Clock(CPU, memory=lambda: next(highest))
    inner = clock("inner", lambda: clock_of_ticks(2))

    def both():
        clock_of_ticks(1)
        inner()
        inner()
        return "result"

    assert clock("outer", both)() == "result"
    assert clock.seconds == {"inner": 4, "outer": 1}
    assert clock.memory == {"inner": 6, "outer": 7}


def test_without_a_memory_none_is_noted():
    clock = Clock(CPU)
    clock("stage", lambda: None)()
    assert list(clock.seconds) == ["stage"]
    assert clock.memory == {}


@pytest.mark.skipif(not STATM.exists(), reason="memory is read from /proc/self/statm")
def test_memory_that_is_freed_again_is_seen():
    def allocate():
        torch.ones(25_000_000).sum()  # 100 MB, gone at the end

    assert 80 < peak(allocate) < 140


def test_a_missing_device_that_was_asked_for_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert available_device() == available_device("cpu") == CPU
    with pytest.raises(UsageError, match="got cuda, and PyTorch finds no CUDA device"):
        available_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert available_device() == torch.device("cuda")


def test_the_device_is_waited_for_at_both_ends(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    device = torch.device("cuda")
    assert math.isfinite(timing.seconds(lambda: waited.append("run"), device))
    assert waited == [device, *["run"] * 10, device]


@pytest.mark.skipif(not STATM.exists(), reason="memory is read from /proc")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's")
def test_freed_blocks_are_given_back_although_a_later_one_stays():
    """Of 100 blocks of 100 kB all but the last are freed; in a process of its own."""
    code = """
import sys
from timing import resident, return_freed_blocks
if sys.argv[1] == "returned":
    return_freed_blocks()
before = resident()
blocks = [bytearray(100_000) for _ in range(100)]
del blocks[:-1]
print((resident() - before) / 1e6)
"""
    kept, returned = (
        float(
            subprocess.check_output(
                [sys.executable, "-c", code, how], cwd=Path(timing.__file__).parent
            )
        )
        for how in ("kept", "returned")
    )
    assert kept > 8
    assert returned < 2
