"""JSON files that may come from anywhere: what they hold, or one kind of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["json_number", "json_object", "json_value"]


def json_value(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: where it cannot be opened.
        ValueError: where it is no JSON in UTF-8, or lists in lists without end.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_object(path: str | Path) -> dict[str, Any]:
    """Values by name that a JSON file holds.

    Raises:
        OSError, ValueError: see `json_value`; a ValueError also where it holds anything else.
    """
    value = json_value(path)
    if not isinstance(value, dict):
        raise ValueError(f"values by name are needed, got {type(value).__name__}")
    return value


def json_number(value: Any) -> float | None:
    """A number of a JSON file, None for what is not defined; no text, which a page would show.

    Raises:
        TypeError: for anything else.
        OverflowError: for a whole number that no float holds.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"a number is needed, got {value!r}")
    if value is not None:
        float(value)
    return value
