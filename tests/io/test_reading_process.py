"""A process that reads: what ends it ends one file, and the next one is read."""

import os
import re
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own name for itself
from dicom_files import write_series
from PIL import Image

from monai_dpmm.errors import InputError
from monai_dpmm.io import reading_process
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.io.reading_process import read_apart


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "good.png")
    return tmp_path / "good.png", pixels


def test_a_file_that_does_not_end_is_given_up(tmp_path, picture, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    file, pixels = picture
    read_apart("picture", [file])  # the process is there
    monkeypatch.setattr(reading_process, "_SECONDS", 0.5)
    with pytest.raises(InputError, match="must be readable within 0 s"):
        read_apart("picture", [tmp_path / "pipe.png"])
    monkeypatch.undo()
    assert np.array_equal(read_apart("picture", [file]).array[0], pixels.T)


def test_a_process_that_dies_is_replaced(picture):
    file, pixels = picture
    read_apart("picture", [file])
    first = reading_process._current.process
    first.kill()
    first.wait()
    with pytest.raises(InputError, match=r"got a crash of the reading library \(exit code -9\)"):
        read_apart("picture", [file])
    assert np.array_equal(read_apart("picture", [file]).array[0], pixels.T)
    assert reading_process._current.process.pid != first.pid


def test_a_file_that_needs_more_memory_than_one_may_is_refused(tmp_path, picture):
    """8 MB that could be 8 GB by deflate, and say to be 6 GB."""
    lines = ["ObjectType = Image", "NDims = 3", "DimSize = 1000 1000 6000", "CompressedData = True"]
    header = "\n".join([*lines, "ElementType = MET_UCHAR", "ElementDataFile = LOCAL\n"])
    (tmp_path / "a.mha").write_bytes(header.encode() + bytes(8_000_000))
    with pytest.raises(InputError, match=r"a\.mha: must be"):
        LoadVolume()(tmp_path / "a.mha")
    assert LoadVolume()(picture[0]).shape == (1, 12, 9)


def _peak():
    """Most memory that the reading process has had, bytes."""
    status = Path(f"/proc/{reading_process._current.process.pid}/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
@pytest.mark.parametrize(
    ("tag", "odd"),
    [
        (tag, odd)
        for tag in (b"\x28\x00\x02\x01", b"\x28\x00\x01\x01", b"\x28\x00\x03\x01")
        for odd in (b"Y\xd25\xd0", b"OB5\xd0", b"UN\x00\x00\xf0\xff\xff\x7f")
    ],
)
def test_a_small_file_takes_little_memory_whatever_it_says(tmp_path, tag, odd):
    """An element that is said to have gigabytes, which GDCM takes before it reads them."""
    write_series(tmp_path / "a", np.arange(9 * 8 * 7, dtype=np.uint16).reshape(9, 8, 7))
    file = sorted((tmp_path / "a").iterdir())[0]
    content = file.read_bytes()
    assert tag in content
    file.write_bytes(content.replace(tag, tag + odd, 1))
    reading_process._end()
    with suppress(InputError):
        LoadVolume()(tmp_path / "a")
    assert reading_process._current is None or _peak() < 400 << 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_a_large_image_that_is_compressed_well_has_the_memory_that_it_needs(tmp_path):
    voxels = np.zeros((160, 512, 512), np.uint8)
    voxels[80:, 256:] = 7
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "a.nrrd"), True)
    assert (tmp_path / "a.nrrd").stat().st_size < 100_000
    assert np.array_equal(read_apart("itk", [tmp_path / "a.nrrd"]).array[0], voxels.T)


def test_threads_take_turns(tmp_path):
    found = {}

    def read(number):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        array = read_apart("picture", [tmp_path / f"{number}.png"]).array
        found[number] = np.array_equal(array[0], pixels.T)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(8), True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_one_of_its_own(picture):
    file, pixels = picture
    read_apart("picture", [file])
    child = os.fork()
    if not child:
        same = np.array_equal(read_apart("picture", [file]).array[0], pixels.T)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(read_apart("picture", [file]).array[0], pixels.T)


def test_the_worker_imports_neither_torch_nor_monai():
    code = "import sys, monai_dpmm.io.reading_worker; print([m for m in ('torch', 'monai')"
    code += " if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
