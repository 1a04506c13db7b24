from typing import ClassVar

import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, Invertd, Orientationd, SaveImaged, SplitDimd
from torch import nn

from monai_dpmm.engines.inferer import AnomalyInferer
from monai_dpmm.errors import InputError
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.network.geometry import prepare_slices
from monai_dpmm.transforms.slicing import ExtractSlices, NormalizeSlices

AFFINE = torch.tensor([[-2.0, 0, 0, 5], [0, 0, 3, 7], [0, 1, 0, -9], [0, 0, 0, 1]]).double()


class Brightness(nn.Module):
    """Maps of slices: their brightness; records the batches that it is given."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, slices):
        self.shapes.append(tuple(slices.shape))
        return slices[:, :1] * 2

    def maps(self, slices):
        return torch.cat([self(slices), slices[:, :1].mul(100).round()], dim=1)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_each_voxel_comes_back_at_its_place(axis, batch_size):
    volume = torch.rand(2, 1, 5, 6, 7)
    network = Brightness()
    result = AnomalyInferer(axis, batch_size)(volume, network)
    assert torch.equal(result, volume * 2)
    assert max(shape[0] for shape in network.shapes) <= batch_size
    assert len({shape[2:] for shape in network.shapes}) == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_closer_than_the_spacing_are_interpolated(axis):
    volume = torch.arange(12.0).view([-1 if side == axis else 1 for side in range(3)])
    volume = (volume * torch.rand(1, 1, 12, 12, 12).select(axis + 2, 0).unsqueeze(axis + 2)) / 12
    scan = MetaTensor(volume, affine=torch.diag(torch.tensor([1.0, 1, 1, 1]).double()))
    network = Brightness()
    result = AnomalyInferer(axis, 100, spacing_mm=3.9)(scan, network)
    assert [shape[0] for shape in network.shapes] == [4]  # slices 0, 3, 6 and 9
    along, expected = (one.as_tensor().movedim(axis + 2, 0) for one in (result, scan * 2))
    assert torch.allclose(along[:10], expected[:10], atol=1e-5)
    assert torch.allclose(along[10:], expected[9].expand_as(along[10:]), atol=1e-5)


@pytest.mark.parametrize(("spacing_mm", "scored"), [(0, 7), (2.9, 7), (3, 7), (6, 4), (9, 3)])
def test_slices_as_thick_as_the_spacing_are_scored_all(spacing_mm, scored):
    scan = MetaTensor(torch.rand(1, 1, 5, 6, 7), affine=torch.diag(torch.tensor([1.0, 1, 3, 1])))
    network = Brightness()
    AnomalyInferer(2, 100, spacing_mm=spacing_mm)(scan, network)
    assert [shape[0] for shape in network.shapes] == [scored]


class Mean(nn.Module):
    """Maps of slices: the mean of each slice, which depends on the axis."""

    def forward(self, slices):
        return slices.mean((2, 3), keepdim=True) + torch.zeros_like(slices)

    def maps(self, slices):
        return torch.cat([self(slices), torch.full_like(slices, slices.shape[2])], dim=1)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0)])
def test_several_axes_are_averaged(axes):
    volume = torch.rand(2, 1, 5, 6, 7)
    others = {0: (3, 4), 1: (2, 4), 2: (2, 3)}
    expected = sum(volume.mean(others[a], keepdim=True).expand_as(volume) for a in axes)
    result = AnomalyInferer(axes, 3)(volume, Mean())
    assert torch.allclose(result, expected / len(axes), atol=1e-6)
    mapped = AnomalyInferer(axes, 3, component_map=True)(volume, Mean())
    assert torch.equal(mapped[:, :1], result)
    assert (mapped[:, 1] == {0: 6, 2: 5}[axes[0]]).all()  # of the first axis


def test_component_map_is_the_second_channel():
    volume = torch.rand(1, 1, 5, 6, 7)
    result = AnomalyInferer(0, 2, component_map=True)(volume, Brightness())
    assert torch.equal(result[:, :1], volume * 2)
    assert torch.equal(result[:, 1:], volume.mul(100).round())


def test_images_go_through_in_batches():
    images = torch.rand(5, 1, 6, 7)
    network = Brightness()
    assert torch.equal(AnomalyInferer(batch_size=2)(images, network), images * 2)
    assert [shape[0] for shape in network.shapes] == [2, 2, 1]


def test_a_single_slice_volume():
    volume = torch.rand(1, 1, 5, 6, 1)
    assert torch.equal(AnomalyInferer()(volume, Brightness()), volume * 2)


def test_metadata_is_kept():
    volume = MetaTensor(torch.rand(1, 1, 5, 6, 7), affine=AFFINE)
    result = AnomalyInferer()(volume, Brightness())
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, volume.affine)
    assert result.is_batch == volume.is_batch


class Calibrated(Brightness):
    """A network with thresholds."""

    thresholds_by_rate: ClassVar = {"0.01": 0.9, "0.1": 0.25}


def test_thresholds_travel_with_each_volume_of_a_batch():
    """Through collating, decollating and splitting, as MONAI's evaluators do it."""
    scans = [MetaTensor(torch.rand(1, 5, 6, 7), meta={"filename_or_obj": n}) for n in ("a", "b")]
    batch = list_data_collate([{"image": scan} for scan in scans])["image"]
    result = AnomalyInferer(component_map=True)(batch, Calibrated())
    for item, name in zip(decollate_batch({"pred": result}), "ab", strict=True):
        item = SplitDimd("pred", dim=0, output_postfixes=["x", "y"])(item)
        for key in ("pred", "pred_x", "pred_y"):
            assert item[key].meta["thresholds"] == Calibrated.thresholds_by_rate
            assert item[key].meta["filename_or_obj"] == name
    assert result[1].meta["thresholds"] == Calibrated.thresholds_by_rate
    assert "thresholds" not in batch.meta


