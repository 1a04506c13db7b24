import nibabel as nib
import numpy as np
import pytest
import torch

from monai_dpmm.transforms.intensity import WINDOWS, intensity_range, rescale_intensity


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
    assert rescale_intensity(scan, window=(-160, 240)).equal(scaled)  # percentiles have no say


def test_a_binary_image_stays_binary():
    scan = torch.tensor([0.0, 0, 5, 5])
    assert rescale_intensity(scan).tolist() == [0, 0, 1, 1]


def test_more_voxels_than_torch_quantile_takes():
    scan = torch.arange(2**24 + 10, dtype=torch.float32)
    low, high = intensity_range(scan, (0, 50))
    assert low == 1
    assert high == pytest.approx(2**23, rel=1e-5)


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_have_names(name):
    scan = torch.linspace(-2000, 2000, 9)
    assert torch.equal(
        rescale_intensity(scan, None, name), rescale_intensity(scan, None, WINDOWS[name])
    )


def _with_lesion(scan, share=0.05):
    """A bright lesion in that share of the foreground, and what is healthy."""
    there = (scan > 0).flatten().nonzero()[:, 0]
    lesion = there[len(there) // 3 :][: int(share * len(there))]
    marked = scan.flatten().clone()
    marked[lesion] = 1.5 * scan.max()
    healthy = torch.zeros(scan.numel(), dtype=torch.bool)
    healthy[there] = True
    healthy[lesion] = False
    return marked.view_as(scan), healthy.view_as(scan)


def test_a_bright_lesion_hardly_moves_quartiles_with_a_margin(cohort):
    scan = torch.from_numpy(nib.load(cohort / "train/train_000.nii.gz").get_fdata()).float()
    marked, healthy = _with_lesion(scan)

    def change(**options):
        before, after = (rescale_intensity(x, **options)[healthy] for x in (scan, marked))
        return float((after - before).abs().max())

    assert change(percentiles=(25, 75), margin=1.5) < 0.05
    assert change(percentiles=(2, 50), margin=(0, 7 / 3)) < 0.05
    assert change(percentiles=(0.5, 99.5)) > 0.3


def test_a_margin_reaches_beyond_the_percentiles_but_not_below_the_minimum():
    scan = torch.arange(101.0) - 20
    low, high = intensity_range(scan, (40, 60), margin=1.0)
    inner = intensity_range(scan, (40, 60))
    assert (low, high) == (2 * inner[0] - inner[1], 2 * inner[1] - inner[0])
    assert intensity_range(scan, (40, 60), margin=100)[0] == -20
    padded = torch.cat([torch.zeros(500), scan + 100])
    assert rescale_intensity(padded, (25, 75), margin=1.5)[0] == 0


def test_a_margin_above_maps_the_median_to_a_fixed_value():
    scan = torch.arange(102.0) - 20  # 101 values above the minimum, their median is 31
    assert intensity_range(scan, (0, 50), margin=(0, 1.0)) == (-19, 81)
    scaled = rescale_intensity(scan * 7 + 3, (2, 50), margin=(0, 7 / 3))
    assert scaled[1:].median() == pytest.approx(0.3)
    assert scaled[1:].quantile(0.02) == pytest.approx(0, abs=1e-6)


def test_errors_name_argument_rule_and_value():
    scan = torch.rand(8)
    with pytest.raises(ValueError, match="image must not be constant, every voxel is 3"):
        rescale_intensity(torch.full((4,), 3.0))
    with pytest.raises(ValueError, match="percentiles or window must be given, got None"):
        rescale_intensity(scan, None, None)
    with pytest.raises(ValueError, match="window must be one of brain, liver, lung, got 'bone'"):
        rescale_intensity(scan, None, "bone")
    for options in (
        {"margin": -1},
        {"margin": (0, -1)},
        {"percentiles": None, "window": "lung", "margin": 1},
    ):
        with pytest.raises(ValueError, match="margin must be at least 0, and 0 for a window"):
            rescale_intensity(scan, **options)
    with pytest.raises(ValueError, match=r"0 <= low < high <= 100, got \(5, 101\)"):
        rescale_intensity(scan, (5, 101))
    with pytest.raises(ValueError, match=r"low < high, got \(3, 3\)"):
        rescale_intensity(scan, None, (3, 3))


def test_automatic_percentiles_are_those_of_the_median_where_there_is_air():
    generator = torch.Generator().manual_seed(0)
    body = torch.rand(1, 20, 20, generator=generator) + 1
    with_air = torch.cat([torch.zeros(1, 20, 20), body], dim=1)
    expected = rescale_intensity(with_air, (2, 50), margin=(0, 7 / 3))
    assert torch.equal(rescale_intensity(with_air, "automatic"), expected)
    assert torch.equal(rescale_intensity(body, "automatic"), rescale_intensity(body))
    with pytest.raises(ValueError, match=r'margin must be 0 for percentiles="automatic", got 1\.5'):
        rescale_intensity(body, "automatic", margin=1.5)
