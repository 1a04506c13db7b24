"""The bundle's workflows by the names of their configs: planned, checked, run."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_dpmm.app.config import WORKFLOW_ARGUMENTS, check_values, has, merged, nearest, renamed
from monai_dpmm.app.release import checked_settings, configs_dir
from monai_dpmm.errors import InputError, MissingFileError, UsageError
from monai_dpmm.files import require_writable

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
# what MONAI imports for parts that no workflow of ours has: half of the time that it takes
_UNUSED = ("matplotlib", "mlflow", "pandas", "sklearn", "transformers")
# settings of the folders that a command writes to
_TRAINED = ("ckpt_dir", "output_dir", "embedding_dir")
_WRITES: dict[str, tuple[str, ...]] = {
    "demo": _TRAINED,
    "train": _TRAINED,
    "calibrate": ("ckpt_dir",),
    "evaluate": ("output_dir",),
    "infer": ("output_dir",),
    "compare": ("bundle_root", "embedding_dir"),
    "figures": (),
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
            hint = f"nearest: {', '.join(near)}" if near else "--show-config prints all"
            raise UsageError(
                f"-s must set a key of the configs {', '.join(names)}, got {key!r} ({hint})"
            )
    return [
        {k: v for k, v in overrides.items() if has(config, k) or k in WORKFLOW_ARGUMENTS}
        for config in configs
    ]


def require_inputs(config: Mapping[str, Any], command: str, models: Path | None) -> None:
    """Refuse a run that cannot begin or end well, before anything heavy is imported.

    Args:
        config: merged, of the run; paths that an expression of one's own makes pass, as does a
            network of one's own, which is made of no model.pt.
        command: one of `PLANS`, which folders must be writable for.
        models: folder of the trained model, None for a run that needs none.

    Raises:
        FileNotFoundError: where data, model or another file that was given is missing.
        OSError: where a folder cannot be written.
    """
    data = _path(config, "dataset_dir")
    if data is not None and not data.exists():
        raise MissingFileError(f"{data}: must exist, there is no such file or folder")
    of_model = "/model.pt'" in f"{config['network']} {config['network_def']}"
    if models is not None and of_model:
        _require_file(models.expanduser() / "model.pt", "(train a model first)")
    if config.keys() >= {"warm_start", "resume", "checkpoint"}:  # of a training
        if (start := _path(config, "warm_start")) is not None:
            _require_file(start, "to start from")
        if config["resume"] is True and (start := _path(config, "checkpoint")) is not None:
            _require_file(start, "to resume from")
        weights = _path(config, "backbone_weights")
        if weights is not None and weights.suffix in (".pth", ".pt", ".bin", ".safetensors"):
            _require_file(weights, "of the backbone's weights")
    for name in _WRITES[command]:
        if (folder := _path(config, name)) is not None:
            require_writable(folder)


def _path(config: Mapping[str, Any], name: str) -> Path | None:
    """A path of a config, None where there is none, or an expression of one's own makes it."""
    value = config.get(name)
    if not isinstance(value, str):
        return None
    if below := re.fullmatch(r"\$@(\w+) \+ '(/[^']*)'", value):
        base = _path(config, below[1])
        return None if base is None else Path(f"{base}{below[2]}")
    return None if value.startswith(("$", "@", "%")) else Path(value).expanduser()


def _require_file(path: Path, purpose: str) -> None:
    if not path.is_file():
        raise MissingFileError(f"{path}: must exist, there is no such file {purpose}")


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
    own = all(not n.endswith(".json") or Path(n).name == "model.json" for n in names)
    plain = own and "tracking" not in arguments and "_target_" not in str(overrides)
    with _unseen(_UNUSED if plain else ()):
        from monai.bundle import ConfigWorkflow

    base = names[0] if names[0].endswith(".json") else configs_dir() / f"{names[0]}.json"
    kind = "infer" if Path(base).stem == "inference" else "train"
    from monai_dpmm.engines.earlier import release_folders

    try:
        workflow = ConfigWorkflow(str(base), workflow_type=kind, **arguments, **config)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    finally:
        release_folders()


@contextmanager
def _unseen(packages: Sequence[str]) -> Iterator[None]:
    """As if packages were not installed, but for those that are imported already."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _model_settings(models: Path) -> list[str]:
    """The trained model's own settings, where there is one; which are untrusted."""
    settings = models / "model.json"
    if not settings.is_file():
        return []
    checked_settings(settings)
    return [str(settings)]