def test_thresholds_of_a_files_header_are_none():
    scan = MetaTensor(torch.rand(1, 1, 5, 6, 7), meta={"thresholds": {"0.01": 0.0}})
    assert "thresholds" not in AnomalyInferer()(scan, Brightness()).meta
    assert AnomalyInferer()(scan, Calibrated()).meta["thresholds"]["0.01"] == 0.9
    assert scan.meta["thresholds"] == {"0.01": 0.0}


@pytest.mark.parametrize("shape", [(2, 1, 5, 6), (1, 1, 5, 6, 7)])
def test_the_network_is_given_plain_tensors(shape):
    """Code as simple as `x.new_empty(3)` fails on a MetaTensor."""
    kinds = set()

    def network(slices):
        kinds.add(type(slices))
        return slices

    result = AnomalyInferer()(MetaTensor(torch.rand(shape)), network)
    assert kinds == {torch.Tensor}
    assert isinstance(result, MetaTensor)


class Patches(nn.Module):
    """Backbone of patches of 7 pixels: their mean and contrast."""

    patch_size = 7
    embedding_dim = 3

    def forward(self, images):
        mean = nn.functional.avg_pool2d(images[:, :1], 7)
        square = nn.functional.avg_pool2d(images[:, :1] ** 2, 7)
        return torch.cat([mean, square, torch.ones_like(mean)], dim=1)


def _detector():
    mixture = DPMM(3, 4)
    mixture.initialize(Patches()(torch.rand(4, 3, 56, 56)).movedim(1, -1).flatten(0, 2))
    return AnomalyDetector(Patches(), mixture, image_size=56)


def _scan(volume, *spacing, name="scan.nii"):
    affine = torch.diag(torch.tensor([*map(float, spacing), 1.0], dtype=torch.float64))
    return MetaTensor(volume, affine=affine, meta={"filename_or_obj": name})


def _ball(*spacing):
    """A bright ball in a box of 64 mm, averaged over the voxels: (1, 1, X, Y, Z)."""
    coordinates = torch.meshgrid(*[torch.arange(64) - 31.5] * 3, indexing="ij")
    ball = torch.sigmoid(22 - torch.stack(coordinates).norm(dim=0))
    return _scan(nn.functional.avg_pool3d(ball[None, None], spacing), *spacing)


