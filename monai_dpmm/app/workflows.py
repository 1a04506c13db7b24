"""The bundle's workflows by the names of their configs: planned, checked, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_dpmm.app.config import WORKFLOW_ARGUMENTS, check_values, has, merged, nearest, renamed
from monai_dpmm.app.release import checked_settings, configs_dir
from monai_dpmm.errors import InputError, MissingFileError, UsageError

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

# places in a plan: of the trained model's own settings, and of the overlays of the command line
MODEL, OVERLAYS = "<model>", "<overlays>"
PLANS: dict[str, list[tuple[str, ...]]] = {
    "demo": [("train", "demo", OVERLAYS), ("inference", MODEL, "demo", OVERLAYS, "evaluate")],
    "train": [("train", OVERLAYS)],
    "calibrate": [("inference", MODEL, OVERLAYS, "calibrate")],
    "evaluate": [("inference", MODEL, OVERLAYS, "evaluate")],
    "infer": [("inference", MODEL, OVERLAYS)],
    "compare": [("train", OVERLAYS)],
    "figures": [("inference", MODEL, OVERLAYS)],
}

__all__ = [
    *("PLANS", "applicable", "check_base", "merged_config", "planned", "require_inputs"),
    "run_workflow",
]


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
    """The config that a workflow runs with, for what makes its own use of it.

    Raises:
        UsageError: for a config that there is none of, see `run_workflow`.
    """
    from monai.bundle import ConfigParser

    return ConfigParser(merged(names, overrides))


def applicable(
    workflows: Sequence[Sequence[str]], overrides: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The overrides of each workflow that its configs have keys for.

    Raises:
        UsageError: naming the nearest keys, for a key that none of the workflows has, which MONAI
            would add in silence; for a config that there is none of; and for a setting of the
            command line or of a config's file that no run could use.
    """
    overrides = renamed(overrides, "-s")
    check_values(overrides, "-s")
    configs = [merged(names) for names in workflows]
    for key in overrides.keys() - WORKFLOW_ARGUMENTS:
        if not any(has(config, key) for config in configs):
            names = dict.fromkeys(Path(name).stem for each in workflows for name in each)
            near = dict.fromkeys(id_ for config in configs for id_ in nearest(config, key))
            hint = f"nearest: {', '.join(near)}" if near else "--dry-run prints all that there are"
            raise UsageError(
                f"-s must set a key of the configs {', '.join(names)}, got {key!r} ({hint})"
            )
    return [
        {k: v for k, v in overrides.items() if has(config, k) or k in WORKFLOW_ARGUMENTS}
        for config in configs
    ]


def require_inputs(config: Mapping[str, Any], models: Path | None) -> None:
    """Refuse a run whose data or trained model are not there, before anything heavy is imported.

    Args:
        config: merged, of the run; data that an expression makes pass, as does a network of one's
            own, which is made of no model.pt.
        models: folder of the trained model, None for a run that needs none.

    Raises:
        FileNotFoundError: where one is missing.
    """
    data = config["dataset_dir"]
    if not data.startswith("$") and not Path(data).expanduser().exists():
        raise MissingFileError(f"{data}: must exist, there is no such file or folder")
    if models is None or "/model.pt'" not in f"{config['network']} {config['network_def']}":
        return
    if not (model := models.expanduser() / "model.pt").is_file():
        raise MissingFileError(f"{model}: must exist, there is no such file (train a model first)")


def check_base(base: str) -> None:
    """Refuse what evaluate and calibrate overlay where it is not the config inference.

    Raises:
        InputError: naming the way that there was until version 0.1, and the one that there is.
    """
    if base != "inference":
        raise InputError(
            f"evaluate.json and calibrate.json overlay inference.json, got {base}.json:"
            " --config_file \"['configs/inference.json','models/model.json',"
            "'configs/evaluate.json']\""
        )


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
    arguments = {k: v for k, v in overrides.items() if k in WORKFLOW_ARGUMENTS}
    config = merged(names, renamed(overrides, "-s"))
    from monai.bundle import ConfigWorkflow

    base = names[0] if names[0].endswith(".json") else configs_dir() / f"{names[0]}.json"
    kind = "infer" if Path(base).stem == "inference" else "train"
    workflow = ConfigWorkflow(str(base), workflow_type=kind, **arguments, **config)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def _model_settings(models: Path) -> list[str]:
    """The trained model's own settings, where there is one; which are untrusted."""
    settings = models / "model.json"
    if not settings.is_file():
        return []
    checked_settings(settings)
    return [str(settings)]
