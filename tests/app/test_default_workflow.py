"""All that `train` adds to the paper, as its users run it: training, then inference."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from workflows import run_bundle

pytestmark = pytest.mark.slow  # whole workflows


@pytest.fixture(scope="module")
def results(cohort, trained_by_default, tmp_path_factory):
    """Root of a model of the cohort, and the folder of results of its first test scan."""
    root, output = trained_by_default, tmp_path_factory.mktemp("default") / "output"
    run_bundle(
        "run",
        ["inference", str(root / "models/model.json")],
        bundle_root=root,
        dataset_dir=cohort / "test/images/test_000.nii.gz",
        output_dir=output,
    )
    return root, output


def volume(folder, kind):
    return np.asarray(nib.load(next(folder.rglob(f"test_000_{kind}.nii.gz"))).dataobj)


def test_the_model_has_directions_places_and_an_operating_point(results):
    root, _ = results
    state = torch.load(root / "models/model.pt", weights_only=True)
    model = json.loads((root / "models/model.json").read_text())
    assert model["slice_axis"] == [2, 0, 1]
    for direction in range(3):
        assert state[f"mixture.{direction}.initialized"]
        assert float(state[f"mixture.{direction}.places.counts"].sum()) > 0
        assert float(state["score_moments"][direction, 1]) > 0
    assert state["thresholds"].isfinite().all()
    assert {one["ml_per_scan"] for one in model["volume_thresholds"]} <= {0.5, 2.0}
    healthy = model["healthy_scans"]
    assert len(healthy["scores"]) == model["volume_thresholds"][0]["scans"]
    assert 0 < healthy["left_out"] < len(healthy["scores"])  # few were held back


def test_air_is_lowest_and_belongs_to_no_prototype(results, cohort):
    _, folder = results
    anomaly, component = volume(folder, "anomaly"), volume(folder, "component")
    scan = np.asarray(nib.load(cohort / "test/images/test_000.nii.gz").dataobj)
    air = component == 0
    assert (scan[air] == scan.min()).mean() > 0.99
    assert anomaly[air].max() <= anomaly[~air].min() + 1e-5
    assert np.median(anomaly[~air]) == pytest.approx(0, abs=1e-4)


def test_the_mask_begins_at_the_threshold_that_the_findings_name(results):
    _, folder = results
    findings = json.loads(next(folder.rglob("test_000_findings.json")).read_text())
    mask = volume(folder, "mask") > 0
    assert np.array_equal(mask, volume(folder, "anomaly") > findings["threshold"])
    assert findings["false_positive_volume_ml"] in (2.0, None)
    assert "baseline" in findings
    assert [one["rank"] for one in findings["lesions"]] == [*range(1, len(findings["lesions"]) + 1)]
