"""A masked convolution sees what comes before, and learns what a patch has to do with it."""

import math

import pytest
import torch
from torch.nn import functional as F

from monai_dpmm.study.models.autoregressive import (
    AutoregressiveModel,
    AutoregressiveNetwork,
    MaskedConv2d,
)

GRID = (6, 7)


def network(features=5, seed=0):
    torch.manual_seed(seed)
    return AutoregressiveNetwork(features, 8, (1, 2))


def correlated(slices, features=4, grid=(10, 10), seed=0):
    """Healthy slices whose cells are like the cells to their left."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(slices, *grid, features, generator=generator)
    for column in range(1, grid[1]):
        x[:, :, column] = 0.9 * x[:, :, column - 1] + math.sqrt(1 - 0.81) * x[:, :, column]
    return x


@pytest.fixture(scope="module")
def fitted():
    model = AutoregressiveModel(4, channels=16, epochs=30, seed=1)
    model.fit(list(correlated(32)), list(correlated(8, seed=1)))
    return model


def test_a_cell_sees_only_what_comes_before_it():
    model = network()
    x = torch.randn(1, *GRID, 5, requires_grad=True)
    for i, j in ((0, 0), (2, 3), (5, 6)):
        for output in model(x):
            (gradient,) = torch.autograd.grad(output[0, i, j].sum(), x, retain_graph=True)
            seen = gradient[0].abs().sum(-1).flatten() > 0
            here = i * GRID[1] + j
            assert not seen[here:].any()
            assert bool(seen[:here].any()) == (here > 0)


def test_it_sees_nine_cells_around_but_for_a_corner_on_the_right():
    model = AutoregressiveNetwork(3, 8, (1, 2, 4))
    x = torch.randn(1, 9, 9, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)[0][0, 8, 4].sum(), x)
    row, column = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    expected = torch.where(row < 8, column <= 13 - row, column < 4)
    assert torch.equal(gradient[0].abs().sum(-1) > 0, expected)


def test_the_first_layer_leaves_the_cell_itself_out():
    first, other = (MaskedConv2d(1, 3, centre=centre) for centre in (False, True))
    assert first.mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert other.mask.tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]


def test_surprise_is_the_gaussians_negative_log_likelihood():
    model = network().double()
    model.mean.fill_(0.3)
    model.deviation.fill_(2.0)
    x = torch.randn(2, *GRID, 5, dtype=torch.float64)
    mean, log_variance = model(x)
    gaussian = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = -gaussian.log_prob((x - 0.3) / 2).mean(-1)
    torch.testing.assert_close(model.surprise(x), expected)


def test_background_says_nothing_but_that_it_is_there():
    model = network()
    model.mean.fill_(0.5)
    x = torch.randn(1, *GRID, 5)
    x[0, 2, 2] = 0
    known = torch.cat([(x - 0.5) * x.any(-1, keepdim=True), x.any(-1, keepdim=True)], -1)
    assert not known[0, 2, 2].any()
    seen = []
    model.first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(x)
    torch.testing.assert_close(seen[0].movedim(1, -1), known)


def test_training_beats_independent_gaussians(fitted):
    x = correlated(8, seed=2)
    surprise = float(fitted.score(x, "surprise").mean())
    independent = 0.5 * (1 + math.log(2 * math.pi))  # of standard normals, nats a feature
    conditional = independent + 0.5 * math.log(1 - 0.81)
    assert conditional < surprise < independent - 0.5


def test_what_does_not_fit_its_neighbours_scores_highest(fitted):
    x = correlated(1, seed=3)
    x[0, 4, 5] = -x[0, 4, 4].sign() * 2
    scores = fitted.score(x, "surprise")[0]
    assert int(scores.argmax()) == 4 * 10 + 5


def test_background_scores_lowest_and_trains_nothing(fitted):
    x = correlated(3, seed=4)
    x[:, :4] = 0
    scores = fitted.score(x, "surprise")
    assert (scores[:, :4] == float(fitted.module.lowest)).all()
    assert (scores[:, 4:] >= float(fitted.module.lowest)).all()
    slices = list(correlated(8))
    for grid in slices:
        grid[:3] = 0
    model = AutoregressiveModel(4, channels=4, epochs=1)
    model.fit(slices, slices)
    there = torch.cat([grid[3:].flatten(0, 1) for grid in slices])
    torch.testing.assert_close(model.module.mean, there.mean(0))
    torch.testing.assert_close(model.module.deviation, there.std(0))


def test_slices_of_several_grids():
    slices = [*correlated(4), *correlated(4, grid=(6, 12), seed=1)]
    model = AutoregressiveModel(4, channels=4, epochs=1, batch_size=3)
    model.fit(slices, slices)
    both = [model.score(grid[None], "surprise") for grid in slices[3:5]]
    assert [tuple(scores.shape) for scores in both] == [(1, 10, 10), (1, 6, 12)]


def test_a_seed_decides_the_weights_and_the_global_one_stays():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (AutoregressiveModel(3, channels=4, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [model.module.first.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_best_epoch_is_kept():
    slices, other = list(correlated(6)), list(F.normalize(correlated(6, seed=9), dim=-1))
    found = []
    for epochs in (1, 12):
        model = AutoregressiveModel(4, channels=8, epochs=epochs, learning_rate=0.05, batch_size=2)
        model.fit(slices, other)
        found.append(float(torch.cat(list(model._surprises(other))).mean()))
    assert math.isfinite(found[1])
    assert found[1] < found[0] + 0.05


@pytest.mark.parametrize("name", ["features", "channels", "epochs", "batch_size"])
def test_wrong_arguments(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        AutoregressiveModel(**{"features": 3, name: 0})


def test_wrong_use(fitted):
    with pytest.raises(ValueError, match=r"kind must be surprise for a masked .*, got 'cosine'"):
        fitted.score(correlated(1), "cosine")
    with pytest.raises(RuntimeError, match="not fitted"):
        AutoregressiveModel(4).score(correlated(1), "surprise")
    with pytest.raises(ValueError, match="slices must be finite"):
        AutoregressiveModel(4).fit([torch.full((2, 2, 4), math.nan)], [])
