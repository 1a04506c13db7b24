"""A data set's embeddings from the store of training, test scans with their lesions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser
from torch import Tensor
from torch.nn import functional as F

from monai_dpmm.engines.embedding_store import StoredEmbeddings
from monai_dpmm.engines.fingerprint import fingerprint
from monai_dpmm.io.datalist import datalist
from monai_dpmm.io.label_loading import LoadLabeld
from monai_dpmm.transforms.dictionary import LoadVolumed
from monai_dpmm.transforms.labels import IgnoreLabelledPatchesd

__all__ = ["EmbeddedDataset", "LabelledScan", "embedded_dataset"]


class LabelledScan(NamedTuple):
    """A test scan: its slices' embeddings (S, h, w, D) and lesions (S, H, W), bool."""

    name: str
    embeddings: Tensor
    masks: Tensor


class EmbeddedDataset:
    """Embeddings of the sections "train", "val" and "test", as they are or of unit norm.

    Args:
        root: folder of the data set.
        sections: each one's scans; those of "test" with a label.
    """

    def __init__(self, root: str | Path, sections: Mapping[str, StoredEmbeddings]) -> None:
        self.root = Path(root)
        self.sections = sections

    def healthy(self, section: str, *, unit_norm: bool = True) -> list[Tensor]:
        """Slices (h, w, D) of all scans of "train" or "val" that are not background only."""
        return list(self.sections[section].slices(unit_norm=unit_norm))

    def tests(self, *, unit_norm: bool = True) -> Iterator[LabelledScan]:
        """Test scans, one in memory at a time."""
        scans = self.sections["test"]
        for index, item in enumerate(scans.data):
            read = scans.read(index)
            grids = F.normalize(read["image"], dim=-1) if unit_norm else read["image"]
            yield LabelledScan(Path(item["image"]).name, grids, read["label"])

    @property
    def key(self) -> str:
        """What all embeddings follow from: settings and files."""
        return fingerprint(
            {
                name: [scans.path(index).stem for index in range(len(scans))]
                for name, scans in self.sections.items()
            }
        )


def embedded_dataset(parser: ConfigParser) -> EmbeddedDataset:
    """Embeddings of the data set of a training config, those of training's own store.

    Args:
        parser: of the config and its overlays: "dataset_dir", "embedding_dir", "val_fraction",
            "seed", "embedding", "lesion_label".

    Raises:
        InputError: see `monai_dpmm.io.datalist.datalist`; every test scan must have a label, unless
            it is known to be healthy.
    """
    root, seed = (parser.get_parsed_content(key) for key in ("dataset_dir", "seed"))
    fraction = parser.get_parsed_content("val_fraction")
    items = {
        section: datalist(root, section, val_fraction=fraction, seed=seed, labels=section == "test")
        for section in ("train", "val", "test")
    }
    healthy = parser.get_parsed_content("embedding").flatten().transforms
    test = _with_lesions(healthy, LoadLabeld(rule=parser.get_parsed_content("lesion_label")))
    folder = parser.get_parsed_content("embedding_dir")
    sections = {
        section: StoredEmbeddings(part, test if section == "test" else healthy, folder)
        for section, part in items.items()
    }
    for scans in sections.values():
        scans.embed()
    return EmbeddedDataset(root, sections)


def _with_lesions(transforms: Sequence[Any], label: LoadLabeld) -> list[Any]:
    """The transforms for test scans: slices of lesions are kept, none where a scan is healthy."""

    def loads_label(transform: Any) -> bool:
        return isinstance(transform, LoadVolumed) and "label" in transform.keys

    kept = [t for t in transforms if not isinstance(t, IgnoreLabelledPatchesd)]
    return [label if loads_label(transform) else transform for transform in kept]
