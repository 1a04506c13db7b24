"""The bundle's workflows: training, evaluation and inference, and what ends them in one line."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from workflows import ROOT, SMALL, run_bundle

from monai_dpmm.app.config import merged

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own


def test_training_leaves_a_model_a_history_and_curves(trained):
    state = torch.load(trained / "models/model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert torch.isfinite(state["thresholds"]).all()
    settings = json.loads((trained / "models/model.json").read_text())
    assert settings["components"] == 40
    history = json.loads((trained / "output/history.json").read_text())
    assert [record["epoch"] for record in history] == [1, 2, 3]
    events = EventAccumulator(str(trained / "output")).Reload()
    losses = events.Scalars("negative_log_likelihood")
    assert len(losses) >= 3
    assert losses[-1].value < losses[0].value
    assert len(events.Scalars("val_log_likelihood")) == 3


def test_evaluation_prints_and_saves_metrics_and_the_report(trained, cohort, tmp_path):
    result = run_bundle(
        "run",
        ["inference", "evaluate"],
        bundle_root=trained,
        dataset_dir=cohort,
        output_dir=tmp_path,
        **SMALL,
    )
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())["metrics"]
    assert 0.5 < metrics["pixel_auroc"] <= 1
    assert {"pixel_aupr", "dice_at_fpr_0.05", "image_auroc"} <= metrics.keys()
    assert (metrics["scans_with_lesions"], metrics["healthy_scans"]) == (2, 1)
    told = f"Lesions found: {metrics['lesions_found']:.0f} of {metrics['lesions']:.0f}"
    assert -1 < result.stdout.find(told) < result.stdout.rfind("pixel_auroc")
    assert len(list(tmp_path.rglob("test_*_findings.json"))) == 3
    assert (tmp_path / "report/report.html").is_file()


def test_inference_writes_three_volumes_on_the_inputs_grid(trained, cohort, tmp_path):
    source = nib.load(cohort / "test/images/test_000.nii.gz")
    flipped = source.as_reoriented(nib.orientations.axcodes2ornt(("A", "R", "I")))
    (tmp_path / "scans").mkdir()
    nib.save(source, tmp_path / "scans/a.nii.gz")
    nib.save(flipped, tmp_path / "scans/b.nii.gz")
    run_bundle(
        "run",
        ["inference", str(trained / "models/model.json")],
        ckpt_dir=trained / "models",
        dataset_dir=tmp_path / "scans",
        output_dir=tmp_path / "out",
        false_positive_rate=0.01,
    )
    types = {"anomaly": np.float32, "mask": np.uint8, "component": np.uint16}
    world = {}
    for name in ("a", "b"):
        scan = nib.load(tmp_path / f"scans/{name}.nii.gz")
        for kind, dtype in types.items():
            image = nib.load(tmp_path / f"out/{name}/{name}_{kind}.nii.gz")
            assert image.shape == scan.shape
            assert np.allclose(image.affine, scan.affine, atol=1e-4)
            assert image.get_data_dtype() == dtype
            world[name, kind] = nib.as_closest_canonical(image).get_fdata()
    for kind in types:
        assert np.allclose(world["a", kind], world["b", kind], atol=1e-5)
    components = world["a", "component"]
    assert components.min() >= 1
    assert components.max() <= 40
    state = torch.load(trained / "models/model.pt", weights_only=True)
    expected = world["a", "anomaly"].astype(np.float32) > state["thresholds"][0].item()
    assert np.array_equal(world["a", "mask"] > 0, expected)


def test_resumed_training_is_the_uninterrupted_one(trained, cohort, tmp_path):
    settings = {**SMALL, "bundle_root": tmp_path, "dataset_dir": cohort}
    run_bundle("training", ["train"], **{**settings, "max_epochs": 1})
    run_bundle("training", ["train"], **settings, resume=True)
    a = torch.load(trained / "models/checkpoint.pt", weights_only=True)["mixture"]
    b = torch.load(tmp_path / "models/checkpoint.pt", weights_only=True)["mixture"]
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_training_goes_on_from_a_saved_model(trained, cohort, tmp_path):
    model, other = trained / "models/model.pt", {**SMALL, "dataset_dir": cohort, "max_epochs": 1}
    run_bundle(
        "training", ["train", "kmeans_start"], bundle_root=tmp_path, warm_start=model, **other
    )
    before = torch.load(model, weights_only=True)
    after = torch.load(tmp_path / "models/model.pt", weights_only=True)
    batches = after["mixture.steps"] - before["mixture.steps"]
    assert 0 < int(batches) <= 20
    moved = after["mixture.offsets"] - before["mixture.offsets"]
    assert 0 < float(moved.norm()) < float(before["mixture.offsets"].norm())
    assert torch.equal(after["mixture.origin"], before["mixture.origin"])


def _nifti(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array, np.float32), np.eye(4)), path)


def _bad_folder(folder, kind):
    rng = np.random.default_rng(0)
    _nifti(folder / "a.nii.gz", rng.random((20, 20, 4)))
    if kind == "text":
        (folder / "b.nii.gz").write_text("no image")
    elif kind == "4d":
        _nifti(folder / "b.nii.gz", rng.random((20, 20, 4, 3)))
    elif kind == "nan":
        _nifti(folder / "b.nii.gz", np.full((20, 20, 4), np.nan))
    elif kind == "constant":
        _nifti(folder / "b.nii.gz", np.ones((20, 20, 4)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "b.nii.gz: must be a scalar image"),
        ("4d", "b.nii.gz: must have one channel, got 3"),
        ("nan", "b.nii.gz: voxels must be finite, 1600 of 1600"),
        ("constant", "b.nii.gz: must not be constant, every voxel is 1"),
    ],
)
def test_a_bad_scan_ends_training_in_one_line_and_writes_nothing(tmp_path, kind, message):
    _bad_folder(tmp_path / "data", kind)
    _expect_line(tmp_path, message, dataset_dir=tmp_path / "data", **SMALL)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dataset_dir": "/nowhere"}, "/nowhere: must be a data set's folder"),
        ({"backbone_architecture": "resnet"}, "resnet"),
        ({"component_kind": "round"}, "component_kind must be one of diagonal, full, spherical"),
        ({"warm_start": "/nowhere/model.pt"}, "/nowhere/model.pt: must exist to start from"),
    ],
)
def test_bad_settings_end_training_in_one_line(tmp_path, overrides, message):
    _bad_folder(tmp_path / "data", "fine")
    _nifti(tmp_path / "data/b.nii.gz", np.random.default_rng(1).random((20, 20, 4)))
    settings = {"dataset_dir": tmp_path / "data", **SMALL, **overrides}
    _expect_line(tmp_path, message, **settings)


def _expect_line(root, message, **overrides):
    result = run_bundle("training", ["train"], expect=1, bundle_root=root, **overrides)
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (root / "models").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"components": 30}, "checkpoint has components=40 .* this DPMM has components=30"),
        ({"ckpt_dir": "/nowhere"}, "/nowhere/model.pt: must exist"),
    ],
)
def test_a_checkpoint_that_does_not_fit_ends_in_one_line(
    trained, cohort, tmp_path, overrides, message
):
    settings = {
        "ckpt_dir": trained / "models",
        "dataset_dir": cohort / "test/images",
        "output_dir": tmp_path / "out",
        **overrides,
    }
    model = str(trained / "models/model.json")
    result = run_bundle("run", ["inference", model], expect=1, **settings)
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(message, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overlay", "base"),
    [
        (overlay, "train")
        for overlay in ("bmad", "resc", "paper", "demo", "kmeans_start", "multi_gpu_train")
    ]
    + [(overlay, "inference") for overlay in ("calibrate", "evaluate", "multi_gpu_evaluate")],
)
def test_overlays_only_set_what_their_base_has_or_they_read_themselves(overlay, base):
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / f"configs/{base}.json"))
    inference = ConfigParser.load_config_file(ROOT / "configs/inference.json")
    missing, file = object(), ROOT / f"configs/{overlay}.json"
    read = set(re.findall(r"@(\w+)", file.read_text()))
    for key in ConfigParser.load_config_file(file):
        assert parser.get(key, missing) is not missing or key in inference or key in read


def test_training_has_no_setting_that_it_does_not_read():
    config, read = merged(["train"]), set()
    names = ["run", "initialize", "finalize", "imports", "training"]
    names += ["base", "lesion_label"]  # read by an evaluation over it, and by compare
    while names:
        name = names.pop()
        if name in config and name not in read:
            read.add(name)
            names += re.findall(r"[@%](\w+)", json.dumps(config[name]))
    assert config.keys() == read


@pytest.mark.parametrize(
    ("overlays", "message"),
    [
        (["evaluate"], "got train.json"),
        (["calibrate"], "got train.json"),
        (["evaluate", "multi_gpu_evaluate"], "'configs/inference.json','models/model.json'"),
    ],
)
def test_an_evaluation_over_training_names_the_way_that_there_is(overlays, message, tmp_path):
    """Until version 0.1 it overlaid train.json and repeated what inference does with a map."""
    result = run_bundle("run", ["train", *overlays], expect=1, bundle_root=tmp_path)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in result.stderr


def test_what_is_done_with_a_map_is_written_once():
    for overlay in ("evaluate", "calibrate"):
        text = (ROOT / f"configs/{overlay}.json").read_text()
        assert not re.search("Invertd|SplitDimd|ThresholdAnomalyd|SaveResultsd", text)


def test_a_models_settings_are_settings_of_inference():
    train = ConfigParser.load_config_file(ROOT / "configs/train.json")
    inference = ConfigParser.load_config_file(ROOT / "configs/inference.json")
    assert train["settings"].keys() <= inference.keys()
    assert train["settings"] == inference["settings"]  # which a model's are compared with


@pytest.mark.parametrize(("config", "kind"), [("train", "train"), ("inference", "infer")])
def test_the_workflows_have_all_properties_of_a_bundle(config, kind, trained, cohort, tmp_path):
    own = [str(trained / "models/model.json")] if kind == "infer" else []
    workflow = ConfigWorkflow(
        [str(ROOT / f"configs/{config}.json"), *own],
        workflow_type=kind,
        logging_file=False,
        bundle_root=str(tmp_path if kind == "train" else trained),
        output_dir=str(tmp_path / "output"),
        dataset_dir=str(cohort),
        backbone_architecture="efficientnet_lite0",
        image_size=96,
        slice_axis=2,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    if kind == "train":  # the data set holds embeddings, not what they are computed from
        assert [item["image"].ndim for item in workflow.train_dataset] == [4, 4, 4]
