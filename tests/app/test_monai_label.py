"""The stock MONAI Label server with its `monaibundle` app serves a trained model, over HTTP.

It runs in its own environment: MONAI_DPMM_LABEL_PYTHON names the python of one that holds
tests/monailabel/requirements.txt, requirements-no-deps.txt and this package.
"""

import ctypes
import email
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import requests
import SimpleITK as sitk  # noqa: N813 - its documentation's name
import torch
from workflows import with_reference

from monai_dpmm import image_score, write_bundle

PYTHON = os.environ.get("MONAI_DPMM_LABEL_PYTHON")
NAME = "brain_mri_anomaly_dpmm"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="MONAI_DPMM_LABEL_PYTHON must name MONAI Label's python"),
]


class Server:
    """A running server: its process, its folder of studies, and the requests of the tests."""

    def __init__(self, root):
        self.studies = root / "studies"
        self.bundle = root / "monaibundle/model" / NAME
        self.log = root / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [PYTHON, "-m", "monailabel.main", "start_server", "--host", "127.0.0.1"]
        command += ["--app", root / "monaibundle", "--studies", self.studies, "--port", port]
        command += ["--conf", "models", NAME, "--conf", "zoo_source", "none"]
        command += ["--conf", "sam2", "false"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=root,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def wait(self):
        for _ in range(240):
            assert self.process.poll() is None, self.lines()[-4000:]
            try:
                return self.info()
            except requests.ConnectionError:
                time.sleep(0.5)
        raise AssertionError(self.lines()[-4000:])

    def lines(self):
        return self.log.read_text("utf-8", errors="replace")

    def close(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def info(self):
        return requests.get(f"{self.url}/info/", timeout=30).json()

    def request(self, image, params):
        """Answer to a request for an inference."""
        return requests.post(
            f"{self.url}/infer/{NAME}",
            params={"image": str(image)},
            files={"params": (None, json.dumps(params))},
            timeout=120,
        )

    def infer(self, image, folder, **params):
        """File and JSON of an inference, from the two parts of the response."""
        response = self.request(image, params)
        assert response.status_code == 200, self.lines()[-4000:]
        header = f"Content-Type: {response.headers['Content-Type']}\r\n\r\n".encode()
        parts = email.message_from_bytes(header + response.content).get_payload()
        by_name = {part.get_param("name", header="Content-Disposition"): part for part in parts}
        path = folder / by_name["image"].get_filename()
        path.write_bytes(by_name["image"].get_payload(decode=True))
        return path, json.loads(by_name["params"].get_payload(decode=True))

    def run(self, selector, params, **query):
        """Last state of a task that runs in the background."""
        url = f"{self.url}/{selector}"
        response = requests.post(f"{url}/{NAME}", json=params, params=query, timeout=30)
        assert response.status_code == 200, response.text
        for _ in range(480):
            task = requests.get(f"{url}/", timeout=30).json()
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return task
            time.sleep(0.25)
        raise AssertionError(self.lines()[-4000:])

    def submit(self, image, label):
        """Save a final label, as the button "Submit Label" does."""
        with label.open("rb") as file:
            response = requests.put(
                f"{self.url}/datastore/label",
                params={"image": image, "tag": "final"},
                files={"label": (label.name, file), "params": (None, "{}")},
                timeout=30,
            )
        assert response.status_code == 200, response.text


def _die_with_parent():
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@pytest.fixture(scope="module")
def server(trained, cohort, tmp_path_factory):
    root = tmp_path_factory.mktemp("label")
    command = [PYTHON, "-m", "monailabel.main", "apps", "--download", "--name", "monaibundle"]
    subprocess.run([*command, "--output", str(root)], check=True, capture_output=True)
    write_bundle(root / "monaibundle/model" / NAME, with_reference(trained, root / "trained"))
    shutil.copytree(cohort / "test/images", root / "studies")
    scan = nib.load(root / "studies/test_000.nii.gz")
    nib.save(_turned(scan), root / "studies/turned.nii.gz")
    started = Server(root)
    try:
        started.wait()
        yield started
    finally:
        started.close()


def _turned(scan):
    """The same voxels stored in another order."""
    return scan.as_reoriented(nib.orientations.axcodes2ornt(("A", "R", "I")))


def _slicer(server, section="models", **choices):
    """What 3D Slicer sends: the first of each option that /info/ lists, and its own format."""
    config = server.info()[section][NAME]["config"]
    params = {key: value[0] if isinstance(value, list) else value for key, value in config.items()}
    if section == "models":
        params |= {"result_extension": ".nrrd", "result_dtype": "uint8"}
    return params | {"client_id": "user-xyz"} | choices


def _same_grid(image, source):
    return (
        image.GetSize() == source.GetSize()
        and np.allclose(image.GetOrigin(), source.GetOrigin(), atol=1e-3)
        and np.allclose(image.GetSpacing(), source.GetSpacing(), atol=1e-4)
        and np.allclose(image.GetDirection(), source.GetDirection(), atol=1e-5)
    )


def _voxels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_info_lists_the_model_its_label_and_its_options(server):
    info = server.info()
    model = info["models"][NAME]
    assert model["type"] == "segmentation"
    assert list(model["labels"].values()) == [1, 2, 3]
    assert next(iter(model["labels"])) == "anomaly"
    assert model["config"]["output"] == ["mask", "levels"]
    assert model["config"]["false_positive_rate"] == ["default", "0.01", "0.05", "0.1"]
    assert model["config"]["model_filename"] == ["model.pt"]
    assert list(info["trainers"]) == [NAME]


def test_slicer_gets_a_label_map_of_the_chosen_threshold(server, tmp_path):
    state = torch.load(server.bundle / "models/model.pt", weights_only=True)
    path, _ = server.infer("test_000", tmp_path, output="heatmap")
    scores = _voxels(path)
    source = sitk.ReadImage(str(server.studies / "test_000.nii.gz"))
    for threshold, rate in zip(state["thresholds"], ("0.01", "0.05", "0.1"), strict=True):
        params = _slicer(server, false_positive_rate=rate)
        path, result = server.infer("test_000", tmp_path, **params)
        mask = sitk.ReadImage(str(path))
        assert path.suffix == ".nrrd"
        assert mask.GetPixelID() == sitk.sitkUInt8
        assert _same_grid(mask, source)
        values = sitk.GetArrayFromImage(mask)
        assert values.any()
        assert np.array_equal(values, (scores > threshold.item()).astype(np.uint8))
    assert result["label_names"] == server.info()["models"][NAME]["labels"]
    assert result["score"] == pytest.approx(
        float(image_score(torch.tensor(scores), 0.001)), rel=1e-4
    )


def test_operating_points_are_segments_of_one_label_map(server, tmp_path):
    state = torch.load(server.bundle / "models/model.pt", weights_only=True)
    path, _ = server.infer("test_000", tmp_path, output="heatmap")
    scores = _voxels(path)
    path, _ = server.infer("test_000", tmp_path, **_slicer(server, output="levels"))
    levels = sitk.ReadImage(str(path))
    assert levels.GetPixelID() == sitk.sitkUInt8
    assert _same_grid(levels, sitk.ReadImage(str(server.studies / "test_000.nii.gz")))
    expected = sum((scores > value.item()).astype(np.uint8) for value in state["thresholds"])
    assert np.array_equal(sitk.GetArrayFromImage(levels), expected)
    assert len(np.unique(expected)) > 2


@pytest.mark.parametrize(
    ("image", "params", "line"),
    [
        ("broken.nii.gz", {}, "broken.nii.gz: must be a scalar image"),
        ("colours.nii.gz", {}, "colours.nii.gz: must"),
        ("test_000", {"false_positive_rate": "0.2"}, "false_positive_rate must be one of"),
        ("test_000", {"output": "film"}, "output must be one of mask, levels, heatmap, got 'film'"),
        ("no_such_scan", {}, "a scan must have a path, got an empty one"),
    ],
)
def test_what_is_refused_reaches_the_client_as_one_line(server, tmp_path, image, params, line):
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    colours = np.zeros((8, 8, 4), [(c, "u1") for c in "RGB"])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "colours.nii.gz")
    name = str(tmp_path / image) if image.endswith(".gz") else image
    response = server.request(name, params)
    assert response.status_code == 400, response.text
    assert line in response.json()["detail"]
    assert "\n" not in response.json()["detail"]


def test_a_scan_unlike_the_training_says_so(server, tmp_path):
    _, result = server.infer("test_001", tmp_path)
    assert result["scan_check"]["suspicious"]
    assert result["scan_check"]["scans"] == 20


def test_the_heat_map_lies_on_the_scans_grid_in_any_orientation(server, tmp_path):
    images = {}
    for name in ("test_000", "turned"):
        # asked for as integers it still comes as float32
        path, _ = server.infer(name, tmp_path, output="heatmap", result_dtype="uint8")
        images[name] = nib.load(path)
        source = nib.load(server.studies / f"{name}.nii.gz")
        assert path.name.endswith(".nii.gz")
        assert images[name].get_data_dtype() == np.float32
        assert images[name].shape == source.shape
        assert np.allclose(images[name].affine, source.affine, atol=1e-4)
    expected = _turned(images["test_000"]).get_fdata()
    assert expected.max() > 0.1
    assert np.allclose(images["turned"].get_fdata(), expected, atol=1e-5)


def test_a_dicom_folder_is_marked_on_its_own_grid(server, tmp_path):
    image = sitk.ReadImage(str(server.studies / "test_001.nii.gz"))
    image = sitk.Cast(sitk.RescaleIntensity(image, 0, 1000), sitk.sitkInt16)
    turn = sitk.Euler3DTransform((0, 0, 0), 0.2, -0.1, 0.3).GetMatrix()
    image.SetDirection(np.array(turn).reshape(3, 3).round(6).ravel().tolist())
    _write_series(image, tmp_path / "series.1.2")
    path, result = server.infer(tmp_path / "series.1.2", tmp_path)
    assert path.name.endswith(".nii.gz")
    mask = sitk.ReadImage(str(path))
    assert _same_grid(mask, image)
    assert set(np.unique(sitk.GetArrayFromImage(mask))) == {0, 1}
    sitk.WriteImage(image, str(tmp_path / "same.nii.gz"))
    same, as_nifti = server.infer(tmp_path / "same.nii.gz", tmp_path)
    assert np.array_equal(_voxels(same), sitk.GetArrayFromImage(mask))
    assert result["score"] == pytest.approx(as_nifti["score"], rel=1e-4)


def _write_series(image, folder):
    """The volume as a DICOM series, one file a slice."""
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    axes = np.array(image.GetDirection()).reshape(3, 3)
    orientation = "\\".join(f"{value:.8g}" for value in (*axes[:, 0], *axes[:, 1]))
    for index in range(image.GetSize()[2]):
        part = image[:, :, index]
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        tags = {
            "0008|0060": "MR",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.1.{index + 1}",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.2",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.3",
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{value:.8g}" for value in position),
            "0020|0037": orientation,
        }
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{index:03d}.dcm"))
        writer.Execute(part)


def test_a_batch_saves_a_mask_for_every_scan(server):
    task = server.run("batch/infer", {"device": "cpu", "multi_gpu": False, "max_workers": 1})
    assert task["status"] == "DONE", task
    for scan in server.studies.glob("*.nii.gz"):
        mask = nib.load(server.studies / "labels/original" / scan.name)
        assert mask.get_data_dtype() == np.uint8
        assert mask.shape == nib.load(scan).shape


def test_training_without_a_final_label_is_an_error_that_says_so(server):
    before = (server.bundle / "models/model.pt").read_bytes()
    task = server.run("train", _slicer(server, "trainers", max_epochs=1))
    assert task["status"] == "ERROR"
    assert task["details"][-1].startswith("error: data to train on and data to validate on must")
    assert "images with a final label only" in task["details"][-1]
    assert (server.bundle / "models/model.pt").read_bytes() == before


def test_training_on_final_labels_changes_what_the_server_finds(server, tmp_path):
    before, _ = server.infer("test_000", tmp_path, output="heatmap")
    for index in range(3):
        scan = nib.load(server.studies / f"test_00{index}.nii.gz")
        label = np.zeros(scan.shape, np.uint8)
        label[12:16, 14:20, 10:13] = index  # nothing, the anomaly, and another value
        nib.save(nib.Nifti1Image(label, scan.affine), tmp_path / f"label_{index}.nii.gz")
        server.submit(f"test_00{index}", tmp_path / f"label_{index}.nii.gz")
    task = server.run("train", _slicer(server, "trainers", max_epochs=2))
    assert task["status"] == "DONE", task["details"]
    log = server.lines()
    assert "labels/final/test_000.nii.gz" in log[log.rindex("train#dataset#data:") :]
    records = json.loads((server.bundle / "output/history.json").read_text())
    assert [record["epoch"] for record in records] == [1, 2]
    after, result = server.infer("test_000", tmp_path, output="heatmap")
    change = np.abs(_voxels(after) - _voxels(before))
    assert np.isfinite(_voxels(after)).all()
    assert change.max() > 1e-3
    assert result["score"] > 0
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=server.bundle, check=False)
    assert check.returncode == 0
    card = (server.bundle / "docs/README.md").read_text()
    assert "trained further on scans of the folder's user" in card
    models = server.info()["models"][NAME]["config"]["model_filename"]
    assert models == [path.name for path in (server.bundle / "models").glob("*.pt")]
