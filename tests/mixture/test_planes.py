"""One mixture for each direction, a single one as the paper has it."""

import pytest
import torch
from fitted_mixtures import D, K, batches

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.planes import PlaneMixtures, create_mixture, mixture_of, num_surviving


def test_a_single_direction_is_a_dpmm():
    model = create_mixture(1, features=D, components=K)
    assert type(model) is DPMM
    assert mixture_of(model, 0) is mixture_of(model, 2) is model


def test_several_directions_have_mixtures_of_their_own():
    model, (x, *_) = create_mixture(3, features=D, components=K), batches(dtype=torch.float32)
    assert isinstance(model, PlaneMixtures)
    assert num_surviving(model) == 0
    mixture_of(model, 1).initialize(x)
    assert num_surviving(model) == K
    assert [one.fitted for one in model] == [False, True, False]
    other = PlaneMixtures(3, features=D, components=K)
    other.load_state_dict(model.state_dict())
    assert [one.fitted for one in other] == [False, True, False]
    assert torch.equal(other[1].score(x), model[1].score(x))


def test_directions_that_a_model_has_not():
    model = PlaneMixtures(2, features=D, components=K)
    for direction in (2, -1):
        with pytest.raises(InputError, match=f"direction must be 0 to 1, got {direction}"):
            mixture_of(model, direction)
    with pytest.raises(InputError, match="planes must be at least 1, got 0"):
        PlaneMixtures(0, features=D)
