"""What a setting is, and what values may be: a sentence for people and a test for the program."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    *("BINS", "COMPONENTS", "PIXELS"),
    *("ASCENDING", "AXIS", "COUNT", "DEVICE", "FLAG", "NATURAL", "NONE", "NONNEGATIVE"),
    *("ORIENTATION", "PERCENTILES", "POSITIVE", "SHARE", "TEXT", "NameIn", "Rule", "Setting"),
    *("choice", "either", "list_of", "number"),
]


class Rule(NamedTuple):
    """What a value must be, in words and as a test; names of values, of a closed choice."""

    text: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class NameIn:
    """A name in a table of the package, whose module knows torch: its text is read instead."""

    module: str
    table: str

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What there is in the table, the keys of a dictionary as it is written there."""
        file = Path(__file__).parents[1].joinpath(*self.module.split(".")).with_suffix(".py")
        written = {
            target.id: node.value
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        return tuple(ast.literal_eval(key) for key in written[self.table].keys)

    @property
    def text(self) -> str:
        """The rule in words."""
        return f"one of {', '.join(self.names)}"

    def holds(self, value: Any) -> bool:
        """Whether a value is one of the names."""
        return value in self.names


class Setting(NamedTuple):
    """A setting: what it is by default, what it may be (None: nobody sets it), what it means.

    A model remembers some (models/model.json), because inference must repeat them; some change the
    embeddings, which are computed anew when they do. `default_text` is the default in words.
    """

    name: str
    default: Any
    rule: Rule | NameIn | None
    help: str
    remembered: bool = False
    embeds: bool = False
    default_text: str = ""


def number(text: str, holds: Callable[[float], bool]) -> Rule:
    """A finite number that a condition holds for."""
    return Rule(text, lambda v: _is_number(v) and holds(v))


def choice(*names: str) -> Rule:
    """One of some names."""
    return Rule(f"one of {', '.join(names)}", lambda v: v in names, names)


def list_of(text: str, item: Rule, length: int | None = None) -> Rule:
    """A list of values that each keep a rule, not empty, of a length where one is given."""

    def holds(value: Any) -> bool:
        fits = isinstance(value, list | tuple) and len(value) == (length or len(value))
        return fits and len(value) > 0 and all(item.holds(part) for part in value)

    return Rule(text, holds)


def either(*rules: Rule) -> Rule:
    """What keeps one of several rules."""
    text = " or ".join(rule.text for rule in rules)
    names = tuple(name for rule in rules for name in rule.names)
    return Rule(text, lambda v: any(rule.holds(v) for rule in rules), names)


def _whole(low: int, high: float = math.inf) -> Rule:
    range_ = f" from {low} on" if math.isinf(high) else f", {low} to {high}"
    return Rule(f"a whole number{range_}", lambda v: _is_whole(v) and low <= v <= high)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_orientation(value: Any) -> bool:
    pairs = ("RL", "AP", "SI")
    return (
        isinstance(value, str)
        and len(value) == len(pairs)
        and all(sum(letter in pair for letter in value) == 1 for pair in pairs)
    )


def _ascends(value: Any) -> bool:
    pair = isinstance(value, list | tuple) and len(value) == 2
    return pair and all(map(_is_number, value)) and value[0] < value[1]


def _is_percentiles(value: Any) -> bool:
    return _ascends(value) and value[0] >= 0 and value[1] <= 100


def _is_device(value: Any) -> bool:
    form = r"(cpu|cuda|hpu|mps|mtia|xpu)(?::(0|[1-9]\d*))?"
    found = re.fullmatch(form, value) if isinstance(value, str) else None
    if found is None or found[1] != "cuda":
        return found is not None
    import torch  # takes seconds, and only it knows the GPUs

    return int(found[2] or 0) < torch.cuda.device_count()


FLAG = Rule("true or false", lambda v: isinstance(v, bool), ("true", "false"))
NONE = Rule("null", lambda v: v is None, ("null",))
TEXT = Rule("text", lambda v: isinstance(v, str) and bool(v))
COUNT, NATURAL = _whole(1), _whole(0)
# more no machine has memory for: a slip, or a file that is to take it
COMPONENTS, PIXELS, BINS = (_whole(1, high) for high in (100_000, 8_192, 1_000))
POSITIVE = number("a number above 0", lambda v: v > 0)
NONNEGATIVE = number("a number from 0 on", lambda v: v >= 0)
SHARE = number("a number between 0 and 1", lambda v: 0 < v < 1)
AXIS = Rule("0, 1 or 2", lambda v: _is_whole(v) and 0 <= v <= 2)
ASCENDING = Rule("[low, high]", _ascends)
PERCENTILES = Rule("[low, high] from 0 to 100", _is_percentiles)
ORIENTATION = Rule("three letters, one of RL, one of AP and one of SI", _is_orientation)
DEVICE = Rule("cpu, or cuda where PyTorch finds it", _is_device)
