import errno
import os
import subprocess
import sys

import pytest
import torch
import tqdm
from torch.utils.tensorboard import SummaryWriter

from monai_dpmm.app.release import checked_settings
from monai_dpmm.errors import (
    INTERRUPTED,
    USAGE,
    ExistingFileError,
    FileError,
    InputError,
    InputTypeError,
    MissingFileError,
    MissingPackageError,
    OutOfMemoryError,
    SkippedScansError,
    UsageError,
    expected_error,
    memory_error,
    one_line,
    report_line,
)
from monai_dpmm.network.backbones.registry import load_backbone
from monai_dpmm.network.geometry import stack_slices
from monai_dpmm.study.figures.sheet import save_figure


def _caught(function):
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def _refused():
    stack_slices(torch.zeros(2, 2))


def test_the_refusal_in_a_chain_is_found():
    def wrapped():
        try:
            _refused()
        except ValueError as error:
            raise RuntimeError("applying transform") from error

    found = expected_error(_caught(wrapped))
    assert isinstance(found, ValueError)
    assert "slices must be" in str(found)


def test_of_several_refusals_the_one_that_names_the_file_is_told(tmp_path):
    file = tmp_path / "model.json"
    file.write_text("[]")
    error = _caught(lambda: checked_settings(file))
    assert str(expected_error(error)).startswith(f"{file}: must be JSON with settings by name")
    torch.save({"a": torch.zeros(1)}, tmp_path / "dinov2.pth")
    error = _caught(lambda: load_backbone(tmp_path / "dinov2.pth"))
    assert str(tmp_path / "dinov2.pth") in str(expected_error(error))


def test_what_to_install_is_told_and_not_only_what_is_missing(monkeypatch, tmp_path):
    from monai_dpmm.study.cohort.cohort import make_demo_cohort

    monkeypatch.setitem(sys.modules, "nilearn", None)
    error = _caught(lambda: make_demo_cohort(tmp_path / "cohort"))
    assert isinstance(error.__cause__, ModuleNotFoundError)
    assert "pip install monai-dpmm[demo]" in str(expected_error(error))


def test_errors_of_others_are_not_shortened():
    assert expected_error(_caught(lambda: int("x"))) is None
    assert expected_error(_caught(lambda: {}["x"])) is None


def test_a_bug_of_ours_passes_for_no_mistake_of_the_user(monkeypatch):
    """What NumPy or a slip raises in our own frames is no refusal, its class decides."""

    def slip(tensor):
        raise ValueError("not enough values to unpack")

    monkeypatch.setattr("monai_dpmm.network.geometry._check_axis", slip)
    error = _caught(lambda: stack_slices(torch.zeros(1, 1, 2, 2)))
    assert isinstance(error, (ValueError, TypeError))
    assert expected_error(error) is None


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (InputError, ValueError),
        (InputTypeError, TypeError),
        (FileError, OSError),
        (MissingFileError, FileNotFoundError),
        (ExistingFileError, FileExistsError),
        (MissingPackageError, ImportError),
    ],
)
def test_what_a_user_did_wrong_is_a_class(kind, builtin):
    error = kind("one line")
    assert isinstance(error, builtin)
    assert str(error) == "one line"
    assert expected_error(error) is error


