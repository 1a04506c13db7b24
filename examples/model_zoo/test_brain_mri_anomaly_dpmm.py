"""Unit test of the bundle for MONAI's model zoo, in its style: to ci/unit_tests of the zoo."""

import os
import sys
import tempfile
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

BUNDLE = Path(os.environ.get("BUNDLE", "models/brain_mri_anomaly_dpmm"))


class TestBrainMriAnomaly(unittest.TestCase):
    """Training and inference on scans made here; `BUNDLE` names the bundle's folder."""

    def setUp(self) -> None:
        """Write four heads of noise."""
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.scans = Path(self.folder.name, "scans")
        self.scans.mkdir()
        random = np.random.default_rng(0)
        x, y, z = np.mgrid[-1:1:28j, -1:1:32j, -1:1:24j]
        body = x**2 + y**2 + z**2 < 0.7
        for number in range(4):
            voxels = body * (500 + 100 * random.random(body.shape))
            image = nib.Nifti1Image(voxels.astype(np.int16), np.diag([6, 6, 6, 1]))
            nib.save(image, self.scans / f"scan_{number}.nii.gz")

    def run_workflow(self, kind: str, config: str, **overrides: object) -> None:
        """Run a workflow of the bundle, which must lack no property."""
        sys.path.insert(0, str(BUNDLE))
        workflow = ConfigWorkflow(
            workflow_type=kind,
            config_file=str(BUNDLE / "configs" / config),
            meta_file=str(BUNDLE / "configs" / "metadata.json"),
            logging_file=str(BUNDLE / "configs" / "logging.conf"),
            bundle_root=str(BUNDLE),
            dataset_dir=str(self.scans),
            output_dir=str(Path(self.folder.name, "output")),
            **overrides,
        )
        workflow.initialize()
        assert workflow.check_properties() == []
        workflow.run()
        workflow.finalize()

    def test_inference(self) -> None:
        """Each scan has a heat map on its own grid."""
        self.run_workflow("infer", "inference.json")
        for scan in self.scans.iterdir():
            name = scan.name.removesuffix(".nii.gz")
            anomaly = nib.load(Path(self.folder.name, "output", name, f"{name}_anomaly.nii.gz"))
            assert anomaly.shape == nib.load(scan).shape

    def test_training(self) -> None:
        """A model appears where it is asked for."""
        models = Path(self.folder.name, "models")
        places = {"ckpt_dir": str(models), "embedding_dir": str(models / "embeddings")}
        self.run_workflow("train", "train.json", max_epochs=1, components=10, **places)
        assert (models / "model.pt").is_file()


if __name__ == "__main__":
    unittest.main()
