"""Configs as plain JSON: read, checked, merged as MONAI merges them, and looked into.

Nothing heavy is imported, so that a slip in a name is answered at once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from monai_dpmm.app.release import configs_dir
from monai_dpmm.app.settings import RENAMED, SETTINGS
from monai_dpmm.errors import UsageError
from monai_dpmm.files import json_object

_LOGGER = logging.getLogger(__name__)
WORKFLOW_ARGUMENTS = {"logging_file", "meta_file", "tracking"}  # of MONAI's, not of a config
# configs of one earlier version: a new name, or what they set
MOVED: Mapping[str, str | dict[str, Any]] = {
    "steady": "kmeans_start",
    **dict.fromkeys(("brats2021", "liver"), "bmad"),
    **{f"ct_{name}": {"window": name} for name in ("brain", "liver", "lung")},
    "mr_robust": {"percentiles": [25, 75], "margin": 1.5},
    "full_covariance": {"component_kind": "full"},
    "von_mises_fisher": {"component_kind": "von_mises_fisher"},
}

__all__ = [
    *(
        "MOVED",
        "WORKFLOW_ARGUMENTS",
        "check_settings",
        "check_values",
        "config_names",
        "has",
        "merged",
        "nearest",
    ),
    *("read_config", "renamed"),
]


def config_names() -> list[str]:
    """Names of the bundle's configs, sorted; files of old names serve `monai.bundle run` only."""
    names = {path.stem for path in configs_dir().glob("*.json")}
    return sorted(names.difference(MOVED, ["metadata"]))


def read_config(name: str) -> dict[str, Any]:
    """A config by name, or from a file, whose settings are checked.

    Raises:
        UsageError: for a name that no config has, listing those there are, a file that is missing
            or no JSON, and for settings that no run could use.
    """
    if not name.endswith(".json"):
        moved = MOVED.get(name, name)
        if moved != name:
            _tell(f"-c {name} is deprecated, use {_way(moved)}")
        if not isinstance(moved, str):
            return dict(moved)
        if moved not in config_names():
            known = ", ".join(config_names())
            raise UsageError(f"-c must be one of {known}, or a JSON file, got {name!r}")
        return json.loads((configs_dir() / f"{moved}.json").read_text())
    try:
        config = renamed(json_object(name), f"{name}:")
    except OSError as error:
        raise UsageError(
            f"-c must be a config's name or file, got {name}: {error.strerror}"
        ) from None
    except ValueError as error:
        raise UsageError(f"-c must be a config in JSON, got {name}: {error}") from None
    check_settings(config, name)
    return config


