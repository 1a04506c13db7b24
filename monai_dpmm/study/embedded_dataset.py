"""A data set's embeddings from the store of training, test scans with their lesions."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor
from torch.nn import functional as F

from monai_dpmm.engines.embedding_store import StoredEmbeddings
from monai_dpmm.engines.fingerprint import fingerprint
from monai_dpmm.errors import InputError
from monai_dpmm.io.datalist import data_root, datalist
from monai_dpmm.io.label_loading import LoadLabeld
from monai_dpmm.network.geometry import slice_axes
from monai_dpmm.study.bodies import Body, body_of
from monai_dpmm.transforms.dictionary import LoadVolumed
from monai_dpmm.transforms.labels import IgnoreLabelledPatchesd
from monai_dpmm.transforms.metatensors import PLACE

MATCHED = "test_level_matched.csv"  # in the folder of a data set

__all__ = ["EmbeddedDataset", "LabelledScan", "embedded_dataset"]


class LabelledScan(NamedTuple):
    """A test scan as slices.

    Attributes:
        name: of its file.
        embeddings: (S, h, w, D).
        places: of the patches, (S, h, w, 3) in [0, 1].
        masks: lesions, (S, H, W) bool.
        foreground: pixels of the body, (S, H, W) bool.
        spacing: of slices, rows and columns, mm.
        group: the patient, or the scan itself where that is not known.
        matched: whether it is one of the scans whose scores as a whole are compared.
    """

    name: str
    embeddings: Tensor
    places: Tensor
    masks: Tensor
    foreground: Tensor
    spacing: tuple[float, float, float]
    group: str
    matched: bool = True


class EmbeddedDataset:
    """Embeddings of the sections "train", "val" and "test", as they are or of unit norm.

    Args:
        root: folder of the data set.
        sections: each one's scans; those of "test" with a label.
        body: of a scan, by its item.
        matched: names of the test scans that are compared as a whole, all if None.
    """

    def __init__(
        self,
        root: str | Path,
        sections: Mapping[str, StoredEmbeddings],
        body: Callable[[Mapping[str, Any]], Body],
        matched: frozenset[str] | None = None,
    ) -> None:
        self.root = Path(root)
        self.sections = sections
        self.matched = matched
        self._body = body
        # of test scans, the foreground eight voxels a byte, and the length of its rows
        self._seen: dict[str, tuple[Body, int]] = {}

    def healthy(self, section: str, *, unit_norm: bool = True) -> list[Tensor]:
        """Slices (h, w, D) of all scans of "train" or "val" that are not background only."""
        return list(self.sections[section].slices(unit_norm=unit_norm))

    def places(self, section: str) -> list[Tensor]:
        """Places (h, w, 3) of the patches of the slices of `healthy`, in their order."""
        slices = self.sections[section].slices()
        return [slices.item(index)[PLACE] for index in range(len(slices))]

    def tests(self, *, unit_norm: bool = True) -> Iterator[LabelledScan]:
        """Test scans, one in memory at a time, but for where their bodies are: a bit a voxel."""
        scans = self.sections["test"]
        for index, item in enumerate(scans.data):
            read = scans.read(index)
            grids = F.normalize(read["image"], dim=-1) if unit_norm else read["image"]
            body, name = self._test_body(item), Path(item["image"]).name
            yield LabelledScan(
                name,
                grids,
                read[PLACE],
                read["label"],
                body.slices,
                body.slice_spacing,
                str(item.get("patient", item["image"])),
                self.matched is None or name in self.matched,
            )

    def _test_body(self, item: Mapping[str, Any]) -> Body:
        """The body of a test scan, found once."""
        path = item["image"]
        if path not in self._seen:
            body = self._body(item)
            packed = torch.from_numpy(np.packbits(body.foreground.numpy(), axis=-1))
            self._seen[path] = body._replace(foreground=packed), body.foreground.shape[-1]
        body, width = self._seen[path]
        bits = np.unpackbits(body.foreground.numpy(), axis=-1, count=width)
        return body._replace(foreground=torch.from_numpy(bits).bool())

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

    Test scans have every n-th slice where training has. Slices of volumes are taken along one axis,
    the first of several in the config.

    Args:
        parser: of the config and its overlays: "dataset_dir", "embedding_dir", "embedding_dtype",
            "embedding_limit_gb", "val_fraction", "seed", "pattern", "preprocessing", "slice_axis",
            "slice_step", "slice_spacing_mm", "lesion_label", and "preprocessing" of "train" and
            "validate".

    Raises:
        InputError: see `monai_dpmm.io.datalist.datalist`; every test scan must have a label, unless
            it is known to be healthy.
    """
    axis = slice_axes(parser.get_parsed_content("slice_axis"))[0]
    parser["slice_axis"] = axis
    root = parser.get_parsed_content("dataset_dir")
    drawn = {key: parser.get_parsed_content(key) for key in ("val_fraction", "seed", "pattern")}
    items = {
        section: datalist(root, section, **drawn, labels=section == "test")
        for section in ("train", "val", "test")
    }
    train, val = (
        parser.get_parsed_content(f"{workflow}#preprocessing").flatten().transforms
        for workflow in ("train", "validate")
    )
    test = _with_lesions(train, LoadLabeld(rule=parser.get_parsed_content("lesion_label")))
    steps = {"train": train, "val": val, "test": test}
    folder, dtype, limit = (
        parser.get_parsed_content(f"embedding_{name}") for name in ("dir", "dtype", "limit_gb")
    )
    sections = {
        name: StoredEmbeddings(part, steps[name], folder, dtype=dtype, limit_gb=limit)
        for name, part in items.items()
    }
    for scans in sections.values():
        scans.embed()
    preprocessing = parser.get_parsed_content("preprocessing")
    step, mm = (parser.get_parsed_content(f"slice_{name}") for name in ("step", "spacing_mm"))
    body = partial(body_of, preprocessing=preprocessing, axis=axis, step=step, spacing_mm=mm)
    return EmbeddedDataset(root, sections, body, _matched(Path(data_root(root))))


def _matched(root: Path) -> frozenset[str] | None:
    """Names of test scans in the column "file" of a table in the data set's folder, if it is there.

    Raises:
        InputError: where the table has no such column.
    """
    path = root / MATCHED
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "file" not in rows[0]:
        raise InputError(f"{path}: must have a column named file, and a row at least")
    return frozenset(row["file"] for row in rows)


def _with_lesions(transforms: Sequence[Any], label: LoadLabeld) -> list[Any]:
    """The transforms for test scans: slices of lesions are kept, none where a scan is healthy."""

    def loads_label(transform: Any) -> bool:
        return isinstance(transform, LoadVolumed) and "label" in transform.keys

    kept = [t for t in transforms if not isinstance(t, IgnoreLabelledPatchesd)]
    return [label if loads_label(transform) else transform for transform in kept]
