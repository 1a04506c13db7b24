from typing import ClassVar

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from torch import nn

import monai_dpmm
from monai_dpmm.engines.inferer import AnomalyInferer
from monai_dpmm.errors import InputError
from monai_dpmm.network.geometry import extract_slices, prepare_slices
from monai_dpmm.transforms.array import ImageScore, ThresholdAnomaly
from monai_dpmm.transforms.dictionary import (
    EmbedPatchesd,
    ExtractSlicesd,
    ImageScored,
    LoadVolumed,
    NormalizeSlicesd,
    RescaleIntensityd,
    ThresholdAnomalyd,
)
from monai_dpmm.transforms.intensity import RescaleIntensity
from monai_dpmm.transforms.labels import IgnoreLabelledPatchesd
from monai_dpmm.transforms.operating_point import OperatingPoint
from monai_dpmm.transforms.slicing import EmbedPatches, ExtractSlices, NormalizeSlices

AFFINE = torch.tensor([[0.0, -2, 0, 5], [1, 0, 0.3, 7], [0, 0, 3, -9], [0, 0, 0, 1]]).double()
VOLUME = {"ml_per_scan": 5.0, "threshold": 0.6, "patch_thresholds": {"0.1": 0.7}}


class Patches(nn.Module):
    """Backbone of 14 pixel patches: mean, minimum, maximum and standard deviation."""

    def forward(self, images):
        tiles = images.unfold(2, 14, 14).unfold(3, 14, 14).flatten(-2).movedim(1, 3).flatten(3)
        features = [tiles.mean(-1), tiles.amin(-1), tiles.amax(-1), tiles.std(-1)]
        return torch.stack(features, dim=1)


def _scan(*shape):
    return MetaTensor(torch.rand(shape), affine=AFFINE, meta={"filename_or_obj": "scan.nii"})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_invertible_and_keep_the_grid(axis):
    scan = _scan(1, 5, 6, 7)
    extract = ExtractSlices(axis)
    slices = extract(scan)
    assert slices.shape[0] == scan.shape[axis + 1]
    volume = extract.inverse(slices)
    assert torch.equal(volume, scan)
    assert torch.equal(volume.affine, AFFINE)
    assert volume.applied_operations == scan.applied_operations
    assert volume.meta == scan.meta


def test_slices_of_an_image_are_invertible():
    extract = ExtractSlices()
    image = _scan(1, 6, 7)
    assert torch.equal(extract.inverse(extract(image)), image)


def test_slices_of_plain_tensors_and_arrays():
    array = np.random.default_rng(0).random((1, 4, 5, 6), np.float32)
    slices = ExtractSlices(0)(array)
    assert torch.equal(ExtractSlices(0).inverse(slices), torch.as_tensor(array))


def test_monai_inverts_slices_of_a_prediction():
    pipeline = Compose([ExtractSlicesd("image", axis=1)])
    scan = _scan(1, 5, 6, 7)
    data = pipeline({"image": scan})
    data["pred"] = MetaTensor(data["image"].as_tensor() * 2)
    inverted = Invertd("pred", pipeline, orig_keys="image", nearest_interp=False)(data)["pred"]
    assert torch.equal(inverted.as_tensor(), scan.as_tensor() * 2)
    assert torch.equal(inverted.affine, AFFINE)


def test_slices_along_several_axes_go_through_a_pipeline_one_by_one():
    scan, label = _scan(1, 28, 42, 56), torch.zeros(1, 28, 42, 56)
    pipeline = Compose(
        [
            ExtractSlicesd(["image", "label"], axis=[2, 0], step=2, allow_missing_keys=True),
            NormalizeSlicesd("image", size=28, patch_size=14),
            EmbedPatchesd("image", Patches()),
        ]
    )
    for data in ({"image": scan, "label": label}, {"image": scan}):
        axial, sagittal = pipeline(data)
        for number, axis, result in ((0, 2, axial), (1, 0, sagittal)):
            alone = Compose([ExtractSlicesd(list(data), axis, 2), *pipeline.transforms[1:]])(data)
            assert result.pop("direction") == number
            assert alone.keys() == result.keys()
            assert all(torch.equal(result[key], alone[key]) for key in alone)


def test_every_step_th_slice_cannot_be_inverted():
    extract = ExtractSlices(2, step=3)
    slices = extract(_scan(1, 5, 6, 7))
    assert slices.shape[0] == 3
    with pytest.raises(ValueError, match="step=1 to be inverted, got 3"):
        extract.inverse(slices)