def renamed(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values with settings of an earlier version under their new names, of which a line tells.

    A new name that is there as well wins. An old one that the values themselves refer to stays.
    """
    old = [name for name in values if name in RENAMED and f"@{name}" not in str(values)]
    for name in old:
        _tell(f"{source} {name} is called {RENAMED[name]} now, the old name will go")
    kept = {name: value for name, value in values.items() if name not in old}
    return {RENAMED[name]: values[name] for name in old} | kept


def merged(names: Sequence[str], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config that MONAI makes of configs, the base first, and of values by id, laid over them.

    What is an argument of MONAI's workflow and no value of its config has no place in it.

    Raises:
        UsageError: see `read_config`; and for an id within what is not there.
    """
    config: dict[str, Any] = {}
    for name in names:
        for key, value in read_config(name).items():
            _merge(config, key, value, name)
    for key, value in (overrides or {}).items():
        if key not in WORKFLOW_ARGUMENTS:
            _set(config, key, value, "-s")
    return config


def has(config: Any, key: str) -> bool:
    """Whether there is anything of an id, such as "train#trainer#max_epochs"."""
    try:
        _at(config, key)
    except (KeyError, IndexError, ValueError, TypeError):
        return False
    return True


def nearest(config: Mapping[str, Any], key: str) -> list[str]:
    """Ids that were meant by a key that there is none of: its first unknown part is a slip.

    Where nothing is like it, all that lies beside it, unless that is a whole config.
    """
    parts = _parts(key)
    known = 0
    while has(config, "#".join(parts[: known + 1])):
        known += 1
    around = _at(config, "#".join(parts[:known]))
    names = list(around) if isinstance(around, dict) else []
    near = get_close_matches(parts[known], names) or (names if known else [])
    ids = {name: "#".join([*parts[:known], name]) for name in near}
    whole = {name: "#".join([ids[name], *parts[known + 1 :]]) for name in near}
    return [whole[name] if has(config, whole[name]) else ids[name] for name in near]


def check_values(values: Mapping[str, Any], source: str) -> None:
    """Refuse values that no run could use; expressions of a config, $..., @... and %..., pass.

    Args:
        values: settings by name; names without a rule pass.
        source: what they were given by, for the message.

    Raises:
        UsageError: for the first value that breaks its rule.
    """
    for name, value in values.items():
        rule = SETTINGS[name].rule if name in SETTINGS else None
        if rule is not None and not _is_written(value) and not rule.holds(value):
            raise UsageError(f"{source} {name} must be {rule.text}, got {value!r}")


def check_settings(config: Mapping[str, Any], file: str) -> None:
    """Refuse a config for `-c` that sets what no run could use, or nothing at all by a slip.

    A plain value under a name that is like a setting's, and that nothing in the config refers to,
    is taken for a slip: MONAI would add it in silence.

    Raises:
        UsageError: see `check_values`; and for a slip.
    """
    check_values(config, f"{file}:")
    written = str(config)
    for name, value in config.items():
        near = get_close_matches(name, SETTINGS, n=2)
        if _is_plain(value) and near and name not in SETTINGS and f"@{name}" not in written:
            raise UsageError(f"{file}: {name} is no setting (nearest: {', '.join(near)})")


@cache
def _tell(line: str) -> None:
    """Log a line once."""
    _LOGGER.warning(line)


def _way(moved: str | dict[str, Any]) -> str:
    """What to write instead of a config that is gone."""
    if isinstance(moved, str):
        return f"-c {moved}"
    values = {
        k: v if isinstance(v, str) else json.dumps(v, separators=(",", ":"))
        for k, v in moved.items()
    }
    return " ".join(f"-s {name}={value}" for name, value in values.items())


def _merge(config: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Lay a value over a config: as it is, or for "+KEY" added to the list or names there."""
    plain = key.removeprefix("+")
    if plain == key or not has(config, plain):
        _set(config, plain, value, source)
        return
    there = _at(config, plain)
    if isinstance(there, dict) and isinstance(value, dict):
        there.update(value)
    elif isinstance(there, list) and isinstance(value, list):
        there.extend(value)
    else:
        raise UsageError(f"{source}: {key} must be names or a list as {plain} is, got {value!r}")


def _set(config: dict[str, Any], key: str, value: Any, source: str) -> None:
    *above, last = _parts(key)
    try:
        around = _at(config, "#".join(above))
        around[last if isinstance(around, dict) else int(last)] = value
    except (KeyError, IndexError, ValueError, TypeError):
        raise UsageError(f"{source} must set a key of the configs, got {key!r}") from None


def _at(config: Any, key: str) -> Any:
    """What an id names; the whole config for an empty one."""
    for part in _parts(key) if key else ():
        config = config[part] if isinstance(config, dict) else config[int(part)]
    return config


def _parts(key: str) -> list[str]:
    return key.replace("::", "#").split("#")


def _is_written(value: Any) -> bool:
    """Whether a value is an expression, which MONAI resolves when the workflow is made."""
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def _is_plain(value: Any) -> bool:
    """Whether a value is one that settings have: no part of a workflow, no list of steps."""
    parts = value if isinstance(value, list) else [value]
    return not any(isinstance(part, dict) or _is_written(part) for part in parts)
