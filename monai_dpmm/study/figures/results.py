"""The scans of an evaluation as it saved them: maps, masks and prototypes beside scan and label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from monai_dpmm.errors import InputError
from monai_dpmm.io.datalist import data_root, datalist
from monai_dpmm.io.label_loading import LabelRule, lesions
from monai_dpmm.io.result_files import result_files, scan_name
from monai_dpmm.report.display import Scan, fullest_slice, grey_range
from monai_dpmm.report.saved_findings import findings_of, scan_subject
from monai_dpmm.report.volumes import subject_volumes

__all__ = ["SavedScans", "single_slice"]


class SavedScans:
    """The test scans of a data set with what an evaluation found, each read when it is asked for.

    Args:
        dataset_dir: as the evaluation was given it.
        results: folder that it wrote, its output_dir.
        rule: of the labels, see `LoadLabeld`.
        axis: that slices are perpendicular to, of a volume towards Right, Anterior, Superior.
        pattern: of the names of the scans, as the evaluation was given it.

    Attributes:
        threshold: of the masks.

    Raises:
        InputError: where results of a scan are missing, or no test scans are there.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        results: str | Path,
        *,
        rule: LabelRule,
        axis: int,
        pattern: str | None = None,
    ) -> None:
        self.items = datalist(dataset_dir, "test", labels=True, pattern=pattern)
        self.rule, self.axis = rule, axis
        root = data_root(dataset_dir)
        self._files = [result_files(item["image"], results, root) for item in self.items]
        missing = [path for files in self._files for path in files.values() if not path.is_file()]
        if missing:
            raise InputError(
                f"{results}: must hold what an evaluation of {dataset_dir} saved, there is no"
                f" {missing[0]}: run `monai-dpmm evaluate` first"
            )
        self.threshold = float(findings_of(self._files[0]["findings"])["threshold"])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> tuple[str, Scan]:
        """Name and volumes of a scan, grey values in [0, 1]; lesions are none where it is healthy.

        Raises:
            InputError: where a file cannot be read or lies on another grid.
        """
        item, files = self.items[number], self._files[number]
        image, found = item["image"], {"score": None, "threshold": 0}
        subject = scan_subject(scan_name(image), image, files, found, item.get("label"))
        volumes, spacing, _ = subject_volumes(subject)
        low, high = grey_range(volumes["image"])
        image = ((volumes["image"].astype(np.float32) - low) / (high - low)).clip(0, 1)
        label = volumes["label"]
        label = np.zeros(image.shape) if label is None else label  # known to be, see `datalist`
        lesion = lesions(MetaTensor(torch.as_tensor(np.array(label))), self.rule).numpy() > 0
        volumes |= {"image": image, "label": lesion}
        return subject["name"], Scan.of(**volumes, axis=self.axis, spacing=spacing)


def single_slice(scan: Scan) -> Scan:
    """The slice of a scan with the most of its label, of its mask if it has none."""
    index = fullest_slice(scan.label, scan.axis)
    assert index is not None
    arrays = {
        name: None if volume is None else np.take(volume, [index], scan.axis)
        for name, volume in scan._asdict().items()
        if name in ("image", "anomaly", "mask", "components", "label")
    }
    return scan._replace(**arrays)