@pytest.mark.parametrize(("axis", "step"), [(0, 1), (1, 2), (2, 4)])
def test_slices_are_kept_that_lie_at_most_a_distance_apart(axis, step):
    scan = MetaTensor(torch.rand(1, 5, 6, 8), affine=torch.diag(torch.tensor([4.0, 3, 1.5, 1])))
    extract = ExtractSlices(axis, spacing_mm=6)
    slices = extract(scan)
    assert torch.equal(slices.as_tensor(), scan.as_tensor().movedim(axis + 1, 0)[::step])
    if step > 1:
        with pytest.raises(InputError, match=f"step=1 to be inverted, got {step}"):
            extract.inverse(slices)


def test_a_negative_distance_of_slices_is_an_error():
    for take in (ExtractSlices, AnomalyInferer):
        with pytest.raises(InputError, match=r"spacing_mm.*-1"):
            take(2, spacing_mm=-1)


def test_slices_of_one_scan_are_scaled_together():
    slices = torch.rand(4, 1, 20, 20) * 50 + 3
    images = NormalizeSlices(28, 14, percentiles=(0, 100))(slices)
    expected = (slices - slices.min()) / (slices.max() - slices.min())
    assert torch.allclose(images, prepare_slices(expected, 28, 14), atol=5e-3)


def test_slices_in_range_are_not_scaled_again():
    slices = torch.rand(2, 1, 20, 20) * 0.1
    images = NormalizeSlices(28, 14, percentiles=None)(slices)
    assert torch.equal(images, prepare_slices(slices, 28, 14))


def _ball(*spacing):
    """A ball of 20 mm in a box of 64 mm, as a scanner averages it over voxels."""
    axes = [(torch.arange(256) + 0.5) / 4 - c for c in (30, 36)] + [torch.arange(4) * 4.0 - 6]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    inside = ((x**2 + y**2 + z**2).sqrt() < 20).float()
    voxels = nn.functional.avg_pool3d(inside[None], [int(4 * s) for s in spacing] + [1])
    return MetaTensor(voxels, affine=torch.diag(torch.tensor([*spacing, 4.0, 1.0])))


@pytest.mark.parametrize("spacing", [(4, 1), (1, 4)])
def test_a_ball_is_round_whatever_the_pixels(spacing):
    steps = Compose([ExtractSlices(2), NormalizeSlices(112, 14, percentiles=None)])
    images = steps(_ball(*spacing)).as_tensor()
    expected = steps(_ball(1, 1)).as_tensor()
    assert images.shape == expected.shape
    assert (images - expected).abs().mean() < 0.1 * (expected - expected.mean()).abs().mean()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_isotropic_slices_are_resized_once(axis):
    scan = torch.rand(1, 9, 8, 7)
    others = [0.5 if side == axis else 3.0 for side in range(3)]  # of the slices: no matter
    meta = MetaTensor(scan, affine=torch.diag(torch.tensor([*others, 1.0])))
    steps = Compose([ExtractSlices(axis), NormalizeSlices(28, 14, percentiles=None)])
    assert torch.equal(steps(meta).as_tensor(), prepare_slices(extract_slices(scan, axis), 28, 14))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_lie_on_the_patches_of_long_pixels(axis):
    """Without the labelled patches no embedding holds anything bright."""
    volume = torch.zeros(1, 14, 28, 42)
    volume[:, 3:5, 7:10, 20:30] = 1
    affine = torch.diag(torch.tensor([6.0, 2.0, 1.0, 1.0]))
    keys = ["image", "label"]
    steps = [
        ExtractSlicesd(keys, axis),
        NormalizeSlicesd("image", 112, 14, percentiles=None),
        EmbedPatchesd("image", Patches(), unit_norm=False),
    ]
    data = {key: MetaTensor(volume, affine=affine) for key in keys}
    bright = Compose(steps)(data)["image"][..., 0]
    dark = bright.amin()
    rest = Compose([*steps, IgnoreLabelledPatchesd()])(data)["image"][..., 0]
    assert (bright > dark + 0.5).any()
    assert ((rest == 0) | (rest < dark + 0.5)).all()
    assert (rest == 0).float().mean() < 0.5


