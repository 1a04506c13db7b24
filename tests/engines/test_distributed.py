"""Several processes give what one gives: pieces, training, evaluation, and an end when one dies."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.handlers import ValidationHandler
from oracle import clustered

from monai_dpmm.engines import distributed
from monai_dpmm.engines.engines import EMTrainer, LikelihoodEvaluator
from monai_dpmm.engines.handlers import BestModelSaver, ThresholdCalibration
from monai_dpmm.engines.resuming import History, TrainingCheckpoint
from monai_dpmm.engines.slices import SliceDataLoader
from monai_dpmm.engines.warm_start import WarmStart
from monai_dpmm.metrics.anomaly_metrics import AnomalyMetrics
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.study.cohort.cohort import make_demo_cohort

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

ROOT = Path(__file__).parents[2]
D = 8


def scans(count, seed):
    """Embeddings of scans, 3 to 5 slices of 4 x 5 patches each, a third of the patches air."""
    items = []
    for i in range(count):
        slices = 3 + i % 3
        patches = clustered(slices * 20, D, 6, spread=0.3, seed=seed + i).view(slices, 4, 5, D)
        patches[:, :, 3:] = 0 if i % 2 else patches[:, :, 3:]
        items.append({"image": patches})
    return items


def detector(**options):
    torch.manual_seed(0)
    mixture = DPMM(D, 12, variance_floor=1e-3, **options).double()
    return AnomalyDetector(torch.nn.Conv2d(3, D, 1), mixture, ignore_background=True)


def fit(folder, epochs=3, *, resume=False, start=None):
    """A training with everything attached; the trainer's and validator's metrics, the detector."""
    model = detector(initialization="k-means++")
    validator = LikelihoodEvaluator(
        "cpu", SliceDataLoader(scans(3, 50), 4), model, [ThresholdCalibration(model)]
    )
    BestModelSaver(folder / "model.pt", model).attach(validator)
    trainer = EMTrainer(
        "cpu",
        epochs,
        SliceDataLoader(scans(6, 0), 12, shuffle=True, seed=3),  # 24 slices and one: a ragged end
        model.mixture,
        [
            WarmStart(start, model),
            ValidationHandler(1, validator),
            History(folder / "history.json", validator),
            TrainingCheckpoint(folder / "last.pt", model.mixture, validator, resume=resume),
        ],
    )
    trainer.run()
    return {
        "state": model.state_dict(),
        "train": trainer.state.metrics,
        "val": dict(validator.state.metrics),
        "best": validator.state.best_metric_epoch,
    }


def images():
    """Anomaly maps of 5 images of several sizes with their masks."""
    generator = torch.Generator().manual_seed(0)
    for i in range(5):
        pred = torch.rand(1, 6, 5 + i, generator=generator)
        label = torch.zeros_like(pred)
        label[:, 2:4, 1:3] = float(i % 2)
        yield {"pred": pred + 0.5 * label, "label": label}


def evaluated():
    model = detector()
    model.calibrate(torch.linspace(0, 1, 101))
    metrics = AnomalyMetrics(model)
    for image in distributed.own_items(list(images())):
        metrics.update([image])
    return metrics.compute()


def pieces():
    rank, world = distributed.rank(), distributed.world_size()
    x = clustered(40, D, 4).double()
    model = DPMM(D, 6).double()
    model.initialize(x)
    part = torch.arange(40).tensor_split([33, 33, 36][: world - 1])[rank]  # rank 1 may have none
    other = copy.deepcopy(model)
    other.offsets += rank
    distributed.broadcast_buffers(other)
    own = distributed.own_items([torch.full((i + 1, 2), float(i)) for i in range(5)])
    return {
        "moments": tuple(distributed.all_reduced(model.e_step(x[part]))),
        "gathered": distributed.gathered(x[part]),
        "flags": distributed.gathered(x[part, 0] > 0),
        "exchanged": distributed.exchanged(own),
        "interleaved": distributed.interleaved(distributed.own_items(list("abcdefg"))),
        "same": torch.equal(other.offsets, model.offsets),
        "main": distributed.is_main_process(),
    }


def everything(folder):
    folder.mkdir(parents=True, exist_ok=True)
    result = {"fit": fit(folder), "metrics": evaluated(), "pieces": pieces()}
    fit(folder / "resumed", 1)
    result["resumed"] = fit(folder / "resumed", 3, resume=True)
    result["warm"] = fit(folder / "warm", 1, start=folder / "model.pt")
    return result


def worker(rank, world, folder):
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world
    )
    torch.save(everything(folder / "all"), folder / f"rank{rank}.pt")
    distributed.close_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return everything(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    torch.multiprocessing.spawn(worker, (request.param, folder), nprocs=request.param)
    return [
        torch.load(folder / f"rank{i}.pt", weights_only=False) for i in range(request.param)
    ], folder


@pytest.mark.parametrize("run", ["fit", "resumed", "warm"])
def test_training_is_that_of_one_process_on_every_rank(run, ranks, alone):
    for result in ranks[0]:
        for name, expected in alone[run]["state"].items():
            value = result[run]["state"][name]
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-8, equal_nan=True)
        for part in ("train", "val"):
            assert result[run][part] == pytest.approx(alone[run][part], rel=1e-6)
        assert result[run]["best"] == alone[run]["best"]
    assert len(alone[run]["val"]) == 4  # likelihood and three thresholds


def test_one_rank_writes_what_one_process_writes(ranks, alone, tmp_path):
    folder = ranks[1] / "all"
    fit(tmp_path)
    for written in (folder, tmp_path):
        names = {path.name for path in written.iterdir() if path.is_file()}
        assert names == {"history.json", "last.pt", "model.pt"}
    history = [json.loads((path / "history.json").read_text()) for path in (folder, tmp_path)]
    for one, two in zip(*history, strict=True):
        assert one == pytest.approx(two, rel=1e-6)
    saved = torch.load(folder / "model.pt", weights_only=True)
    expected = torch.load(tmp_path / "model.pt", weights_only=True)
    for name in saved:
        torch.testing.assert_close(saved[name], expected[name], rtol=1e-6, atol=1e-8)


def test_metrics_are_those_of_all_images_on_every_rank(ranks, alone):
    for result in ranks[0]:
        assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-6)


def test_pieces_come_together_in_order(ranks, alone):
    for i, result in enumerate(ranks[0]):
        pieces, expected = result["pieces"], alone["pieces"]
        for a, b in zip(pieces["moments"], whole_moments(), strict=True):
            torch.testing.assert_close(a, b)
        x = clustered(40, D, 4).double()
        assert torch.equal(pieces["gathered"], x)
        assert torch.equal(pieces["flags"], x[:, 0] > 0)
        assert all(map(torch.equal, pieces["exchanged"], expected["exchanged"]))
        assert len(pieces["exchanged"]) == 5
        assert pieces["interleaved"] == list("abcdefg")
        assert pieces["same"]
        assert pieces["main"] == (i == 0)


def whole_moments():
    x = clustered(40, D, 4).double()
    model = DPMM(D, 6).double()
    model.initialize(x)
    return model.e_step(x)


@pytest.mark.parametrize("count", [0, 1, 3, 12])
@pytest.mark.parametrize("processes", [1, 2, 4, 5])
def test_parts_are_contiguous_even_and_complete(count, processes):
    items = list(range(count))
    parts = [distributed.own_part(items, rank, processes) for rank in range(processes)]
    assert [item for part in parts for item in part] == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_device_needs_torchrun(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(RuntimeError, match="LOCAL_RANK must be set: start several processes with"):
        distributed.local_device()


def test_more_processes_than_devices(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RuntimeError, match="nproc_per_node must be at most the 2 CUDA devices"):
        distributed.local_device()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.local_device() == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.local_device() == torch.device("cpu")


# --- under torchrun -------------------------------------------------------------------------

SMALL = {
    "backbone_architecture": "efficientnet_lite0",
    "image_size": 64,
    "components": 20,
    "max_epochs": 2,
    "slice_step": 3,
}


def torchrun(*arguments, processes=2, timeout=240):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", *map(str, arguments)]
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, env=environment
    )


def bundle(configs, processes, **overrides):
    files = [str(ROOT / f"configs/{name}.json") for name in configs]
    arguments = ["-m", "monai.bundle", "run", "run", "--config_file", str(files)]
    arguments += [part for k, v in overrides.items() for part in (f"--{k}", str(v))]
    if processes > 1:
        return torchrun(*arguments, processes=processes)
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "data"
    return make_demo_cohort(folder, train=3, val=1, test=3, spacing=6.0)


def test_the_bundle_on_two_processes_is_the_bundle_on_one(cohort, tmp_path):
    models, reports = [], []
    for processes, train, evaluate in (
        (1, [], []),
        (2, ["multi_gpu_train"], ["multi_gpu_evaluate"]),
    ):
        root = tmp_path / str(processes)
        settings = {"bundle_root": root, "dataset_dir": cohort, **SMALL}
        result = bundle(["train", *train], processes, **settings)
        assert result.returncode == 0, result.stderr
        assert (result.stdout + result.stderr).count("Saved the model of epoch 1") == 1
        result = bundle(["inference", "evaluate", *evaluate], processes, **settings)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("all subjects") == 1
        models.append(torch.load(root / "models/model.pt", weights_only=True))
        reports.append(json.loads((root / "output/report/metrics.json").read_text()))
        assert len(list((root / "output").glob("events*"))) == 2
    for name, expected in models[0].items():
        # of one small scan's finished map, whose quantiles rounding moves by a voxel
        rtol = 0.05 if name == "thresholds" else 1e-3
        torch.testing.assert_close(
            models[1][name], expected, rtol=rtol, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    one, two = reports
    assert [s["name"] for s in two["subjects"]] == [s["name"] for s in one["subjects"]]
    assert len(one["subjects"]) == 3
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-3, abs=1e-4)


def test_a_bad_scan_on_one_rank_ends_all(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        image = nib.Nifti1Image(generator.random((40, 40, 4)).astype(np.float32), np.eye(4))
        (tmp_path / "data/train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/val").mkdir(parents=True, exist_ok=True)
        nib.save(image, tmp_path / f"data/train/{name}.nii.gz")
        nib.save(image, tmp_path / f"data/val/{name}.nii.gz")
    (tmp_path / "data/train/b.nii.gz").write_text("no image")  # rank 1 reads the second scan
    settings = {"bundle_root": tmp_path, "dataset_dir": tmp_path / "data", **SMALL}
    result = bundle(["train", "multi_gpu_train"], 2, **settings)
    assert result.returncode != 0
    assert "b.nii.gz: must be a scalar image" in result.stderr
    assert not [*tmp_path.rglob("*.pt")]


def test_a_rank_that_dies_ends_the_job(tmp_path):
    start = time.monotonic()
    result = torchrun(__file__, tmp_path, timeout=120)
    assert result.returncode != 0
    assert "SIGKILL" in result.stderr
    assert time.monotonic() - start < 100
    assert not (tmp_path / "finished").exists()


def dying(folder):
    """Training of two processes of which one is killed in the second epoch."""
    dist.init_process_group("gloo")
    model = detector()
    trainer = EMTrainer("cpu", 1000, SliceDataLoader(scans(6, 0), 12, shuffle=True), model.mixture)

    @trainer.on(Events.ITERATION_COMPLETED(once=4))
    def _(_):
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.run()
    (folder / "finished").touch()


if __name__ == "__main__":
    dying(Path(sys.argv[1]))
