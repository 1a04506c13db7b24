"""Every command of MONAI for bundles, on the checkout's configs and on a built bundle folder."""

import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from workflows import ROOT, SMALL, run_bundle

from monai_dpmm.app.release import write_bundle
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.network.backbones.registry import create_backbone
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.network.weights import load_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    """The trained model as a bundle folder."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "brain_mri_anomaly_dpmm", trained)


@pytest.fixture(params=["checkout", "bundle"])
def place(request, trained, bundle):
    """Arguments for commands on inference: of the checkout with a model, or of a bundle folder."""
    if request.param == "checkout":
        configs, own = ROOT / "configs", [str(trained / "models/model.json")]
    else:
        configs, own = bundle / "configs", []
    root = trained if request.param == "checkout" else bundle
    return {
        "config_file": [str(configs / "inference.json"), *own],
        "meta_file": str(configs / "metadata.json"),
        "bundle_root": str(root),
        "model": root / "models/model.pt",
    }


def detector_of(place):
    detector = AnomalyDetector(
        create_backbone("efficientnet_lite0"), DPMM(152, SMALL["components"]), image_size=96
    )
    return load_weights(detector, place["model"]).eval()


def called(command, place, **kwargs):
    """Call a command of `monai.bundle` with the place's configs."""
    common = {key: place[key] for key in ("config_file", "meta_file", "bundle_root")}
    return getattr(monai.bundle, command)(**common, **kwargs)


def exported(command, place, file, slices, **kwargs):
    """The file that a command exports the traced network to, at so many slices of 64 x 64."""
    called(
        command,
        place,
        net_id="network_def",
        filepath=str(file),
        ckpt_file=str(place["model"]),
        key_in_ckpt="",
        use_trace=True,
        input_shape=[slices, 1, 64, 64],
        **kwargs,
    )
    return file


def test_the_metadata_is_valid(place, tmp_path):
    schema = tmp_path / "schema.json"  # MONAI downloads it only where it is not there
    schema.write_text((Path(__file__).parents[1] / "metadata_schema.json").read_text())
    monai.bundle.verify_metadata(meta_file=place["meta_file"], filepath=str(schema))


def test_the_network_takes_and_gives_what_the_metadata_says(place):
    called("verify_net_in_out", place, net_id="network_def", device="cpu", any=48)


def test_a_torchscript_export_gives_the_modules_maps_at_any_size(place, tmp_path):
    network = torch.jit.load(exported("ckpt_export", place, tmp_path / "model.ts", 1))
    detector = detector_of(place)
    for shape in ((2, 1, 64, 64), (3, 1, 48, 90)):
        slices = torch.rand(shape)
        torch.testing.assert_close(network(slices), detector(slices), rtol=0, atol=1e-4)


def test_an_onnx_export_gives_the_modules_maps(place, tmp_path):
    file = exported("onnx_export", place, tmp_path / "model.onnx", 2)
    session = onnxruntime.InferenceSession(file)
    slices = torch.rand(2, 1, 64, 64)
    (maps,) = session.run(None, {session.get_inputs()[0].name: slices.numpy()})
    np.testing.assert_allclose(maps, detector_of(place)(slices).numpy(), rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="TensorRT needs a CUDA device")
@pytest.mark.skipif(find_spec("torch_tensorrt") is None, reason="torch_tensorrt is not installed")
def test_a_tensorrt_export_gives_the_modules_maps(place, tmp_path):
    file = exported("trt_export", place, tmp_path / "model.ts", 2, precision="fp32")
    slices, detector = torch.rand(2, 1, 64, 64).cuda(), detector_of(place).cuda()
    network = torch.jit.load(file)
    torch.testing.assert_close(network(slices), detector(slices), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("config", "kind"), [("train", "train"), ("inference", "infer")])
def test_the_workflows_of_a_bundle_lack_no_property(config, kind, bundle, cohort):
    workflow = monai.bundle.create_workflow(
        config_file=str(bundle / f"configs/{config}.json"),
        workflow_type=kind,
        bundle_root=str(bundle),
        dataset_dir=str(cohort),
    )
    assert workflow.check_properties() == []
    assert workflow.parser["_meta_"]["name"] == "Brain MRI anomaly DPMM"


def test_a_bundle_loads_as_its_network_without_a_download(bundle, trained):
    """From another directory: MONAI makes the network of train.json and fills it with the model."""
    network = monai.bundle.load(
        name=bundle.name,
        bundle_dir=str(bundle.parent),
        model_file="models/model.pt",
        source="github",
    )
    slices, detector = torch.rand(2, 1, 48, 90), detector_of({"model": trained / "models/model.pt"})
    torch.testing.assert_close(network.eval()(slices), detector(slices))


def test_a_bundles_config_can_be_read(bundle):
    parser = monai.bundle.load_bundle_config(str(bundle), "inference.json")
    assert parser["image_size"] == SMALL["image_size"]


def test_a_bundle_folder_infers_from_another_directory(bundle, cohort, tmp_path):
    scan = cohort / "test/images/test_000.nii.gz"
    command = [sys.executable, "-m", "monai.bundle", "run_workflow"]
    options = {
        "config_file": bundle / "configs/inference.json",
        "workflow_type": "infer",
        "bundle_root": bundle,
        "dataset_dir": scan,
        "output_dir": tmp_path / "out",
    }
    command += [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    anomaly = nib.load(tmp_path / "out/test_000/test_000_anomaly.nii.gz")
    assert anomaly.shape == nib.load(scan).shape
    assert anomaly.get_fdata().max() > 0


def test_every_workflow_is_tracked_by_mlflow(bundle, cohort, tmp_path):
    scan = cohort / "test/images/test_000.nii.gz"
    workflows = {
        "train": ("training", ["train"], cohort, "FINISHED"),
        "evaluate": ("run", ["inference", "evaluate"], cohort, "FINISHED"),
        "infer": ("run", ["inference"], scan, "FINISHED"),
    }
    metrics = {}
    for name, (run_id, configs, data, status) in workflows.items():
        run_bundle(
            run_id,
            [str(bundle / f"configs/{config}.json") for config in configs],
            bundle_root=bundle,
            ckpt_dir=tmp_path / "models",
            output_dir=tmp_path / name,
            dataset_dir=data,
            max_epochs=2,
            tracking="mlflow",
        )
        with sqlite3.connect(tmp_path / name / "mlruns.db") as database:
            assert database.execute("SELECT status FROM runs").fetchall() == [(status,)]
            metrics[name] = set(database.execute("SELECT key, step FROM metrics"))
    assert {("train_loss", 1), ("train_loss", 2), ("val_log_likelihood", 2)} <= metrics["train"]
    assert ("pixel_auroc", 1) in metrics["evaluate"]
