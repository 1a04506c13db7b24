import pickle
import tracemalloc
import zipfile

import pytest
import torch

from monai_dpmm.errors import OutOfMemoryError
from monai_dpmm.files import json_value, load_tensors


def test_tensors_numbers_and_text_come_back(tmp_path):
    content = {"a": torch.arange(3), "b": [1.5, "text"], "c": {"d": None}}
    torch.save(content, tmp_path / "file.pt")
    loaded = load_tensors(tmp_path / "file.pt")
    assert torch.equal(loaded.pop("a"), content.pop("a"))
    assert loaded == content


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.pt"):
        load_tensors(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"{", "no JSON in UTF-8"),
        (b'{"a": "\xff"}', "no JSON in UTF-8"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "no JSON in UTF-8"),
        (b" " * (1 << 25) + b"{}", "larger than 32 MB"),
    ],
)
def test_json_is_refused_in_one_line(tmp_path, content, told):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=told) as caught:
        json_value(tmp_path / "a.json")
    assert len(str(caught.value).splitlines()) == 1


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert json_value(tmp_path / "a.json") == {"a": 1}


def _archive(path, pickled, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/version", "3\n")


@pytest.mark.parametrize(
    ("pickled", "compression", "told"),
    [
        (b"\x80\x02cbuiltins\nbytearray\n(J\x00\x00\x00\x6btR.", zipfile.ZIP_STORED, "bytearray"),
        (bytes(1 << 26), zipfile.ZIP_DEFLATED, "it is compressed"),
        (bytes(5 << 20), zipfile.ZIP_STORED, "it says more of its tensors"),
        (b"\x80\x04\x93.", zipfile.ZIP_STORED, "no pickle of tensors"),
    ],
)
def test_memory_is_bounded_before_it_is_taken(tmp_path, pickled, compression, told):
    _archive(tmp_path / "a.pt", pickled, compression)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"a.pt is broken or holds more.*{told}"):
        load_tensors(tmp_path / "a.pt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20


def _cut(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda _: b"", "it is empty: copy it again, or train again"),
        (_cut, "it is cut off or damaged: copy it again, or train again"),
        (lambda content: content[:-1], "it is cut off or damaged|it is damaged"),
        (lambda content: content[:4], "it is cut off or damaged"),
        (
            lambda content: content[100:],
            "it is (no file of torch.save|damaged, [A-Za-z]+): copy it again",
        ),
        (lambda _: pickle.dumps({"a": 1}), "it is a pickle, which may run code: save a state"),
        (lambda _: b"<!doctype html><html>", "it is a web page: download the file itself"),
        (
            lambda _: b"version https://git-lfs.github.com/spec/v1\n",
            "it is a pointer of Git LFS: fetch the file by git lfs pull",
        ),
        (lambda _: bytes(99), "it is no file of torch.save: copy it again"),
    ],
)
def test_a_file_that_is_none_of_tensors_is_told_for_what_it_is(tmp_path, changed, told):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.arange(50)}, path)
    path.write_bytes(changed(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"^{path} is broken or holds .*\((?:{told})") as caught:
        load_tensors(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_of_before_pytorch_1_6_is_read_once_it_is_saved_again(tmp_path):
    path, state = tmp_path / "a.pt", {"a": torch.arange(50)}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"PyTorch before 1\.6.* torch\.save\(torch\.load\(FILE"):
        load_tensors(path)
    torch.save(torch.load(path, weights_only=True), path)
    assert torch.equal(load_tensors(path)["a"], state["a"])


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    """A stride of 0 shows few bytes as many, which a copy would have to hold."""
    torch.save({"a": torch.zeros(1).expand(1 << 31)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a tensor of shape .* is larger than the file"):
        load_tensors(tmp_path / "a.pt")


def test_a_lack_of_memory_is_told_and_not_a_broken_file(tmp_path, monkeypatch):
    def lacking(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "load", lacking)
    with pytest.raises(OutOfMemoryError, match=r"a.pt: there is not enough memory: lower "):
        load_tensors(tmp_path / "a.pt")
