"""What the workflows' settings may be, so that a wrong one is told before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

from monai_dpmm.errors import UsageError

__all__ = ["RULES", "TEXTS", "Rule", "check_settings", "check_values"]


class Rule(NamedTuple):
    """What a value must be, in words and as a test."""

    told: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class _NameIn:
    """A name in a table of the package, whose module knows torch: imported when it is needed."""

    module: str
    table: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(getattr(import_module(f"monai_dpmm.{self.module}"), self.table))

    @property
    def told(self) -> str:
        return f"one of {', '.join(self.names)}"

    def holds(self, value: Any) -> bool:
        return value in self.names


def _whole(low: int) -> Rule:
    return Rule(f"a whole number from {low} on", lambda v: _is_whole(v) and v >= low)


def _number(told: str, holds: Callable[[float], bool]) -> Rule:
    return Rule(told, lambda v: _is_number(v) and holds(v))


def _choice(*names: str) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda v: v in names)


def _list(told: str, item: Rule, length: int | None = None) -> Rule:
    def holds(value: Any) -> bool:
        fits = isinstance(value, list | tuple) and len(value) == (length or len(value))
        return fits and len(value) > 0 and all(item.holds(part) for part in value)

    return Rule(told, holds)


def _or(rule: Rule, *others: Rule) -> Rule:
    rules = (rule, *others)
    told = " or ".join(rule.told for rule in rules)
    return Rule(told, lambda v: any(rule.holds(v) for rule in rules))


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
    import torch

    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        return False
    found = torch.cuda.device_count()
    return device.type != "cuda" or (device.index or 0) < found


_FLAG = Rule("true or false", lambda v: isinstance(v, bool))
_NONE = Rule("null", lambda v: v is None)
_TEXT = Rule("text", lambda v: isinstance(v, str) and bool(v))
_COUNT, _NATURAL = _whole(1), _whole(0)
_POSITIVE = _number("a number above 0", lambda v: v > 0)
_LARGE = _number("a number from 0 on", lambda v: v >= 0)
_SHARE = _number("a number between 0 and 1", lambda v: 0 < v < 1)
_AXIS = Rule("0, 1 or 2", lambda v: _is_whole(v) and 0 <= v <= 2)
_RANGE = Rule("[low, high]", _ascends)
_PERCENTILES = Rule("[low, high] from 0 to 100", _is_percentiles)
_DEVICE = Rule("cpu, or cuda where PyTorch finds it", _is_device)

RULES: Mapping[str, Rule | _NameIn] = {
    **dict.fromkeys(("bundle_root", "dataset_dir", "output_dir", "ckpt_dir", "checkpoint"), _TEXT),
    **dict.fromkeys(("resume", "revive", "mask_foreground", "bias_correction"), _FLAG),
    **dict.fromkeys(("ignore_background", "dicom_output"), _FLAG),
    **dict.fromkeys(("slice_step", "image_size", "embedding_batch_size", "components"), _COUNT),
    **dict.fromkeys(("batch_size", "max_epochs", "val_interval"), _COUNT),
    **dict.fromkeys(("seed", "bootstrap"), _NATURAL),
    "concentration": _POSITIVE,
    "rate": _number("a number above 0, 1 at most", lambda v: 0 < v <= 1),
    **dict.fromkeys(("margin", "smallest_lesion"), _LARGE),
    **dict.fromkeys(("val_fraction", "scan_false_alarm_rate"), _SHARE),
    "false_positive_rate": Rule("0.01, 0.05 or 0.1", lambda v: v in (0.01, 0.05, 0.1)),
    **dict.fromkeys(("backbone_architecture", "backbone_weights"), _TEXT),
    "device": _DEVICE,
    "warm_start": _or(_TEXT, _NONE),
    "orientation": Rule("three letters, one of RL, one of AP and one of SI", _is_orientation),
    "slice_axis": _or(_AXIS, _list("a list of them", _AXIS)),
    "percentiles": _or(_PERCENTILES, _NONE),
    "window": _or(_RANGE, _choice("brain", "liver", "lung"), _NONE),
    "patch_grid": _or(_list("[h, w]", _COUNT, 2), _NONE),
    "covariance": _NameIn("mixture.dpmm", "COMPONENT_KINDS"),
    "variance_floor": _or(_POSITIVE, _NONE),
    "initialization": _NameIn("mixture.initialization", "INITIALIZATIONS"),
    "initial_weights": _NameIn("mixture.initialization", "INITIAL_STICKS"),
    "schedule": _NameIn("mixture.em", "STEP_SIZES"),
    "score": _NameIn("mixture.scores", "SCORES"),
    "false_positive_volume": _or(_POSITIVE, _NONE),
    "false_positive_volumes": _list("a list of numbers above 0", _POSITIVE),
    "output_ext": _choice(".nii.gz", ".nii", ".nrrd", ".mha"),
    "protocol": Rule("native, 224 or 448", lambda v: str(v) in ("native", "224", "448")),
    "label_rule": Rule("positive or 255", lambda v: str(v) in ("positive", "255")),
}


TEXTS = {name for name, rule in RULES.items() if rule is _TEXT}  # whatever they look like


def check_values(values: Mapping[str, Any], source: str) -> None:
    """Refuse values that no run could use; expressions of a config, $..., @... and %..., pass.

    Args:
        values: settings by name; names without a rule pass.
        source: what they were given by, for the message.

    Raises:
        UsageError: for the first value that breaks its rule.
    """
    for name, value in values.items():
        if name in RULES and not _is_written(value) and not RULES[name].holds(value):
            raise UsageError(f"{source} {name} must be {RULES[name].told}, got {value!r}")


def _is_written(value: Any) -> bool:
    """Whether a value is an expression, which MONAI resolves when the workflow is made."""
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def _is_plain(value: Any) -> bool:
    """Whether a value is one that settings have: no part of a workflow, no list of steps."""
    parts = value if isinstance(value, list) else [value]
    return not any(isinstance(part, dict) or _is_written(part) for part in parts)


def check_settings(config: Mapping[str, Any], file: str) -> None:
    """Refuse a config for `-c` that sets what no run could use, or nothing at all by a slip.

    A plain value under a name that is like a setting's, and that nothing in the config refers to,
    is taken for a slip: MONAI would add it in silence.

    Raises:
        UsageError: see `check_values`; and for a slip.
    """
    check_values(config, f"{file}:")
    told = str(config)
    for name, value in config.items():
        near = get_close_matches(name, RULES, n=2)
        if _is_plain(value) and near and name not in RULES and f"@{name}" not in told:
            raise UsageError(f"{file}: {name} is no setting (nearest: {', '.join(near)})")
