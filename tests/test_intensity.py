import numpy as np
import pytest
import torch

from monai_dpmm.intensity import intensity_range, rescale_intensity


def test_percentiles_are_those_of_the_foreground():
    brain = torch.rand(40_000) * 100 + 50
    scan = torch.cat([torch.zeros(400_000), brain]).view(1, 40, 100, 110)
    low, high = intensity_range(scan, (1, 99))
    assert low == pytest.approx(np.percentile(brain, 1), abs=0.05)
    assert high == pytest.approx(np.percentile(brain, 99), abs=0.05)


def test_padding_does_not_change_the_brain():
    brain = torch.rand(1, 20, 20, 20) + 0.5
    padded = torch.nn.functional.pad(brain, [9] * 6)
    inner = rescale_intensity(padded)[:, 9:-9, 9:-9, 9:-9]
    cropped = torch.cat([brain.flatten(), torch.zeros(1)])
    assert torch.equal(inner.flatten(), rescale_intensity(cropped)[:-1])
    assert rescale_intensity(padded)[0, 0, 0, 0] == 0


def test_scale_and_offset_of_the_scanner_do_not_matter():
    scan = torch.rand(1, 16, 16, 16).double()
    assert torch.allclose(rescale_intensity(scan), rescale_intensity(scan * 730 - 12), atol=1e-6)


def test_window_is_fixed_and_clipped():
    scan = torch.tensor([-1000.0, -160.0, 40.0, 240.0, 3000.0])
    scaled = rescale_intensity(scan, None, (-160, 240))
    assert scaled.tolist() == pytest.approx([0, 0, 0.5, 1, 1])


def test_a_binary_image_stays_binary():
    scan = torch.tensor([0.0, 0, 5, 5])
    assert rescale_intensity(scan).tolist() == [0, 0, 1, 1]


def test_more_voxels_than_torch_quantile_takes():
    scan = torch.arange(2**24 + 10, dtype=torch.float32)
    low, high = intensity_range(scan, (0, 50))
    assert low == 1
    assert high == pytest.approx(2**23, rel=1e-5)


def test_errors_name_argument_rule_and_value():
    scan = torch.rand(8)
    with pytest.raises(ValueError, match="image must not be constant, every voxel is 3"):
        rescale_intensity(torch.full((4,), 3.0))
    with pytest.raises(ValueError, match="give either percentiles or window"):
        rescale_intensity(scan, None, None)
    with pytest.raises(ValueError, match="give either percentiles or window"):
        rescale_intensity(scan, (1, 99), (0, 1))
    with pytest.raises(ValueError, match=r"0 <= low < high <= 100, got \(5, 101\)"):
        rescale_intensity(scan, (5, 101))
    with pytest.raises(ValueError, match=r"low < high, got \(3, 3\)"):
        rescale_intensity(scan, None, (3, 3))
