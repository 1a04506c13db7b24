"""MONAI's tensors are tensors: what takes the one takes the other, and nothing else."""

import inspect
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, set_track_meta
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms import Compose, Transform
from monai.visualize import OcclusionSensitivity
from PIL import Image
from torch import nn

import monai_dpmm
from monai_dpmm import (
    DPMM,
    AnomalyDetector,
    AnomalyInferer,
    EmbedPatches,
    ExtractSlices,
    LoadVolume,
    MaskForeground,
    NormalizeSlices,
    RescaleIntensity,
    SaveResultsd,
    save_moments,
)
from monai_dpmm.mixture.dpmm import COMPONENT_KINDS
from monai_dpmm.mixture.scores import SCORES

AFFINE = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
METHODS = ("step", "e_step", "log_prob", "component_log_prob", "responsibilities", "score")


def patches(count=200):
    return nn.functional.normalize(torch.randn(count, 6), dim=1)


def fitted(kind="diagonal", **kwargs):
    mixture = DPMM(6, 5, component_kind=kind, **kwargs)
    mixture.initialize(patches())
    return mixture


def detector(healthy=None):
    backbone = nn.Conv2d(3, 6, kernel_size=8, stride=8).requires_grad_(False)
    backbone.patch_size = 8
    network = AnomalyDetector(backbone, DPMM(6, 5), image_size=32)
    healthy = torch.rand(8, 1, 32, 32) if healthy is None else healthy
    healthy = network.embed(healthy).flatten(0, 2)
    network.mixture.initialize(healthy)
    network.mixture.step(healthy)
    network.calibrate(network.patch_scores(healthy))
    return network


def leaves(value):
    """All tensors of what a method returns."""
    return [value] if isinstance(value, torch.Tensor) else list(value)


@pytest.mark.parametrize("kind", COMPONENT_KINDS)
def test_a_mixture_takes_metatensors_and_answers_in_tensors(kind):
    x, mixture = patches(), fitted(kind)
    for method in (*METHODS, "initialize", "assign", "forward"):
        state = {key: value.clone() for key, value in mixture.state_dict().items()}
        answers = []
        for one in (x, MetaTensor(x, affine=AFFINE)):
            mixture.load_state_dict(state)
            found = getattr(mixture, method)(one)
            answers.append([] if found is None else leaves(found))
            assert all(type(value) is torch.Tensor for value in mixture.state_dict().values())
            answers.append(list(mixture.state_dict().values()))
        assert all(type(value) is torch.Tensor for value in answers[2])
        for plain, meta in zip(answers[0] + answers[1], answers[2] + answers[3], strict=True):
            assert torch.equal(plain, meta)


@pytest.mark.parametrize("kind", SCORES)
def test_scores_of_metatensors(kind):
    x, mixture = patches(), fitted()
    assert torch.equal(mixture.score(MetaTensor(x), kind), mixture.score(x, kind))


def test_places_may_be_a_metatensor():
    x, u, mixture = patches(), torch.rand(200, 3), fitted(place_grid=(2, 2, 2))
    assert torch.equal(mixture.score(x, places=MetaTensor(u)), mixture.score(x, places=u))
    with pytest.raises(TypeError, match="places must be a tensor, got ndarray"):
        mixture.score(x, places=u.numpy())


def test_forward_is_the_papers_score():
    x, mixture = patches(), fitted()
    assert torch.equal(mixture(x), mixture.score(x, "cosine"))
    assert torch.equal(torch.jit.trace(mixture, x)(x[:7]), mixture(x[:7]))


@pytest.mark.parametrize("x", [patches(9).numpy(), patches(9).tolist()])
@pytest.mark.parametrize("method", [*METHODS, "initialize", "forward"])
def test_what_is_no_tensor_is_a_type_error(method, x):
    with pytest.raises(TypeError, match=f"x must be a tensor, got {type(x).__name__}"):
        getattr(fitted(), method)(x)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((kind, value) for kind in COMPONENT_KINDS for value in (math.nan, math.inf, -math.inf)),
        *((kind, 1e30) for kind in ("diagonal", "full", "spherical")),
    ],
)
def test_a_patch_that_is_not_finite_leaves_the_mixture_as_it_is_and_is_told(kind, value, tmp_path):
    mixture = fitted(kind)
    mixture.step(patches())
    before = {key: one.clone() for key, one in mixture.state_dict().items()}
    x = patches()
    x[[3, 77], [2, 0]] = value
    assert not torch.isfinite(mixture.step(x))
    assert all(torch.equal(one, before[key]) for key, one in mixture.state_dict().items())
    assert torch.isfinite(mixture.step(patches()))
    with pytest.raises(ValueError, match="moments must be of finite patches"):
        save_moments(mixture.e_step(x), tmp_path / "moments.pt", mixture)
    assert not any(tmp_path.iterdir())


