"""A data set's embeddings on disk, computed once for all that is compared on them."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser
from monai.transforms import Compose
from monai.utils import convert_to_tensor
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from monai_dpmm.files import whole_file
from monai_dpmm.io.datalist import datalist
from monai_dpmm.io.label_loading import LoadLabeld
from monai_dpmm.transforms.dictionary import EmbedPatchesd, LoadVolumed
from monai_dpmm.transforms.labels import IgnoreLabelledPatchesd

__all__ = ["EmbeddedDataset", "LabelledScan", "embedded_dataset", "with_label"]

# which an embedding does not follow from, though they are referred to where it is computed
_IRRELEVANT = {"device", "embedding_batch_size"}
_SECTIONS = ("preprocessing", "embedding", "backbone")


class LabelledScan(NamedTuple):
    """A test scan: its slices' embeddings (S, h, w, D) and lesions (S, H, W), bool."""

    name: str
    embeddings: Tensor
    masks: Tensor


class EmbeddedDataset:
    """Embeddings of a data set in safetensors files, one a scan, as the backbone gives them.

    Args:
        folder: of the files, see `embedded_dataset`.
        scans: names of the scans of the sections "train", "val" and "test".
    """

    def __init__(self, folder: str | Path, scans: Mapping[str, Sequence[str]]) -> None:
        self.folder = Path(folder)
        self.scans = {section: list(names) for section, names in scans.items()}

    def healthy(self, section: str, *, unit_norm: bool = True) -> list[Tensor]:
        """Slices (h, w, D) of all scans of "train" or "val" that are not background only."""
        scans = (self._tensors(section, i)["embeddings"] for i in range(len(self.scans[section])))
        return [
            grid
            for scan in scans
            for grid in (F.normalize(scan, dim=-1) if unit_norm else scan)
            if grid.any()
        ]

    def tests(self, *, unit_norm: bool = True) -> Iterator[LabelledScan]:
        """Test scans, one in memory at a time."""
        for number, name in enumerate(self.scans["test"]):
            tensors = self._tensors("test", number)
            embeddings = tensors["embeddings"]
            embeddings = F.normalize(embeddings, dim=-1) if unit_norm else embeddings
            yield LabelledScan(name, embeddings, tensors["masks"])

    @property
    def milliseconds(self) -> float:
        """Time that loading and embedding a test slice took, on average."""
        seconds = slices = 0.0
        for number in range(len(self.scans["test"])):
            with safe_open(self.path("test", number), "pt") as file:
                seconds += float(file.metadata()["seconds"])
                slices += file.get_slice("embeddings").get_shape()[0]
        return 1000 * seconds / slices

    @property
    def key(self) -> str:
        """What all embeddings follow from: settings and files."""
        sections = [(section, len(names)) for section, names in self.scans.items()]
        keys = [_key_of(self.path(section, i)) for section, count in sections for i in range(count)]
        return hashlib.sha256(json.dumps([sections, keys]).encode()).hexdigest()

    def path(self, section: str, number: int) -> Path:
        """File of a scan."""
        return self.folder / f"{section}_{number:05}.safetensors"

    def _tensors(self, section: str, number: int) -> dict[str, Tensor]:
        with safe_open(self.path(section, number), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def embedded_dataset(parser: ConfigParser, folder: str | Path) -> EmbeddedDataset:
    """Embeddings of the data set of a training config, unnormalised, in a folder.

    Scans that are there already, embedded with the same settings from the same files, are not
    embedded again.

    Args:
        parser: of the config and its overlays: "dataset_dir", "val_fraction", "seed", "embedding",
            "lesion_label".
        folder: made where it does not exist.

    Raises:
        InputError: see `monai_dpmm.scans.datalist`; every test scan must have a label, unless it is
            known to be healthy.
    """
    root, seed = (parser.get_parsed_content(key) for key in ("dataset_dir", "seed"))
    fraction = parser.get_parsed_content("val_fraction")
    items = {
        section: datalist(root, section, val_fraction=fraction, seed=seed, labels=section == "test")
        for section in ("train", "val", "test")
    }
    names = {section: [Path(i["image"]).name for i in part] for section, part in items.items()}
    dataset = EmbeddedDataset(folder, names)
    settings = _settings(parser)
    missing = [
        (section, number, item, key)
        for section, part in items.items()
        for number, item in enumerate(part)
        if _key_of(dataset.path(section, number)) != (key := _key(settings, section, item))
    ]
    if missing:
        dataset.folder.mkdir(parents=True, exist_ok=True)
        transforms = parser.get_parsed_content("embedding").flatten().transforms
        healthy = _unnormalised(transforms)
        test = _with_lesions(transforms, LoadLabeld(rule=parser.get_parsed_content("lesion_label")))
        for section, number, item, key in tqdm(missing, desc="Embedding"):
            pipeline = test if section == "test" else healthy
            _embed(item, pipeline, dataset.path(section, number), key)
    return dataset


def _unnormalised(transforms: Sequence[Any]) -> Compose:
    """Embeddings as the backbone gives them."""
    for transform in transforms:
        if isinstance(transform, EmbedPatchesd):
            transform.transform.options["unit_norm"] = False
    return Compose(transforms)


def _with_lesions(transforms: Sequence[Any], label: LoadLabeld) -> Compose:
    """The same of a test scan, and slices of its lesions, which are none where it is healthy."""
    kept = [t for t in transforms if not isinstance(t, IgnoreLabelledPatchesd)]
    return Compose(with_label(kept, label))


def with_label(transforms: Sequence[Any], label: LoadLabeld) -> list[Any]:
    """The transforms with another loader of labels in the place of the training's."""

    def loads_label(transform: Any) -> bool:
        return isinstance(transform, LoadVolumed) and "label" in transform.keys

    return [label if loads_label(transform) else transform for transform in transforms]


def _embed(item: Mapping[str, str], pipeline: Compose, path: Path, key: str) -> None:
    start = time.perf_counter()
    data: Any = pipeline(dict(item))
    seconds = time.perf_counter() - start
    tensors = {"embeddings": convert_to_tensor(data["image"], track_meta=False).contiguous()}
    if "label" in data:
        label = convert_to_tensor(data["label"], track_meta=False)
        tensors["masks"] = (label[:, 0] > 0).contiguous()
    with whole_file(path) as partial:
        save_file(tensors, partial, metadata={"key": key, "seconds": str(seconds)})


def _settings(parser: ConfigParser) -> dict[str, Any]:
    """All of a config that embeddings follow from, as it is written.

    These are the sections that compute them and whatever those refer to, and the rule for lesions.
    """
    config = parser.get()
    found: dict[str, Any] = {}
    names = [*_SECTIONS, "lesion_label"]
    while names:
        name = names.pop()
        if name in config and name not in _IRRELEVANT and name not in found:
            found[name] = config[name]
            names += re.findall(r"@(\w+)", json.dumps(config[name]))
    return found


def _key(settings: Mapping[str, Any], section: str, item: Mapping[str, str]) -> str:
    """What the embeddings of a scan follow from: settings, files, their sizes and dates."""
    named = [Path(item[key]) for key in ("image", "label") if key in item]
    paths = [p for path in named for p in (path, *sorted(path.glob("*")))]
    files = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]
    text = json.dumps([settings, section == "test", files], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _key_of(path: Path) -> str | None:
    """Key of a scan that was embedded, None where there is none."""
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get("key")
