import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monai_dpmm import writing
from monai_dpmm.errors import FileError
from monai_dpmm.files import load_tensors
from monai_dpmm.writing import LAST, atomic_write, replacement, save_tensors, scratch_folder, sweep

PARTS = {"figures": re.compile(r"\d+\.png")}
FILES = ("metrics.json", "report.html")


@pytest.fixture
def old(monkeypatch):
    """Leftovers count at once as old, and every folder is swept."""
    monkeypatch.setattr(writing, "_FRESH", -1.0)
    monkeypatch.setattr(writing, "_swept", set())


def _names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _write(folder, text, figures=("1.png",)):
    with replacement(folder, PARTS, FILES) as partial:
        for name in (*FILES, *(f"figures/{figure}" for figure in figures)):
            (partial / name).write_text(text)


def _left(folder, state, text, names):
    """What a killed run leaves of a replacement."""
    left = folder / f".{state}-0123456789abcdef"
    (left / "figures").mkdir(parents=True)
    for name in names:
        (left / name).write_text(text)
    return left


def test_data_and_folder_are_synchronised_before_and_after_the_rename(tmp_path, monkeypatch):
    """Without the first, a power cut leaves an empty file under the name; see the campaign."""
    seen, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (seen.append(Path(f"/proc/self/fd/{d}")), sync(d)))
    monkeypatch.setattr(os, "replace", lambda *a: (seen.append("replace"), replace(*a)))
    with atomic_write(tmp_path / "file") as partial:
        partial.write_text("x")
    assert len(seen) == 3
    assert seen[1] == "replace"


def test_nothing_takes_no_place(tmp_path):
    (tmp_path / "file").write_text("before")
    told = "file: could not be written, No such file"
    with pytest.raises(OSError, match=told), atomic_write(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "before"


def test_why_tensors_cannot_be_written_is_told(tmp_path, monkeypatch):
    def full(self, data):
        self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise self.error

    monkeypatch.setattr(writing._Kept, "write", full)
    with pytest.raises(OSError, match=r"a.pt: could not be written, No space left on device"):
        save_tensors({"a": 1}, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_tensors_come_back(tmp_path):
    save_tensors({"a": [1, "x"]}, tmp_path / "new" / "folder" / "a.pt")
    assert load_tensors(tmp_path / "new" / "folder" / "a.pt") == {"a": [1, "x"]}


def test_what_a_killed_run_has_left_goes(tmp_path, old):
    (tmp_path / ".0123456789abcdef.model.pt").write_text("half")
    _left(tmp_path, "partial", "half", FILES)
    (tmp_path / ".keep").write_text("another's")
    with atomic_write(tmp_path / "file") as partial:
        partial.write_text("x")
    assert _names(tmp_path) == [".keep", "file"]


def test_what_is_being_written_stays(tmp_path, old):
    """The writer has locked it, in this process or another."""
    code = f"""if True:
        import sys, time
        from pathlib import Path
        from monai_dpmm.writing import atomic_write, scratch_folder
        folder = Path({str(tmp_path)!r})
        with atomic_write(folder / "a") as partial, scratch_folder(folder):
            partial.write_text("x")
            print("written", flush=True)
            sys.stdin.readline()
    """
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"written\n"
        sweep(tmp_path, PARTS)
        assert len(list(tmp_path.iterdir())) == 2
        writer.communicate(b"\n")
    assert _names(tmp_path) == ["a"]


def test_what_is_new_is_not_taken_for_left(tmp_path):
    """A writer locks what it has made, but not in the same moment."""
    (tmp_path / ".0123456789abcdef.model.pt").write_text("half")
    sweep(tmp_path)
    assert list(tmp_path.iterdir())
    long_ago = time.time() - 60
    os.utime(tmp_path / ".0123456789abcdef.model.pt", (long_ago, long_ago))
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("state", "left", "there"),
    [
        ("commit", [*FILES[:1], f"{LAST}{FILES[1]}", "figures/2.png"], []),
        ("moving", [*FILES[:1], f"{LAST}{FILES[1]}", "figures/2.png"], []),
        ("moving", [f"{LAST}{FILES[1]}"], [FILES[0], "figures/2.png"]),
    ],
)
def test_what_was_being_put_in_place_is_completed(tmp_path, old, state, left, there):
    _write(tmp_path, "old")
    if state == "moving":
        (tmp_path / "report.html").unlink()
        (tmp_path / "figures/1.png").unlink()
    for name in there:
        (tmp_path / name).write_text("new")
    _left(tmp_path, state, "new", left)
    sweep(tmp_path, PARTS)
    assert _names(tmp_path) == ["figures/2.png", *FILES]
    assert {(tmp_path / name).read_text() for name in _names(tmp_path)} == {"new"}
    assert not list(tmp_path.glob(".*"))


def test_nothing_is_completed_through_a_link(tmp_path, old):
    (tmp_path / "others").mkdir()
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "figures").symlink_to(tmp_path / "others")
    _left(folder, "moving", "evil", ["figures/1.png"])
    sweep(folder, PARTS)
    assert not _names(tmp_path / "others")


def test_a_folder_that_another_writes_to_is_not_removed(tmp_path):
    def interrupted():
        with replacement(tmp_path / "out", {}, ("a",)):
            (tmp_path / "out/other").write_text("another's")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert _names(tmp_path) == ["out/other"]


def test_nobody_else_reads_what_is_being_written(tmp_path):
    before = os.umask(0)
    try:
        with scratch_folder(tmp_path) as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
        os.umask(0o077)
        _write(tmp_path / "out", "x")
        with atomic_write(tmp_path / "file") as partial:
            partial.write_text("x")
    finally:
        os.umask(before)
    for path in (tmp_path / "file", *(tmp_path / "out").rglob("*")):
        assert not path.stat().st_mode & 0o077


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO])
def test_a_hidden_folder_is_named_by_no_error(tmp_path, code, monkeypatch):
    """Errors tell the place that a file would have had, or the folder that could not be written."""
    why = os.strerror(code)

    def full(path, *_):
        raise OSError(code, why, str(path))

    told = f"^{tmp_path}: could not be written, {why}$"
    with pytest.raises(FileError, match=told), scratch_folder(tmp_path) as hidden:
        raise OSError(code, why, str(hidden / "configs"))
    monkeypatch.setattr(writing._Kept, "write", full)
    place, files = tmp_path / "a", ["x.pt"]
    told_of_file = pytest.raises(
        FileError, match=f"^{place / 'x.pt'}: could not be written, {why}$"
    )
    with told_of_file, replacement(place, {}, files) as hidden:
        save_tensors({"a": 1}, hidden / "x.pt")
    monkeypatch.setattr(Path, "mkdir", lambda self, *_: full(self))
    with pytest.raises(FileError, match=told), scratch_folder(tmp_path):
        pass


def test_errors_of_other_files_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="'elsewhere'"), scratch_folder(tmp_path):
        Path("elsewhere").read_text()
