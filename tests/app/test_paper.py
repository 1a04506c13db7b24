"""`-c paper` is the paper: Eq. 11 on axial patches, brought to the slice, and no more."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from workflows import SMALL

from monai_dpmm.app.workflows import run_workflow
from monai_dpmm.network.backbones.registry import load_backbone
from monai_dpmm.network.geometry import IMAGENET_MEAN, IMAGENET_STD

SIZE = SMALL["image_size"]


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """A folder with a model that was trained by the overlay, and the results of one scan."""
    folder = tmp_path_factory.mktemp("paper")
    draw = np.random.default_rng(0)
    for name in ("train/a", "train/b", "val/c", "test/d"):
        voxels = draw.normal(100, 20, (24, 28, 20)).astype(np.float32).clip(1)
        voxels[:4] = 0  # air, which the paper's pipeline scores like all else
        path = folder / "data" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1])), path)
    common = {**SMALL, "slice_step": 1, "bundle_root": str(folder), "device": "cpu"}
    run_workflow(["train", "paper"], **common, dataset_dir=str(folder / "data"))
    names = ["inference", str(folder / "models/model.json"), "paper"]
    own = {k: v for k, v in common.items() if k not in ("slice_step", "max_epochs")}
    run_workflow(names, **own, dataset_dir=str(folder / "data/test"))
    return folder


def reference(path, folder):
    """Patch scores of the axial slices by the formulas, (S, h, w), and the scan as it was turned.

    Percentiles of the voxels above the minimum become 0 and 1.
    """
    image = nib.load(path)
    codes = nib.orientations.axcodes2ornt("PLI")
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(image.affine), codes)
    )
    voxels = np.asarray(turned.dataobj, np.float64)
    lit = np.sort(voxels[voxels > voxels.min()])
    low, high = (lit[round(q / 100 * (len(lit) - 1))] for q in (0.5, 99.5))
    scaled = torch.tensor(((voxels - low) / (high - low)).clip(0, 1)).float()
    slices = scaled.permute(2, 0, 1)[:, None].expand(-1, 3, -1, -1)
    height, width = slices.shape[2:]
    long = 16 * round(max(height, width) * SIZE / (min(height, width) * 16))
    shape = (SIZE, long) if height <= width else (long, SIZE)
    images = F.interpolate(slices, size=shape, mode="bilinear", align_corners=False, antialias=True)
    images = (images - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(
        3, 1, 1
    )
    state = torch.load(folder / "models/model.pt", weights_only=True)
    with torch.no_grad():
        features = load_backbone("efficientnet_lite0")(images).movedim(1, -1)
    means = (state["mixture.offsets"] + state["mixture.origin"])[
        state["mixture.log_weights"].exp() > 1e-6
    ]
    cosine = F.cosine_similarity(
        features.flatten(0, 2)[:, None].double(), means[None].double(), dim=-1
    )
    return (1 - cosine.amax(1)).view(features.shape[:3]).float(), turned


def test_the_map_is_the_cosine_distance_brought_to_the_slice(paper):
    scores, turned = reference(paper / "data/test/d.nii.gz", paper)
    expected = F.interpolate(
        scores[:, None], size=turned.shape[:2], mode="bilinear", align_corners=False
    )
    expected = expected[:, 0].permute(1, 2, 0).numpy()
    found = nib.load(next((paper / "output").rglob("d_anomaly.nii.gz")))
    codes = nib.orientations.ornt_transform(
        nib.io_orientation(found.affine), nib.io_orientation(turned.affine)
    )
    result = np.asarray(found.as_reoriented(codes).dataobj)
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_thresholds_are_those_of_healthy_validation_patches(paper):
    scores, _ = reference(paper / "data/val/c.nii.gz", paper)
    state = torch.load(paper / "models/model.pt", weights_only=True)
    ordered = scores.flatten().sort(descending=True).values
    for rate, threshold in zip((0.01, 0.05, 0.1), state["thresholds"].tolist(), strict=True):
        assert threshold == pytest.approx(float(ordered[int(rate * len(ordered))]), abs=2e-5)
    findings = json.loads(next((paper / "output").rglob("d_findings.json")).read_text())
    assert findings["threshold"] == pytest.approx(state["thresholds"][0].item())
    assert findings["false_positive_rate"] == 0.01