def test_a_detector_keeps_the_metadata_of_its_slices():
    network, slices = detector(), torch.rand(4, 1, 32, 40)
    meta = MetaTensor(slices, affine=AFFINE, meta={"filename_or_obj": "scan.nii"})
    for call in (network, network.maps):
        maps = call(meta)
        assert isinstance(maps, MetaTensor)
        assert torch.equal(maps.as_tensor(), call(slices))
        assert torch.equal(maps.affine, AFFINE)
        assert maps.meta["filename_or_obj"] == "scan.nii"
        assert type(call(slices)) is torch.Tensor
    assert type(network.embed(meta)) is torch.Tensor
    with pytest.raises(TypeError, match="slices must be a tensor, got ndarray"):
        network(slices.numpy())


def test_inferers_of_monai_take_the_detector():
    network, slices = detector(), torch.rand(2, 1, 32, 32)
    meta = MetaTensor(slices, affine=AFFINE)
    assert torch.equal(SimpleInferer()(meta, network).as_tensor(), network(slices))
    windows = SlidingWindowInferer((32, 32), sw_batch_size=2)(meta, network)
    assert torch.allclose(windows.as_tensor(), network(slices), atol=1e-6)


class Largest(nn.Module):
    """Score of an image: of a detector's map the largest, (B, 1)."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images).amax((2, 3))


@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_monais_occlusion_sensitivity_sees_where_a_score_comes_from(kind):
    network = detector(0.5 + 0.1 * torch.rand(8, 1, 32, 32))
    image = torch.full((1, 1, 32, 32), 0.55)
    image[..., 16:24, 8:16] = torch.eye(2).repeat(4, 4)
    occlusion = OcclusionSensitivity(
        Largest(network), mask_size=8, mode=0.55, overlap=0, verbose=False, activate=False
    )
    found = occlusion(MetaTensor(image) if kind is MetaTensor else image)[0]
    assert found.max() > found.min() + 1e-3
    lowest = divmod(int(found.reshape(32, 32).argmin()), 32)
    assert 16 <= lowest[0] < 24
    assert 8 <= lowest[1] < 16


@pytest.fixture
def _untracked():
    """MONAI without metadata, as `set_track_meta(False)` leaves it."""
    set_track_meta(False)
    yield
    set_track_meta(True)


@pytest.mark.usefixtures("_untracked")
def test_without_metadata_scans_are_plain_tensors_all_the_way(tmp_path):
    import nibabel as nib

    voxels = np.random.rand(32, 40, 6).astype(np.float32)  # noqa: NPY002 - seeded in conftest
    nib.save(nib.Nifti1Image(voxels, AFFINE.numpy()), tmp_path / "scan.nii.gz")
    Image.fromarray((voxels[..., 0] * 255).astype(np.uint8)).save(tmp_path / "picture.png")
    network = detector()
    steps = Compose([LoadVolume(), MaskForeground(), RescaleIntensity(percentiles=(1, 99))])
    for name, shape in (("scan.nii.gz", (1, 32, 40, 6)), ("picture.png", (1, 40, 32))):
        scan = steps(tmp_path / name)
        assert type(scan) is torch.Tensor
        assert scan.shape == shape
        maps = AnomalyInferer(component_map=True)(scan[None], network)[0]
        assert type(maps) is torch.Tensor
        assert maps.shape == (2, *shape[1:])
    slices = NormalizeSlices(size=32, patch_size=8)(
        ExtractSlices()(steps(tmp_path / "scan.nii.gz"))
    )
    assert EmbedPatches(network.backbone)(slices).shape == (6, 4, 5, 6)
    volumes = {f"pred_{end}": maps[:1] for end in ("anomaly", "component", "mask")}
    with pytest.raises(ValueError, match=r"pred_anomaly must be a MetaTensor .*, got Tensor"):
        SaveResultsd(tmp_path / "out")({**volumes, "findings": []})
    assert not (tmp_path / "out").exists()


def test_every_transform_declares_its_backend():
    public = [getattr(monai_dpmm, name) for name in monai_dpmm.__all__]
    transforms = [one for one in public if inspect.isclass(one) and issubclass(one, Transform)]
    assert len(transforms) >= 20
    assert [one.__name__ for one in transforms if one.backend != ["torch"]] == []


@pytest.mark.parametrize(
    "transform",
    [
        *(ExtractSlices(), MaskForeground(), RescaleIntensity(percentiles=(1, 99))),
        monai_dpmm.ImageScore(),
    ],
)
def test_array_transforms_take_what_monai_hands_them(transform):
    voxels = torch.rand(1, 20, 24, 6)
    expected = torch.as_tensor(transform(voxels))
    for one in (voxels.numpy(), MetaTensor(voxels)):
        assert torch.equal(torch.as_tensor(transform(one)), expected)
