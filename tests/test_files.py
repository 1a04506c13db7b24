import pytest
import torch

from monai_dpmm.files import load_tensors


def test_tensors_numbers_and_text_come_back(tmp_path):
    content = {"a": torch.arange(3), "b": [1.5, "text"], "c": {"d": None}}
    torch.save(content, tmp_path / "file.pt")
    loaded = load_tensors(tmp_path / "file.pt")
    assert torch.equal(loaded.pop("a"), content.pop("a"))
    assert loaded == content


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.pt"):
        load_tensors(tmp_path / "nothing.pt")
