"""On a GPU everything gives what it gives on the CPU: mixture, maps, a whole training."""

import copy
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from fitted_mixtures import batches, fitted, started
from workflows import DEFAULTS, run_bundle

from monai_dpmm.engines.inferer import AnomalyInferer
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.network.detector import AnomalyDetector

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
KINDS = ("diagonal", "spherical", "full", "von_mises_fisher")


def scans_in(folder, count, seed, *, lesion=False):
    """Heads of noise with a dark middle, 5 mm voxels; the first of a test set has a bright ball."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (36, 40, 32)], indexing="ij"))
    radius = np.sqrt((x**2).sum(0))
    for number in range(count):
        values = 100 * (radius < 0.8) - 60 * (radius < 0.3 + 0.05 * generator.random())
        values = values + 5 * (radius < 0.8) * generator.standard_normal(values.shape)
        if lesion and number == 0:
            centre = np.array([0.45, 0.1, 0.1])[:, None, None, None]
            values[np.sqrt(((x - centre) ** 2).sum(0)) < 0.2] = 220
        image = nib.Nifti1Image(np.clip(values, 0, None).astype(np.float32), np.diag([5, 5, 5, 1]))
        nib.save(image, folder / f"head_{number}.nii.gz")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_em_and_every_score_are_the_cpus(kind):
    torch.manual_seed(0)
    first, *rest = batches()
    model = started(first, component_kind=kind, variance_floor=1e-3, place_grid=(2, 2, 2))
    there = copy.deepcopy(model).cuda()
    for x in rest:
        ours, theirs = model.step(x), there.step(x.cuda())
        assert theirs.is_cuda
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-9, atol=1e-9)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(there.state_dict()[name].cpu(), value, rtol=1e-8, atol=1e-10)
    model.prune()
    there.prune()
    for score in ("cosine", "euclidean", "likelihood", "mahalanobis", "mixture"):
        found = there.score(first.cuda(), score)
        torch.testing.assert_close(found.cpu(), model.score(first, score), rtol=1e-7, atol=1e-9)


def test_places_are_counted_and_asked_as_on_the_cpu():
    x = batches(count=1)[0]
    at = torch.rand(len(x), 3, dtype=x.dtype)
    model = fitted(x, place_grid=(2, 2, 2), variance_floor=1e-3)
    there = copy.deepcopy(model).cuda()
    for one, device in ((model, "cpu"), (there, "cuda")):
        one.places.counts += one.place_counts(x.to(device), at.to(device))
        one.places.used.fill_(True)
    ours, theirs = model.places.counts, there.places.counts
    torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-9, atol=1e-12)
    for score in ("cosine", "likelihood"):
        found = there.score(x.cuda(), score, places=at.cuda())
        torch.testing.assert_close(found.cpu(), model.score(x, score, places=at), rtol=1e-7, atol=0)


def test_a_step_is_in_float32_whatever_the_program_allows():
    x = torch.cat(batches(dtype=torch.float32, spread=0.05))
    exact = started(x, variance_floor=1e-4).cuda()
    found, x = copy.deepcopy(exact), x.cuda()
    expected = [exact.step(x) for _ in range(5)]
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cuda", torch.bfloat16):
            steps = [found.step(x) for _ in range(5)]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.testing.assert_close(torch.stack(steps), torch.stack(expected))
    torch.testing.assert_close(found.means, exact.means)


def test_maps_of_a_volume_are_the_cpus():
    torch.manual_seed(0)
    backbone = torch.nn.Conv2d(3, 16, 4, stride=4)
    backbone.patch_size, backbone.embedding_dim = 4, 16
    detector = AnomalyDetector(backbone, DPMM(16, 10, variance_floor=1e-3), image_size=32).eval()
    volume = torch.rand(1, 1, 30, 34, 9)
    patches = detector.embed(volume[0].permute(3, 0, 1, 2)).flatten(0, 2)
    detector.mixture.initialize(patches)
    detector.mixture.step(patches)
    ours = AnomalyInferer(axis=2)(volume, detector)
    theirs = AnomalyInferer(axis=2)(volume.cuda(), detector.cuda())
    torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-3, atol=1e-4)


def test_a_training_its_resumption_and_the_maps_are_the_cpus(tmp_path):
    train = scans_in(tmp_path / "healthy", 6, 0)
    test = scans_in(tmp_path / "patients", 2, 1, lesion=True)
    maps, models = {}, {}
    for name, device in (("cpu", "cpu"), ("gpu", "cuda"), ("resumed", "cuda")):
        root = tmp_path / name
        settings = DEFAULTS | {"bundle_root": root, "device": f"$torch.device('{device}')"}
        if name == "resumed":  # the first epoch, then the others
            run_bundle("training", ["train"], dataset_dir=train, **settings | {"max_epochs": 1})
            settings["resume"] = True
        run_bundle("training", ["train"], dataset_dir=train, **settings)
        settings = {k: settings[k] for k in ("bundle_root", "device")}
        configs = ["inference", f"{root}/models/model.json"]
        run_bundle("inference", configs, dataset_dir=test, **settings)
        file = next(root.rglob("head_0_anomaly.nii.gz"))
        maps[name] = nib.load(file).get_fdata()
        models[name] = json.loads((root / "models/model.json").read_text())
    spread = maps["cpu"].std()
    assert np.abs(maps["gpu"] - maps["cpu"]).mean() < 0.02 * spread
    assert np.abs(maps["resumed"] - maps["gpu"]).mean() < 1e-3 * spread
    lesion = np.unravel_index(maps["gpu"].argmax(), maps["gpu"].shape)
    expected = (0.5 + 0.5 * np.array([0.45, 0.1, 0.1])) * np.array([35, 39, 31])
    assert np.abs(np.array(lesion) - expected).max() < 5
