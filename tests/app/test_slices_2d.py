"""The whole way on pictures: a BMAD data set is trained on, evaluated, and read again."""

import json

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image
from slice_trees import picture, write_tree
from workflows import ROOT, SMALL, run_bundle

from monai_dpmm.io.datalist import datalist

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

SETTINGS = {**SMALL, "components": 30, "slice_step": 1, "window": "[0,255]", "percentiles": "None"}


@pytest.mark.parametrize("overlay", ["bmad", "resc"])
def test_a_backbone_gets_a_picture_upright_and_scaled_by_255(overlay, tmp_path):
    pixels = picture(0)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    parser = ConfigParser()
    parser.read_config([str(ROOT / f"configs/{name}.json") for name in ("train", overlay)])
    prepared = parser.get_parsed_content("preprocessing")({"image": tmp_path / "picture.png"})
    np.testing.assert_allclose(prepared["image"][0], pixels / 255, atol=1e-6)


@pytest.fixture(scope="module")
def resc(tmp_path_factory):
    """A data set with RESC's layout and aspect ratio, and a model of it on a square grid."""
    root = tmp_path_factory.mktemp("resc")
    counts = {"train": 10, "val/good": 4, "val/bad": 2, "test/good": 3, "test/bad": 4}
    write_tree(root / "data", "resc", counts=counts, shape=(48, 96))
    settings = SETTINGS | {"bundle_root": root, "dataset_dir": root / "data"}
    run_bundle("training", ["train", "resc"], **settings)
    return root, settings


def test_evaluation_finds_the_lesions_and_reports_on_pictures(resc):
    root, settings = resc
    run_bundle("run", ["inference", "resc", "evaluate"], **settings, bootstrap=50, lesion_label=255)
    report = json.loads((root / "output/report/metrics.json").read_text())
    assert report["metrics"]["pixel_auroc"] > 0.8
    assert len(report["subjects"]) == 7
    assert (root / "output/report/report.html").is_file()
    saved = json.loads((root / "models/model.json").read_text())
    assert saved["patch_grid"] == [32, 32]
    assert saved["window"] == [0, 255]


def test_inference_marks_the_lesion_where_it_is_in_the_picture(resc, tmp_path):
    root, _ = resc
    bad = [item["image"] for item in datalist(root / "data", "test") if item["anomalous"]]
    model = str(root / "models/model.json")
    run_bundle(
        "run",
        ["inference", model],
        ckpt_dir=root / "models",
        dataset_dir=bad[0],
        output_dir=tmp_path,
    )
    (anomaly,) = tmp_path.rglob("*_anomaly.nii.gz")
    scores = np.squeeze(nib.load(anomaly).get_fdata())
    pixels = np.asarray(Image.open(bad[0]))
    assert scores.shape == pixels.T.shape
    inside = np.zeros(pixels.shape, bool)
    inside[20:34, 24:40] = True
    assert scores[inside.T].mean() > 2 * scores[~inside.T].mean()
    findings = json.loads(next(tmp_path.rglob("*_findings.json")).read_text())
    assert findings["lesions"][0]["area_px"] > 20


def test_a_data_set_in_colour_goes_all_the_way(tmp_path):
    """MVTec AD's layout; its results are pictures, of the pictures' size."""
    write_tree(tmp_path / "data", "mvtec")
    for file in (tmp_path / "data").rglob("*.png"):
        if "ground_truth" not in file.parts:
            grey = np.asarray(Image.open(file))
            Image.fromarray(np.stack([grey, grey // 2, 255 - grey], -1)).save(file)
    settings = SETTINGS | {"bundle_root": tmp_path, "dataset_dir": tmp_path / "data"}
    run_bundle("training", ["train", "bmad"], **settings)
    run_bundle("run", ["inference", "bmad", "evaluate"], **settings, bootstrap=0)
    report = json.loads((tmp_path / "output/report/metrics.json").read_text())
    assert report["metrics"]["pixel_auroc"] > 0.7
    assert len(report["subjects"]) == 7
    assert {Image.open(file).size for file in tmp_path.glob("output/test/**/*.png")} == {(64, 48)}
