"""The bundle's workflows by the names of their configs: found, merged, checked, run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_dpmm.app.release import checked_settings, configs_dir
from monai_dpmm.app.settings import check_settings, check_values
from monai_dpmm.errors import UsageError
from monai_dpmm.files import json_object

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

# places in a plan: of the trained model's own settings, and of the overlays of the command line
MODEL, OVERLAYS = "<model>", "<overlays>"
PLANS: dict[str, list[tuple[str, ...]]] = {
    "demo": [("train", "demo", OVERLAYS), ("train", MODEL, "demo", OVERLAYS, "evaluate")],
    "train": [("train", OVERLAYS)],
    "calibrate": [("train", MODEL, OVERLAYS, "calibrate")],
    "evaluate": [("train", MODEL, OVERLAYS, "evaluate")],
    "infer": [("inference", MODEL, OVERLAYS)],
    "compare": [("train", OVERLAYS)],
    "figures": [("train", MODEL, OVERLAYS, "evaluate")],
}
_WORKFLOW_ARGUMENTS = {"logging_file", "meta_file", "tracking"}  # of MONAI's, not of a config

__all__ = ["PLANS", "applicable", "config_names", "merged_config", "planned", "run_workflow"]


def config_names() -> list[str]:
    """Names of the bundle's configs, sorted."""
    return sorted(path.stem for path in configs_dir().glob("*.json") if path.stem != "metadata")


def planned(plan: Sequence[str], overlays: Sequence[str], models: Path | None) -> list[str]:
    """Names of a plan's configs, the base first.

    Args:
        plan: one of `PLANS`.
        overlays: configs of the command line, by name or path.
        models: folder of the trained model (ckpt_dir), whose settings take their place where there
            is one; None to leave them out.

    Raises:
        ValueError: where the model's settings are not those of a training.
    """
    parts = {OVERLAYS: list(overlays), MODEL: [] if models is None else _model_settings(models)}
    return [name for part in plan for name in parts.get(part, [part])]


def merged_config(names: Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    """The config that a workflow runs with; references stay as they are.

    Raises:
        UsageError: for a config that there is none of, see `run_workflow`.
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([_config_file(name) for name in names])
    parser.update({key: value for key, value in overrides.items() if key in parser})
    return parser


def applicable(
    workflows: Sequence[Sequence[str]], overrides: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The overrides of each workflow that its configs have keys for.

    Raises:
        UsageError: naming the nearest keys, for a key that none of the workflows has, which MONAI
            would add in silence; for a config that there is none of; and for a setting of the
            command line or of a config's file that no run could use.
    """
    check_values(overrides, "-s")
    parsers = [merged_config(names, {}) for names in workflows]
    for key in overrides.keys() - _WORKFLOW_ARGUMENTS:
        if not any(key in parser for parser in parsers):
            names = dict.fromkeys(Path(name).stem for each in workflows for name in each)
            near = dict.fromkeys(id_ for parser in parsers for id_ in _nearest(key, parser))
            hint = f"nearest: {', '.join(near)}" if near else "--dry-run prints all that there are"
            raise UsageError(
                f"-s must set a key of the configs {', '.join(names)}, got {key!r} ({hint})"
            )
    return [
        {k: v for k, v in overrides.items() if k in parser or k in _WORKFLOW_ARGUMENTS}
        for parser in parsers
    ]


def run_workflow(names: Sequence[str], **overrides: Any) -> None:
    """Run a bundle workflow made of configs, with values overridden.

    Args:
        names: the bundle's configs by name, or paths of JSON files; the first is the base, the
            others overlay it.
        **overrides: ids and values, as on the command line of `monai.bundle run`.

    Raises:
        UsageError: for a name that no config has, listing those there are, or a file that is
            missing or no JSON.
    """
    from monai.bundle import ConfigWorkflow

    files = [_config_file(name) for name in names]
    kind = "infer" if names[0] == "inference" else "train"
    with _quiet_about_folders():
        workflow = ConfigWorkflow(config_file=files, workflow_type=kind, **overrides)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


@contextmanager
def _quiet_about_folders() -> Iterator[None]:
    """No warning that a model's settings lie elsewhere than the configs, as they always do."""
    logger = logging.getLogger("monai.bundle.workflows")

    def tells(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Not all config files are in")

    logger.addFilter(tells)
    try:
        yield
    finally:
        logger.removeFilter(tells)


def _config_file(name: str) -> str:
    """Path of a config by name; a path stays what it is."""
    if not name.endswith(".json"):
        if name not in config_names():
            known = ", ".join(config_names())
            raise UsageError(f"-c must be one of {known}, or a JSON file, got {name!r}")
        return str(configs_dir() / f"{name}.json")
    try:
        config = json_object(name)
    except OSError as error:
        raise UsageError(
            f"-c must be a config's name or file, got {name}: {error.strerror}"
        ) from None
    except ValueError as error:
        raise UsageError(f"-c must be a config in JSON, got {name}: {error}") from None
    check_settings(config, name)
    return name


def _model_settings(models: Path) -> list[str]:
    """The trained model's own settings, where there is one; they may come from a stranger."""
    settings = models / "model.json"
    if not settings.is_file():
        return []
    checked_settings(settings)
    return [str(settings)]


def _nearest(key: str, parser: ConfigParser) -> list[str]:
    """Ids that were meant by a key that there is none of: its first unknown part is a slip.

    Where nothing is like it, all that lies beside it, unless that is a whole config.
    """
    parts = key.replace("::", "#").split("#")
    known = 0
    while "#".join(parts[: known + 1]) in parser:
        known += 1
    above = "#".join(parts[:known])
    around = parser[above]
    names = list(around) if isinstance(around, dict) else []
    near = get_close_matches(parts[known], names) or (names if known else [])
    rest = parts[known + 1 :]
    ids = {name: "#".join([*parts[:known], name]) for name in near}
    whole = {name: "#".join([ids[name], *rest]) for name in near}
    return [whole[name] if whole[name] in parser else ids[name] for name in near]