@pytest.mark.parametrize("axis", [0, 1, 2, (0, 1, 2)])
@pytest.mark.parametrize("side", [0, 1, 2])
def test_a_ball_on_long_pixels_has_the_map_of_square_pixels(axis, side):
    spacing = [4 if one == side else 1 for one in range(3)]
    inferer, network = AnomalyInferer(axis, component_map=True), _detector()
    expected = inferer(_ball(1, 1, 1), network)[:, :1].as_tensor()
    expected = nn.functional.avg_pool3d(expected, spacing)
    maps = inferer(_ball(*spacing), network).as_tensor()
    assert maps.shape[2:] == expected.shape[2:]
    error = (maps[:, :1] - expected).abs().mean()
    assert error < 0.15 * (expected - expected.mean()).abs().mean()
    assert torch.equal(maps[:, 1], maps[:, 1].round())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_network_sees_what_it_was_trained_on(axis):
    seen = []

    def network(slices):
        seen.append(prepare_slices(slices, 28, 14))
        return slices

    scan = _scan(torch.rand(1, 9, 8, 7), 1, 2, 5)
    assert AnomalyInferer(axis)(scan[None], network).shape == scan[None].shape
    trained = NormalizeSlices(28, 14, percentiles=None)(ExtractSlices(axis)(scan))
    assert torch.equal(torch.cat(seen), trained.as_tensor())
    seen.clear()
    AnomalyInferer()(ExtractSlices(axis)(scan), network)  # slices as images
    assert torch.equal(torch.cat(seen), trained.as_tensor())


def test_isotropic_volumes_are_not_resampled():
    volume, network = torch.rand(1, 1, 9, 8, 7), _detector()
    plain = AnomalyInferer(component_map=True)(volume, network)
    for spacing in ((1, 1, 9), (3, 3.02, 0.1)):
        scan = _scan(volume, *spacing)
        assert torch.equal(AnomalyInferer(component_map=True)(scan, network).as_tensor(), plain)


def test_scans_of_one_batch_may_have_different_pixels():
    scans = [_scan(torch.rand(1, 9, 8, 7), 1, y, 1, name=f"{y}") for y in (1, 2, 3)]
    batch = list_data_collate([{"image": scan} for scan in scans])["image"]
    network = _detector()
    result = AnomalyInferer()(batch, network).as_tensor()
    alone = [AnomalyInferer()(scan[None], network).as_tensor() for scan in scans]
    assert torch.allclose(result, torch.cat(alone))


@pytest.mark.parametrize(
    ("spacing", "found"), [((1, 9, 9), "1x9 mm"), ((1, 0.1, 1), "1x0.1 mm"), ((8, 1, 1), "72x8")]
)
def test_more_than_8_to_1_is_an_error_with_the_files_name(spacing, found):
    scan = _scan(torch.rand(1, 9, 8, 7), *spacing, name="thick.nii")
    for image in (scan[None], list_data_collate([{"image": scan}])["image"]):
        with pytest.raises(InputError, match=rf"^thick\.nii: .* 8 times .* got {found}"):
            AnomalyInferer()(image, _detector())


def test_in_a_monai_evaluator_the_result_lies_on_the_input_grid(tmp_path):
    import nibabel as nib
    import numpy as np
    from monai.data import DataLoader, Dataset
    from monai.transforms import LoadImaged

    array = np.zeros((9, 10, 11), np.float32)
    array[2, 7, 5] = 1
    nib.save(nib.Nifti1Image(array, AFFINE.numpy()), tmp_path / "scan.nii.gz")
    pre = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Orientationd("image", axcodes="PLI", labels=None),
        ]
    )
    post = Compose(
        [
            Invertd("pred", pre, orig_keys="image", nearest_interp=False),
            SaveImaged(
                "pred",
                output_dir=tmp_path,
                output_postfix="anomaly",
                separate_folder=False,
                print_log=False,
            ),
        ]
    )
    data = Dataset([{"image": str(tmp_path / "scan.nii.gz")}], pre)
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(data, batch_size=1),
        network=Brightness(),
        inferer=AnomalyInferer(1, batch_size=4),
        postprocessing=post,
    ).run()
    saved = nib.load(tmp_path / "scan_anomaly.nii.gz")
    assert np.allclose(saved.affine, AFFINE)
    assert np.array_equal(saved.get_fdata(), array * 2)


def test_errors_name_argument_rule_and_value():
    for axis in (3, [], [0, 0], [1, 3]):
        with pytest.raises(ValueError, match=r"axis must be 0, 1 or 2, or several .*, got"):
            AnomalyInferer(axis)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        AnomalyInferer(batch_size=0)
    with pytest.raises(ValueError, match=r"inputs must be .* got shape \(4, 4\)"):
        AnomalyInferer()(torch.rand(4, 4), Brightness())
