import argparse

import pytest

from monai_dpmm.app.options import override


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_epochs=10", ("max_epochs", 10)),
        ("slice_axis=[0,1,2]", ("slice_axis", [0, 1, 2])),
        ("window=null", ("window", None)),
        ("device=$torch.device('cpu')", ("device", "$torch.device('cpu')")),
        ("a#b=c=d", ("a#b", "c=d")),
        ("resume=True", ("resume", True)),
        ("warm_start=None", ("warm_start", None)),
        ("output_dir=2024", ("output_dir", "2024")),
        ("dataset_dir=null", ("dataset_dir", "null")),
        ('backbone_weights="a b"', ("backbone_weights", "a b")),
    ],
)
def test_values_are_json_where_they_can_be(text, expected):
    assert override(text) == expected


def test_a_value_of_endless_brackets_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match=r"^percentiles is nested too deeply$"):
        override("percentiles=" + "[" * 100_000)


def test_a_number_of_thousands_of_digits_is_text():
    assert override("seed=" + "1" * 10_000) == ("seed", "1" * 10_000)


@pytest.mark.parametrize("text", ["epochs", "=3", ""])
def test_a_setting_needs_key_and_value(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"must be KEY=VALUE, got '{text}'"):
        override(text)
