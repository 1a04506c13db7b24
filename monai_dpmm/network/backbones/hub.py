"""Weights of vision transformers: where they are published, and how their files become networks.

Models come from `transformers`, imported when the first is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_dpmm.errors import InputError, MissingFileError, cause
from monai_dpmm.files import json_object
from monai_dpmm.network.backbones.dinov2 import HEAD_DIM, Dinov2, Dinov3, read_checkpoint
from monai_dpmm.network.backbones.offline import OFFLINE

HUB_TIMEOUT_S = 5.0

__all__ = ["TRANSFORMERS", "advice", "hub_folder", "load_file", "load_folder", "transformer"]


@dataclass(frozen=True)
class _Published:
    """A transformer whose weights are published: its family and config, and where they are."""

    family: str
    config: dict[str, Any]
    repository: str
    url: str = ""

    @property
    def licence(self) -> str:
        """A sentence on the weights."""
        return _FAMILIES[self.family].licence


def _published() -> Iterator[tuple[str, _Published]]:
    sizes = {"s": (384, 12), "b": (768, 12), "l": (1024, 24), "g": (1536, 40)}
    words = {"s": "small", "b": "base", "l": "large", "g": "giant"}
    for size, (features, depth) in sizes.items():
        shape = {"hidden_size": features, "num_hidden_layers": depth}
        shape["num_attention_heads"] = features // HEAD_DIM
        name, hub, word = f"dinov2_vit{size}14", "facebook/dinov2", words[size]
        url = f"https://dl.fbaipublicfiles.com/dinov2/{name}/{name}"
        v2 = {**shape, "image_size": 518, "patch_size": 14, "use_swiglu_ffn": size == "g"}
        yield name, _Published("dinov2", v2, f"{hub}-{word}", f"{url}_pretrain.pth")
        reg, v2_reg = f"{hub}-with-registers-{word}", {**v2, "num_register_tokens": 4}
        url = f"{url}_reg4_pretrain.pth"
        yield f"{name}_reg", _Published("dinov2_with_registers", v2_reg, reg, url)
        if size != "g":
            v3 = {**shape, "intermediate_size": 4 * features, "num_register_tokens": 4}
            hub = f"facebook/dinov3-vit{size}16-pretrain-lvd1689m"
            yield f"dinov3_vit{size}16", _Published("dinov3_vit", v3, hub)


TRANSFORMERS: dict[str, _Published] = dict(sorted(_published()))
_DINOV2 = "The backbone's architecture is DINOv2, whose weights are under the same licence."
_DINOV3 = "The backbone's architecture is DINOv3, whose weights have another licence."


class _Family(NamedTuple):
    """A model type of `transformers`: the stem of its classes, and the patch tokens of a model."""

    stem: str
    network: type[Dinov2 | Dinov3]
    licence: str


_FAMILIES = {
    "dinov2": _Family("Dinov2", Dinov2, _DINOV2),
    "dinov2_with_registers": _Family("Dinov2WithRegisters", Dinov2, _DINOV2),
    "dinov3_vit": _Family("DINOv3ViT", Dinov3, _DINOV3),
}


def _classes(family: str) -> tuple[Any, Any]:
    """Config and model class of a family in `transformers`."""
    import transformers

    stem = _FAMILIES[family].stem
    return getattr(transformers, f"{stem}Config"), getattr(transformers, f"{stem}Model")


def transformer(name: str, pretrained: bool, blocks: Sequence[int] | None = None) -> nn.Module:
    """Network (B, 3, H, W) -> (B, D, h, w) of a name in `TRANSFORMERS`, its weights set or not.

    Raises:
        FileNotFoundError: where the weights are neither in the cache nor on the hub.
    """
    published = TRANSFORMERS[name]
    if pretrained:
        return load_folder(hub_folder(published.repository), blocks)
    config_class, model_class = _classes(published.family)
    config = config_class(**published.config)
    # Drawing weights that nobody wants takes seconds, and changes the caller's random numbers.
    with torch.device("meta"):
        model = model_class(config)
    model.to_empty(device="cpu")
    if published.family == "dinov3_vit":
        # Its frequencies are constants, not weights: no state dict will set them.
        model.rope_embeddings = type(model.rope_embeddings)(config)
    return _network(model, published.family, blocks)


def load_folder(folder: Path, blocks: Sequence[int] | None = None) -> nn.Module:
    """Network (B, 3, H, W) -> (B, D, h, w) with the weights of a Hugging Face folder.

    Raises:
        FileNotFoundError: without config.json or safetensors weights in it.
        ValueError: for another kind of model, or files that are broken or do not fit.
    """
    if not _is_complete(folder):
        raise MissingFileError(
            f"{folder} must hold config.json and model.safetensors, as Hugging Face folders do "
            f"(pickled weights are not read). {advice(folder.name)}"
        )
    file = folder / "config.json"
    try:
        config = json_object(file)
        family = config["model_type"]
    except (ValueError, KeyError) as error:
        raise InputError(f"{file} must be JSON and name a model_type: {cause(error)}") from error
    if not isinstance(family, str) or family not in _FAMILIES:
        raise InputError(f"{file} must have model_type {', '.join(_FAMILIES)}, got {family!r}")
    return _network(_filled(folder, family, config, lambda: _state(folder)), family, blocks)


def load_file(path: Path, blocks: Sequence[int] | None = None) -> nn.Module:
    """Network (B, 3, H, W) -> (B, D, h, w) with the weights of an official DINOv2 file.

    Raises:
        ValueError: for a file that is broken or no DINOv2 checkpoint.
    """
    family, config, state = read_checkpoint(path)
    return _network(_filled(path, family, config, lambda: state), family, blocks)


def _network(model: Any, family: str, blocks: Sequence[int] | None) -> nn.Module:
    """The patch tokens of a model: module (B, 3, H, W) -> (B, D, h, w)."""
    network = _FAMILIES[family].network
    if blocks is None:
        return network(model)
    if network is not Dinov2:
        raise InputError(f"blocks must be None for {family}, only DINOv2 has them, got {blocks}")
    return Dinov2(model, blocks)


def _is_complete(folder: Path) -> bool:
    names = {file.name for file in folder.iterdir()}
    weights = {"model.safetensors", "model.safetensors.index.json"}
    return "config.json" in names and bool(names & weights)


def _state(folder: Path) -> dict[str, Tensor]:
    """Weights in a folder: those of its only file, or of the shards that its index names."""
    from safetensors.torch import load_file

    whole = folder / "model.safetensors"
    if whole.is_file():
        return load_file(whole)
    index = json_object(whole.with_suffix(".safetensors.index.json"))
    shards = sorted(set(index["weight_map"].values()))
    if elsewhere := [shard for shard in shards if Path(shard).name != shard]:
        raise InputError(f"weights must lie in the folder, got {elsewhere[0]!r}")
    return {key: value for shard in shards for key, value in load_file(folder / shard).items()}


def _filled(
    source: Path, family: str, config: dict[str, Any], state: Callable[[], dict[str, Tensor]]
) -> Any:
    """Model of a config with the weights of a state.

    Raises:
        ValueError: where they cannot be read, are too few or have other shapes.
    """
    try:
        with _quiet():
            model, report = _classes(family)[1].from_pretrained(
                None,
                config=_own_config(family, config),
                state_dict=state(),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # safetensors raises Exception itself, transformers anything
        raise InputError(f"{source} cannot be loaded: {_reason(error)}") from error
    # Newer releases report a mismatch as (name, shape, shape), older ones as the name alone.
    misfits = (key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    lacking = {*report["missing_keys"], *misfits}
    lacking.discard("embeddings.mask_token")
    if lacking:
        raise InputError(
            f"{source} must hold every weight in the shape that its config says, "
            f"got none for {len(lacking)}: {', '.join(sorted(lacking)[:3])}"
        )
    return model


def _own_config(family: str, values: dict[str, Any]) -> Any:
    """Config of a family from the values that describe its network.

    Others are left out: a config can also name adapters, quantizers and kernels, which are code.
    """
    from transformers import PretrainedConfig

    kind = _classes(family)[0]
    own = kind().to_dict().keys() - PretrainedConfig().to_dict().keys()
    return kind(**{name: values[name] for name in own & values.keys()})


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no table of unused weights: what matters of it is raised as an error."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def hub_folder(repository: str) -> Path:
    """Folder of a repository's files, from the cache or else the hub.

    Raises:
        FileNotFoundError: where it is in neither.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import LocalEntryNotFoundError

    files = ["config.json", "model*.safetensors", "model.safetensors.index.json"]
    try:
        cached = snapshot_download(repository, allow_patterns=files, local_files_only=True)
        if _is_complete(Path(cached)):
            return Path(cached)
    except LocalEntryNotFoundError:
        pass
    try:
        # One bounded request: without a network the download itself retries for minutes.
        HfApi().model_info(repository, timeout=HUB_TIMEOUT_S)
        return Path(snapshot_download(repository, allow_patterns=files))
    except Exception as error:  # the errors of the hub's HTTP client have no common base
        raise MissingFileError(
            f"no weights: {repository} is neither in the Hugging Face cache ({HF_HUB_CACHE}) nor "
            f"to be had from the hub ({_reason(error)}). {advice(repository)}"
        ) from error


def advice(wanted: str) -> str:
    """What to do without the weights: what to get, where to put it, and what needs no download.

    Args:
        wanted: repository, or a file's name; for a name that is not known, dinov2_vits14 is named.
    """
    default = TRANSFORMERS["dinov2_vits14"]
    repository, url = (wanted, "") if "/" in wanted else (default.repository, default.url)
    for published in TRANSFORMERS.values():
        if wanted in (published.repository, published.url.rpartition("/")[2]):
            repository, url = published.repository, published.url
    file = f"get {url} and pass its path as weights, or " if url else ""
    return (
        f"Where there is internet, {file}run `hf download {repository} --local-dir FOLDER` and "
        f"pass FOLDER. To try things out with what pip installs, pass {OFFLINE}."
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