def _run(code, **environment):
    prefix = "from monai_dpmm.errors import one_line_errors; one_line_errors();"
    return subprocess.run(
        [sys.executable, "-c", prefix + code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


REFUSED = (
    "import torch; from monai_dpmm.network.geometry import stack_slices;"
    " stack_slices(torch.zeros(2))"
)


@pytest.mark.slow
def test_a_refusal_is_one_line_and_a_non_zero_exit():
    result = _run(REFUSED)
    assert result.returncode == 1
    assert result.stderr.splitlines() == ["error: slices must be (S, C, H, W), got shape (2,)"]


def test_other_errors_keep_their_traceback():
    result = _run("1 / 0")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.slow
def test_the_traceback_can_be_asked_for():
    result = _run(REFUSED, MONAI_DPMM_TRACEBACK="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.slow
def test_names_of_files_command_no_terminal():
    code = "from monai_dpmm.io.datalist import find_images; find_images('/none/\\x1b]0;owned\\x07')"
    result = _run(code)
    assert result.stderr.startswith("error: /none/?]0;owned?: must be a folder")


def test_wrong_usage_is_a_value_error_with_a_code_of_its_own(capsys):
    assert issubclass(UsageError, ValueError)
    assert (USAGE, INTERRUPTED) == (2, 130)
    report_line(UsageError("got \x1b]0;owned\x07"))
    assert capsys.readouterr().err == "error: got ?]0;owned?\n"


def test_a_file_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    error = _caught(lambda: save_figure(None, tmp_path / "file", "x"))
    assert isinstance(error, FileExistsError)
    assert expected_error(error) is error
    wrapped = _caught(lambda: SummaryWriter(str(tmp_path / "file/log")))  # of another package
    assert expected_error(wrapped) is wrapped


@pytest.mark.slow
def test_an_engine_leaves_a_refusal_to_its_line():
    code = """
from monai.handlers import StatsHandler
one_line_errors()  # as the configs do, when MONAI is there
from monai_dpmm.engines.engines import EMTrainer
from monai_dpmm.mixture.dpmm import DPMM
import logging, torch
logging.basicConfig(level=logging.INFO)
patches = [{"image": torch.full((40, 4), torch.nan)}]
EMTrainer("cpu", 1, patches, DPMM(4, 12), [StatsHandler()]).run()
"""
    result = _run(code.strip())
    assert result.returncode == 1
    assert "Traceback" not in result.stderr + result.stdout
    assert "must" in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["stack_slices(torch.zeros(2))", "1 / 0"])
def test_threads_that_still_run_change_no_exit_code(ending):
    """Decoders and loaders have some; a C++ thread that is joinable at the end aborts, with 134."""
    code = f"""
import atexit, threading, time, torch
from monai_dpmm.network.geometry import stack_slices
atexit.register(print, "what was registered is done")
threading.Thread(target=time.sleep, args=(600,)).start()
{ending}
"""
    result = _run(code.strip())
    assert result.returncode == 1
    assert result.stdout == "what was registered is done\n"
    assert result.stderr


@pytest.mark.slow
def test_an_interrupted_run_ends_with_its_code():
    result = _run("raise KeyboardInterrupt")
    assert (result.returncode, result.stderr) == (INTERRUPTED, "\ninterrupted\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_a_lack_of_memory_says_what_to_lower(error):
    found = expected_error(error)
    assert isinstance(found, OutOfMemoryError)
    assert memory_error(RuntimeError("shapes do not match")) is None
    unsupported = RuntimeError("could not create a primitive descriptor for a convolution")
    assert memory_error(unsupported) is None
    assert "lower embedding_batch_size, batch_size, image_size or components" in str(found)
    assert str(memory_error(error, "a.nii")).startswith("a.nii: ")


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE]
)
def test_what_a_disk_lacks_is_no_bug_also_without_a_name(number):
    error = OSError(number, os.strerror(number))
    assert expected_error(error) is error
    assert expected_error(OSError(errno.EBADF, "bad descriptor")) is None


def test_an_error_of_the_system_names_the_file_and_why():
    error = OSError(30, "Read-only file system", "a.txt")
    assert one_line(error) == "a.txt: Read-only file system"
    assert one_line(OSError(28, "No space left on device")) == "No space left on device"
    assert one_line(FileError("a: could not\nbe written")) == "a: could not be written"


def test_an_error_is_one_line_below_a_progress_bar(capsys):
    bar = tqdm.tqdm(range(3))
    next(iter(bar))
    report_line(InputError("a library says\n  two lines"))
    *_, bars, line = capsys.readouterr().err.splitlines()
    assert line == "error: a library says two lines"
    assert "error" not in bars


def test_scans_that_were_skipped_have_a_line_each(capsys):
    report_line(SkippedScansError("2 of 3 scans were skipped:\n  a\n  b"))
    assert capsys.readouterr().err.splitlines()[1:] == ["  a", "  b"]
