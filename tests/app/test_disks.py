"""A full or a read-only disk ends every command in one line, before MONAI is imported."""

import shutil
import subprocess
from collections import namedtuple

import nibabel as nib
import numpy as np
import pytest

from monai_dpmm.app.cli import main
from monai_dpmm.errors import FileError, expected_error

COMMANDS = {
    "demo": "demo -f {disk}/new",
    "train": "train {data} -f {disk}/new",
    "embeddings elsewhere": "train {data} -f {root}/new -s embedding_dir={disk}/new",
    "infer": "infer {data} -f {root} --output {disk}/new",
    "evaluate": "evaluate {data} -f {root} --output {disk}/new",
    "calibrate": "calibrate {data} --model {disk}/models",
    "compare": "compare {data} -f {disk}/new",
    "figures": "figures {data} -f {root} -o {disk}/new",
    "report": "report {data} -f {root} -o {disk}/new",
    "score": "score {data} {data} -o {disk}/new",
    "bundle": "bundle {disk}/new -f {root}",
}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def root(tmp_path):
    """A folder with results and what looks like a model."""
    (tmp_path / "output").mkdir()
    _model(tmp_path / "models")
    return tmp_path


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), folder / "a.nii.gz")
    return folder


def _model(folder):
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"")
    (folder / "model.json").write_text("{}")


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, with what looks like a model; what mounts it again with options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
            pytest.skip("only root may mount a disk")
        return place

    yield mounted
    subprocess.run(["umount", str(place)], check=False, capture_output=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_read_only_disk(command, disk, root, data):
    place = disk("size=1m")
    _model(place / "models")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    words = COMMANDS[command].format(disk=place, root=root, data=data).split()
    with pytest.raises(
        FileError, match=r"must be a folder to write to, \S+ is read-only$"
    ) as error:
        main(words)
    assert expected_error(error.value) is error.value


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(command, root, data, monkeypatch):
    _model(root / "disk/models")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1e9, 1e9, 3e6))
    words = COMMANDS[command].format(disk=root / "disk", root=root, data=data).split()
    with pytest.raises(FileError, match=r"must have 100 MB free on its disk, got 3$") as error:
        main(words)
    assert expected_error(error.value) is error.value
    assert not (root / "disk/new").exists()
