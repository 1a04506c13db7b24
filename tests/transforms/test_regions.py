import pytest
import torch

from monai_dpmm.transforms.regions import connected_regions


def test_corners_connect_pixels():
    mask = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]).bool()
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 2]]
    assert connected_regions(mask).tolist() == expected


@pytest.mark.parametrize(("offset", "count"), [((1, 1, 1), 1), ((0, 1, -1), 1), ((0, 0, 2), 2)])
def test_corners_connect_voxels(offset, count):
    mask = torch.zeros(5, 5, 5, dtype=torch.bool)
    mask[2, 2, 2] = True
    mask[tuple(2 + o for o in offset)] = True
    assert connected_regions(mask).max() == count


def test_an_empty_mask_has_no_region():
    regions = connected_regions(torch.zeros(1, 3, 4, dtype=torch.bool))
    assert regions.shape == (1, 3, 4)
    assert not regions.any()