@pytest.mark.parametrize(
    ("shape", "spacing", "found"),
    [((1, 9, 9, 9), (1, 9, 9), "9x1 mm|1x9 mm"), ((1, 90, 9, 9), (1, 1, 1), "90x9")],
)
def test_slices_of_more_than_8_to_1_are_an_error_with_the_files_name(shape, spacing, found):
    affine = torch.diag(torch.tensor([*spacing, 1.0]))
    scan = MetaTensor(torch.rand(shape), affine=affine, meta={"filename_or_obj": "thick.nii"})
    with pytest.raises(InputError, match=rf"^thick\.nii: .* 8 times .* got ({found})"):
        NormalizeSlices(28, 14)(ExtractSlices(2)(scan))
    with pytest.raises(InputError, match=r"slices must be .* got shape \(9, 9, 9\)"):
        NormalizeSlices(28, 14)(torch.rand(9, 9, 9))
    sagittal = NormalizeSlices(28, 14)(ExtractSlices(0)(scan))
    assert sagittal.shape[1:] == (3, 28, 28)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_embeddings_are_unit_norm_whatever_the_batch_size(batch_size):
    images = torch.rand(5, 3, 28, 42)
    embeddings = EmbedPatches(Patches(), batch_size)(images)
    assert embeddings.shape == (5, 2, 3, 4)
    assert torch.allclose(embeddings.norm(dim=-1), torch.ones(5, 2, 3))
    assert torch.equal(embeddings, EmbedPatches(Patches(), 5)(images))
    assert not embeddings.requires_grad


def test_a_backbone_that_returns_no_patches_is_refused():
    with pytest.raises(ValueError, match=r"backbone must map .* got shape \(2, 9408\)"):
        EmbedPatches(nn.Flatten())(torch.rand(2, 3, 56, 56))


def test_pipeline_in_a_plain_compose(tmp_path):
    path = tmp_path / "scan.npy"
    np.save(path, np.random.default_rng(0).random((30, 40, 4), np.float32))
    pipeline = Compose(
        [
            LoadVolumed("image"),
            RescaleIntensityd("image"),
            ExtractSlicesd("image"),
            NormalizeSlicesd("image", 56, 14, percentiles=None),
            EmbedPatchesd("image", Patches(), batch_size=3, output_keys="patches"),
        ]
    )
    data = pipeline({"image": str(path)})
    assert data["image"].shape == (4, 3, 56, 70)
    assert type(data["patches"]) is torch.Tensor
    assert data["patches"].shape == (4, 4, 5, 4)


def _map(**thresholds):
    """An anomaly map as `AnomalyInferer` returns it, of a network with these thresholds."""
    anomaly = _scan(1, 4, 4, 4)
    anomaly.meta["thresholds"] = {"0.01": 0.9, "0.1": 0.4} | thresholds
    return anomaly


def test_the_mask_is_what_scores_above_the_threshold_that_came_with_the_map():
    anomaly = _map()
    data = ThresholdAnomalyd("pred", None, 0.1, output_keys="mask")({"pred": anomaly})
    assert data["mask"].dtype == torch.uint8
    assert torch.equal(data["mask"].bool().as_tensor(), anomaly.as_tensor() > 0.4)
    assert torch.equal(data["mask"].affine, AFFINE)
    assert data["threshold"] == {
        "threshold": 0.4,
        "false_positive_rate": 0.1,
        "false_positive_volume_ml": None,
    }
    mask = ThresholdAnomaly(false_positive_rate=0.1)
    assert torch.equal(mask(anomaly), data["mask"])
    assert torch.equal(mask(anomaly, 0.01).as_tensor(), (anomaly.as_tensor() > 0.9).byte())


def test_thresholds_are_those_of_what_the_inferer_returned_where_the_map_lost_them():
    data = {"pred": _map(), "restored": _scan(1, 4, 4, 4)}
    transform = ThresholdAnomalyd("restored", None, 0.1, output_keys="mask")
    assert torch.equal(transform(data)["mask"].as_tensor(), (data["restored"] > 0.4).byte())
    with pytest.raises(ValueError, match="must carry the thresholds"):
        ThresholdAnomalyd("restored", output_keys="mask", inferred="restored")(data)


def test_volumes_are_marked_by_volume_and_pictures_by_rate():
    known = {"0.01": 0.9, "0.1": 0.4}
    volumes = [{"ml_per_scan": 2.0, "threshold": 0.6, "patch_thresholds": known}]
    transform = ThresholdAnomaly(false_positive_volume=2, volume_thresholds=volumes)
    volume = _map()
    point = transform.operating_point(volume)
    assert (point["threshold"], point["false_positive_volume_ml"]) == (0.6, 2.0)
    picture = MetaTensor(torch.rand(1, 4, 4), meta={"thresholds": known})
    point = transform.operating_point(picture)
    assert (point["threshold"], point["false_positive_rate"]) == (0.9, 0.01)
    assert transform.operating_point(volume, rate=0.1)["threshold"] == 0.4  # of a request
    chosen = ThresholdAnomaly(
        false_positive_rate=0.1, false_positive_volume=2, volume_thresholds=volumes
    )
    assert chosen.operating_point(volume)["threshold"] == 0.4
    assert chosen.operating_point(picture)["threshold"] == 0.4


