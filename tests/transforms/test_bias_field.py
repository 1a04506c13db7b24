"""N4 takes a strong bias field out of a simulated brain, and leaves metadata and air alone."""

import nibabel as nib
import pytest
import torch
from monai.data import MetaTensor

from monai_dpmm.study.cohort.cohort import make_demo_cohort
from monai_dpmm.transforms.bias_field import CorrectBiasField
from monai_dpmm.transforms.intensity import rescale_intensity


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    folder = make_demo_cohort(
        tmp_path_factory.mktemp("brain") / "data", train=1, val=1, test=1, spacing=3.0
    )
    image = nib.load(folder / "train/train_000.nii.gz")
    scan = torch.from_numpy(image.get_fdata()).float()[None]
    return MetaTensor(scan, affine=torch.from_numpy(image.affine))


def _bias(shape):
    """A smooth factor between 0.3 and 3."""
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    return (0.5 * x + 0.3 * y * z + 0.3 * z).exp()


def _variation(scan, white):
    """Coefficient of variation within white matter."""
    return float(scan[0][white].std() / scan[0][white].mean())


@pytest.mark.slow
def test_white_matter_becomes_even_again(brain):
    white = brain[0] > brain[brain > 0].quantile(0.75)
    biased = brain * _bias(brain.shape[1:])
    corrected = CorrectBiasField()(biased)
    before, after = (_variation(x.as_tensor(), white) for x in (biased, corrected))
    assert before > 0.15
    assert after < 0.06
    assert torch.equal(corrected.affine, brain.affine)
    assert torch.equal(corrected == 0, biased == 0)


@pytest.mark.slow
def test_masked_air_stays_masked(brain):
    """Also where the air of a masked scan is not 0."""
    air = brain[0] == 0
    corrected = CorrectBiasField()(brain.where(~air, torch.tensor(3.0)) * 1.0)
    assert (corrected[0][air] == corrected.min()).all()
    assert (rescale_intensity(corrected)[0][air] == 0).all()


@pytest.mark.slow
def test_the_grid_of_the_spacing_counts_not_the_order_of_the_axes(brain):
    """A turned scan has a turned field."""
    biased = brain.as_tensor() * _bias(brain.shape[1:])
    affine = torch.diag(torch.tensor([2.0, 4.0, 3.0, 1.0]))
    turned = torch.diag(torch.tensor([3.0, 4.0, 2.0, 1.0]))
    one = CorrectBiasField()(MetaTensor(biased, affine=affine)).as_tensor()
    other = CorrectBiasField()(MetaTensor(biased.transpose(1, 3), affine=turned)).as_tensor()
    there = biased > 0
    ratio = (other.transpose(1, 3) / one)[there]
    assert float((ratio / ratio.median() - 1).abs().mean()) < 0.02


@pytest.mark.slow
def test_an_image_and_a_single_slice_are_corrected(brain):
    middle = brain.as_tensor()[..., brain.shape[3] // 2]
    biased = middle * _bias((*middle.shape[1:], 1))[..., 0]
    white = middle[0] > middle[middle > 0].quantile(0.75)
    for scan in (biased, biased[..., None]):
        corrected = CorrectBiasField()(scan)
        assert corrected.shape == scan.shape
        flat = corrected.view(biased.shape)
        assert _variation(flat, white) < 0.6 * _variation(biased, white)


def test_errors_name_argument_and_value():
    with pytest.raises(ValueError, match="shrink must be at least 1, got 0"):
        CorrectBiasField(0)
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        CorrectBiasField(iterations=0)
    with pytest.raises(ValueError, match="image must have one channel, got 2"):
        CorrectBiasField()(torch.rand(2, 20, 20, 20))
    with pytest.raises(
        ValueError, match=r"sides of 4 voxels or more, or be one slice, got \(20, 20, 3\)"
    ):
        CorrectBiasField()(torch.rand(1, 20, 20, 3))
    with pytest.raises(ValueError, match="intensities of at least 0, as MR has them, got -1000"):
        CorrectBiasField()(torch.full((1, 20, 20, 20), -1000.0))
