"""Digests of scans are computed again where a file may have changed, and only there."""

import json
import os
import time

import pytest

from monai_dpmm.engines import file_digests
from monai_dpmm.engines.file_digests import FileDigests

OLD = 10**9 * 1_600_000_000


@pytest.fixture
def reads(monkeypatch):
    """Names of the files whose bytes were read."""
    names = []
    read = file_digests.file_digest
    monkeypatch.setattr(file_digests, "file_digest", lambda p: names.append(p.name) or read(p))
    monkeypatch.setattr(file_digests, "_RECENT", 0)
    return names


def digests(tmp_path, *scans):
    known = FileDigests(tmp_path / "kept" / "digests.json")
    found = [known(scan) for scan in scans]
    known.save()
    return found


def test_an_unchanged_scan_is_read_once(tmp_path, reads):
    series = tmp_path / "series"
    series.mkdir()
    for name in "ab":
        (series / name).write_text(name)
    header = tmp_path / "scan.hdr"
    header.write_text("header")
    header.with_suffix(".img").write_text("voxels")
    first = digests(tmp_path, series, header)
    assert sorted(reads) == ["a", "b", "scan.hdr", "scan.img"]
    reads.clear()
    assert digests(tmp_path, series, header) == first
    assert reads == []
    header.with_suffix(".img").write_text("voxelz")  # as long as before
    assert digests(tmp_path, series, header)[1] != first[1]
    assert reads == ["scan.hdr", "scan.img"]


def test_a_change_is_noticed_whatever_the_file_says_of_its_time(tmp_path, reads):
    scan = tmp_path / "scan.nii"
    scan.write_text("one")
    os.utime(scan, ns=(OLD, OLD))
    (first,) = digests(tmp_path, scan)
    scan.write_text("two")
    os.utime(scan, ns=(OLD, OLD))
    assert digests(tmp_path, scan) != [first]


def test_a_file_that_has_just_changed_is_not_trusted(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(file_digests, "_RECENT", 2_000_000_000)
    scan = tmp_path / "scan.nii"
    scan.write_text("one")
    digests(tmp_path, scan)
    digests(tmp_path, scan)
    assert len(reads) == 2
    later = time.time_ns() + 3_000_000_000
    monkeypatch.setattr(file_digests.time, "time_ns", lambda: later)
    digests(tmp_path, scan)
    digests(tmp_path, scan)
    assert len(reads) == 3


def test_the_same_bytes_under_another_name_have_one_digest(tmp_path):
    for name in ("a.nii", "b.nii", "c.png"):
        (tmp_path / name).write_text("one")
    one, other, third = digests(tmp_path, *(tmp_path / n for n in ("a.nii", "b.nii", "c.png")))
    assert one == other != third  # a suffix says how it is read


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', "{", '{"x": 5}'])
def test_a_damaged_file_is_ignored_and_replaced(content, tmp_path, reads):
    scan = tmp_path / "secret_name.nii"
    scan.write_text("one")
    first = digests(tmp_path, scan)
    file = tmp_path / "kept" / "digests.json"
    file.write_text(content)
    assert digests(tmp_path, scan) == first
    assert list(json.loads(file.read_text()).values()) == first
    assert "secret" not in file.read_text()
