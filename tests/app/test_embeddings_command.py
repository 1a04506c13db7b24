"""What the store holds is shown, and cleared where it is asked for."""

import os
import time

import pytest

from monai_dpmm.app.cli import main
from monai_dpmm.errors import MissingFileError

DAY = 86_400
LEFT = ".partial-0123456789abcdef"


@pytest.fixture
def store(tmp_path):
    """Three scans' files, one of them of 40 days ago, one that a killed run has left, others."""
    folder = tmp_path / "embeddings"
    folder.mkdir()
    now = time.time()
    for name, days in (("a", 0), ("b", 1), ("c", 40)):
        path = folder / f"{name}.safetensors"
        path.write_bytes(bytes(4_000_000))
        os.utime(path, (now, now - days * DAY))
    (folder / "digests.json").write_text("{}")
    left = folder / LEFT  # of a run that was killed while it wrote
    left.mkdir()
    (left / "d.safetensors").write_bytes(bytes(1000))
    os.utime(left, (now, now - 2 * DAY))
    return folder


def names(folder):
    return sorted(path.name.removesuffix(".safetensors") for path in folder.iterdir())


def test_it_is_shown(store, capsys):
    main(["embeddings", "-f", str(store.parent)])
    first, dates = capsys.readouterr().out.splitlines()
    assert first == f"{store}: 3 scans, 0.01 GB"
    oldest, newest = (store / f"{name}.safetensors" for name in ("c", "a"))
    then, today = (
        time.strftime("%Y-%m-%d", time.localtime(file.stat().st_mtime)) for file in (oldest, newest)
    )
    assert dates == f"last read from {then} to {today}"
    assert len(names(store)) == 5


def test_what_is_unused_is_cleared(store, capsys):
    main(["embeddings", "--store", str(store), "--clear", "--unused", "30"])
    assert capsys.readouterr().out == f"{store}: 1 scans deleted, 0.00 GB\n"
    assert names(store) == ["a", "b", "digests.json"]
    main(["embeddings", "--store", str(store), "--clear"])
    assert names(store) == ["digests.json"]


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(MissingFileError, match="embeddings: must exist"):
        main(["embeddings", "-f", str(tmp_path)])