def test_the_default_volume_gives_way_once_told_where_none_was_calibrated(capsys):
    transform = ThresholdAnomaly(false_positive_volume=2)
    picture = MetaTensor(torch.rand(1, 4, 4), meta={"thresholds": {"0.01": 0.9}})
    transform(picture)
    assert capsys.readouterr().out == ""
    for _ in range(2):
        assert transform.operating_point(_map())["false_positive_rate"] == 0.01
    (line,) = capsys.readouterr().out.splitlines()
    assert "no thresholds by volume" in line
    with pytest.raises(ValueError, match="false_positive_volume=5 needs thresholds calibrated"):
        ThresholdAnomaly(false_positive_volume=5)


@pytest.mark.parametrize("broken", [{"0.01": float("nan")}, {"0.01": None}])
def test_a_rate_without_a_threshold_is_an_error(broken):
    with pytest.raises(
        (RuntimeError, ValueError), match=r"not calibrated|one of .*0\.1, got 0\.01"
    ):
        ThresholdAnomaly(false_positive_rate=0.01)(_map(**broken))


def test_a_detector_is_deprecated_and_counts_for_one_more_version():
    class Detector:
        thresholds_by_rate: ClassVar = {"0.1": 0.7}

    plain = torch.rand(1, 4, 4, 4)
    with pytest.deprecated_call(match="thresholds come with the map"):
        transform = ThresholdAnomaly(Detector(), 0.1)
    assert torch.equal(transform(plain), (plain > 0.7).byte())
    with pytest.deprecated_call(match="OperatingPoint goes"):
        point = OperatingPoint(Detector(), 5, [VOLUME])
    assert point.threshold(0.1) == pytest.approx(0.6)
    with pytest.deprecated_call(match="thresholds come with the map"):
        transform = ThresholdAnomaly(point, 0.1)
    assert torch.equal(transform(plain), (plain > 0.6).byte())


def test_image_score_is_a_number():
    anomaly = _scan(1, 10, 10, 10)
    score = ImageScored("pred", output_keys="score")({"pred": anomaly})["score"]
    assert isinstance(score, float)
    assert score == ImageScore()(anomaly) == pytest.approx(anomaly.flatten().topk(10)[0].mean())


def test_image_score_of_the_foreground_alone():
    anomaly, foreground = torch.full((1, 10, 10, 10), 5.0), torch.zeros(1, 10, 10, 10)
    foreground[0, 0], anomaly[0, 0] = 7.0, torch.arange(100.0).view(10, 10) / 100
    data = {"map": anomaly, "component": foreground}
    transform = ImageScored("map", 0.02, output_keys="score", foreground_key="component")
    assert transform(data)["score"] == pytest.approx((0.98 + 0.99) / 2)


def test_rescale_keeps_metadata():
    scaled = RescaleIntensity()(_scan(1, 5, 6, 7))
    assert torch.equal(scaled.affine, AFFINE)
    assert scaled.min() == 0
    assert scaled.max() == 1


def test_every_transform_has_its_four_names():
    for name in ("EmbedPatches", "ExtractSlices", "NormalizeSlices", "RescaleIntensity"):
        dictionary = getattr(monai_dpmm, f"{name}d")
        assert getattr(monai_dpmm, f"{name}D") is dictionary
        assert getattr(monai_dpmm, f"{name}Dict") is dictionary
        assert getattr(monai_dpmm, name).__name__ == name


def test_missing_keys():
    with pytest.raises(KeyError, match="image"):
        RescaleIntensityd("image")({"other": 1})
    assert RescaleIntensityd("image", allow_missing_keys=True)({"other": 1}) == {"other": 1}


def test_errors_name_argument_rule_and_value():
    with pytest.raises(ValueError, match="axis must be 0, 1 or 2, got 4"):
        ExtractSlices(4)
    with pytest.raises(ValueError, match=r"axis must be 0, 1 or 2, or several .*, got \[1, 1\]"):
        ExtractSlicesd("image", axis=[1, 1])
    with pytest.raises(ValueError, match="step must be at least 1, got 0"):
        ExtractSlices(0, 0)
    with pytest.raises(ValueError, match="size must be a positive multiple of 14, got 450"):
        NormalizeSlices(450, 14)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        EmbedPatches(Patches(), 0)
    with pytest.raises(ValueError, match="output_keys must be as many as keys"):
        ImageScored(["a", "b"], output_keys="c")
