"""The mixture of a comparison knows where healthy patches are of which component."""

import pytest
import torch

from monai_dpmm.study.models.mixture import MixtureModel


def placed_by_side(slices=24, seed=0):
    """Slices whose left half is of one cluster and right half of another, and their places."""
    x = torch.zeros(slices, 4, 6, 3)
    x[:, :, :3, 0] = x[:, :, 3:, 1] = 1.0
    x += 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    columns = (torch.arange(6) + 0.5) / 6
    places = torch.full((*x.shape[:-1], 3), 0.5)
    places[..., 1] = columns
    return list(torch.nn.functional.normalize(x, dim=-1)), list(places)


def test_a_patch_that_is_normal_elsewhere_scores_high_at_its_place():
    options = {"components": 4, "variance_floor": 1e-3, "place_grid": (1, 2, 1)}
    model = MixtureModel(3, options, epochs=3)
    slices, held_out = placed_by_side(), placed_by_side(seed=1)
    model.fit(slices[0], held_out[0])
    assert model.place(slices, held_out) > 0.3  # at most log 2
    grid, places = held_out[0][0].clone(), held_out[1][0]
    grid[:, 4] = grid[:, 1]
    for kind in ("cosine", "likelihood", "mixture"):
        plain, placed = (
            model.score(grid[None], k, places[None])[0] for k in (kind, f"placed-{kind}")
        )
        assert torch.equal(plain, model.score(grid[None], kind)[0])
        assert placed[:, 4].mean() - placed[:, 1].mean() > 1e-3
        assert abs(float(plain[:, 4].mean() - plain[:, 1].mean())) < 1e-3
        background = model.score(torch.zeros(1, 4, 6, 3), f"placed-{kind}", places[None])
        assert (background <= placed.min()).all()


def test_places_need_a_grid():
    with pytest.raises(ValueError, match="options must have a place_grid, got none"):
        MixtureModel(2, {"components": 2}).place(([], []), ([], []))
