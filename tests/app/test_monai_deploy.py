"""MONAI Deploy's own operators run a bundle, as a folder and as TorchScript, to a DICOM SEG.

MONAI_DPMM_DEPLOY_SDK names a folder that holds the SDK's package (see `.ci/run`).
"""

import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import write_series
from monai.bundle import ckpt_export
from workflows import ROOT

from monai_dpmm.app.prediction import predict
from monai_dpmm.app.release import write_bundle

SDK = os.environ.get("MONAI_DPMM_DEPLOY_SDK")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SDK, reason="MONAI_DPMM_DEPLOY_SDK must name the SDK's folder"),
    pytest.mark.filterwarnings("ignore:The exported network leaves out"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SPACING = (5.0, 5.0, 6.0)  # the SDK exchanges the sides of pixels that are not square
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)


@pytest.fixture(scope="module")
def bundle(trained_by_default, tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundles") / "heads", trained_by_default)


@pytest.fixture(scope="module")
def archive(bundle):
    """The bundle as one file of TorchScript, as its README makes it."""
    file = bundle.parent / "model.ts"
    ckpt_export(
        net_id="network_def", filepath=str(file), ckpt_file=str(bundle / "models/model.pt"),
        config_file=str(bundle / "configs/inference.json"), key_in_ckpt="", use_trace=True,
        meta_file=str(bundle / "configs/metadata.json"), input_shape=[1, 1, 64, 64],
        bundle_root=str(bundle),
    )  # fmt: skip
    return file


@pytest.fixture(scope="module")
def series(cohort, tmp_path_factory):
    """A head as a tilted series, its voxels and their place in RAS+ mm."""
    folder = tmp_path_factory.mktemp("series")
    head = nib.load(cohort / "test/images/test_002.nii.gz").get_fdata()
    voxels = (head / head.max() * 1000).astype(np.uint16)
    lps = write_series(folder, voxels, spacing=SPACING, directions=OBLIQUE)
    return folder, voxels, np.diag([-1, -1, 1, 1]) @ lps


@pytest.mark.parametrize("form", ["bundle", "archive"])
def test_the_example_writes_the_mask_of_the_bundle(form, bundle, series, request, tmp_path):
    folder, voxels, affine = series
    model = request.getfixturevalue(form)
    command = [sys.executable, ROOT / "tests/deploy_without_holoscan.py", SDK]
    command += [ROOT / "examples/monai_deploy/app.py", "--input", folder, "--model", model]
    result = subprocess.run(
        [*map(str, command), "--output", str(tmp_path / "out")],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    (file,) = (tmp_path / "out").glob("*.dcm")
    segmentation = pydicom.dcmread(file)
    assert segmentation.Modality == "SEG"
    assert [one.SegmentLabel for one in segmentation.SegmentSequence] == ["Anomaly"]
    expected = predict(voxels, bundle, affine=affine).mask.numpy()
    assert expected.any()
    assert np.array_equal(_mask(segmentation, expected.shape, affine), expected)


def _mask(segmentation, shape, affine):
    """The segmentation's frames, each put where its position says."""
    mask = np.zeros(shape, np.uint8)
    pixels = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    for frame, item in zip(pixels, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        place = np.linalg.solve(affine, [*(position * [-1, -1, 1]), 1])
        mask[:, :, round(place[2])] = frame.T
    return mask
