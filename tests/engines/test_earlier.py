"""Nothing is lost: folders in use, folders that cannot be written, models that were there."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
from ignite.engine import Engine

from monai_dpmm.engines import earlier
from monai_dpmm.engines.earlier import EarlierModel, claim_folders, release_folders
from monai_dpmm.errors import FileError

HOLD = """
import sys
from monai_dpmm.engines.earlier import claim_folders
claim_folders(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_folder_in_use_by_another_process_is_one_line_and_free_when_it_ends(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, encoding="utf-8", **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FileError, match=r"another run is using it; wait .* take another"):
            claim_folders(tmp_path)
        other.kill()
        other.wait()
        claim_folders(tmp_path)


def test_a_folder_is_taken_once_and_nothing_is_left_of_it(tmp_path):
    claim_folders(tmp_path / "models", tmp_path / "output")
    claim_folders(tmp_path / "models")
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".in_use"]
    release_folders()
    assert list(tmp_path.iterdir()) == []  # they were empty


@pytest.mark.slow
def test_inferences_share_a_folder_and_nobody_else_takes_it(tmp_path):
    shared = HOLD.replace("argv[1]", "argv[1], shared=True")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", shared, tmp_path], **pipes, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FileError, match="another run is using it"):
            claim_folders(tmp_path)
        claim_folders(tmp_path, shared=True)
        release_folders()  # the other one has it still
        with pytest.raises(FileError, match="another run is using it"):
            claim_folders(tmp_path)
        other.stdin.close()
        other.wait()
    assert list(tmp_path.iterdir()) == []
    claim_folders(tmp_path)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        subprocess.run([sys.executable, "-c", shared, tmp_path], check=True, capture_output=True)
    assert b"another run is using it" in refused.value.stderr


def test_the_other_processes_of_a_run_take_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    claim_folders(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "models").write_text("")
    with pytest.raises(FileError, match=r"models: must be a folder to write to, File exists$"):
        claim_folders(tmp_path / "models")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match="must be a folder to write to, Permission denied"):
        claim_folders(tmp_path)


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def read_only(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(earlier.tempfile, "TemporaryFile", read_only)
    with pytest.raises(FileError, match=r"must be a folder to write to, Read-only file system$"):
        claim_folders(tmp_path)


def test_a_full_disk_is_one_line_before_any_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(12_000_000))
    with pytest.raises(FileError, match="must have 100 MB free on its disk, got 12"):
        claim_folders(tmp_path)


def _epoch(handler):
    engine = Engine(lambda *_: None)
    handler.attach(engine)
    engine.run([0], max_epochs=2)


def _folder(tmp_path, text):
    for name in ("model.pt", "model.json", "checkpoint.pt", "history.json"):
        (tmp_path / name).write_text(text)
    return tmp_path / "model.pt", [tmp_path / "checkpoint.pt", tmp_path / "history.json"]


def test_an_earlier_model_is_kept_with_all_that_belongs_to_it(tmp_path, capsys):
    model, others = _folder(tmp_path, "first")
    _epoch(EarlierModel(model, others))
    assert model.read_text() == "first"  # until there is another
    for file in (*tmp_path.glob("*.pt"), *tmp_path.glob("*.json")):
        file.unlink()  # as what takes their place does
    _folder(tmp_path, "second")
    _epoch(EarlierModel(model, others))
    _epoch(EarlierModel(model, others))  # killed before it had another: kept once
    assert not (tmp_path / "earlier-3").exists()
    for folder, text in (("earlier-1", "first"), ("earlier-2", "second")):
        files = {path.name: path.read_text() for path in (tmp_path / folder).iterdir()}
        assert files == dict.fromkeys(
            ("model.pt", "model.json", "checkpoint.pt", "history.json"), text
        )
    assert capsys.readouterr().out.splitlines()[0] == (
        f"The model that was there is kept: {tmp_path / 'earlier-1'}"
    )


def test_a_resumed_training_moves_nothing_and_a_first_one_has_nothing_to_move(tmp_path):
    _epoch(EarlierModel(tmp_path / "model.pt"))
    assert list(tmp_path.iterdir()) == []
    model, others = _folder(tmp_path, "mine")
    _epoch(EarlierModel(model, others, keep=False))
    assert model.read_text() == "mine"
    assert not (tmp_path / "earlier-1").exists()
