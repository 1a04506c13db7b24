"""The table of formats: one row each, told by the end of a name in any case."""

import pytest

from monai_dpmm.io.formats import volume_writer
from monai_dpmm.io.suffixes import (
    FORMATS,
    IMAGE_SUFFIXES,
    PICTURE_SUFFIXES,
    WRITTEN_SUFFIXES,
    format_of,
    is_picture,
    stem,
)


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.suffix)
def test_a_format_is_told_by_the_end_of_a_name(row):
    for name in (f"a{row.suffix}", f"/x/sub-01.2{row.suffix}", f"a{row.suffix.upper()}"):
        assert format_of(name) == row
        assert is_picture(name) == (row.suffix in PICTURE_SUFFIXES)
    assert stem(f"/x/sub-01.2{row.suffix}") == "sub-01.2"
    assert format_of(f"a{row.suffix}x") is None
    assert stem("notes.txt") == "notes.txt"


def test_every_suffix_has_one_row():
    assert len(set(IMAGE_SUFFIXES)) == len(FORMATS)


@pytest.mark.parametrize("suffix", WRITTEN_SUFFIXES)
def test_what_is_written_has_a_writer_and_a_place_in_the_world(suffix):
    assert volume_writer(suffix) is not None
    assert suffix not in PICTURE_SUFFIXES
