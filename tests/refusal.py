"""What a user sees of an input that is refused."""

import pytest

from monai_dpmm.errors import expected_error


def refusal(door, *args):
    """The one line that a user sees of what a door refuses."""
    with pytest.raises((ValueError, OSError, RuntimeError)) as caught:
        door(*args)
    found = expected_error(caught.value)
    assert found is not None, repr(caught.value)
    assert len(str(found).splitlines()) == 1
    return str(found)
