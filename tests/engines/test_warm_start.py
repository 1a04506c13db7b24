"""Training from a saved model: what is loaded, what is revived, and when nothing is."""

import pytest
import torch
from oracle import clustered

from monai_dpmm.engines.engines import EMTrainer
from monai_dpmm.engines.warm_start import WarmStart
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.network.detector import AnomalyDetector

D = 8


def detector(**options):
    return AnomalyDetector(torch.nn.Conv2d(3, D, 1), DPMM(D, 12, **options))


def loader(seed, batches=4):
    return [{"image": clustered(60, D, 5, seed=10 * seed + i)} for i in range(batches)]


def trained(model, batches, handlers=(), **options):
    EMTrainer("cpu", 1, batches, model.mixture, train_handlers=list(handlers), **options).run()
    return model


@pytest.fixture
def saved(tmp_path):
    model = trained(detector(), loader(0))
    model.mixture.log_weights[4:7] = -torch.inf
    model.mixture.average_weight[4:7] = 0
    torch.save(model.state_dict(), tmp_path / "model.pt")
    return model, tmp_path / "model.pt"


def test_training_goes_on_from_the_saved_mixture(saved):
    old, path = saved
    new = detector()
    trained(new, loader(1), [WarmStart(path, new, revive=False)])
    for batch in loader(1):
        old.mixture.step(batch["image"])
    torch.testing.assert_close(new.mixture.means, old.mixture.means)
    assert int(new.mixture.steps) == 8
    assert len(new.mixture.active) == 9


def test_vanished_components_are_revived_at_the_first_batch_only(saved):
    _, path = saved
    new = detector()
    EMTrainer(
        "cpu", 3, loader(1), new.mixture, train_handlers=[WarmStart(path, new, revive=True)]
    ).run()
    assert int(new.mixture.steps) == 4 + 12
    assert len(new.mixture.active) == 12


def test_without_a_path_the_first_batch_starts_the_mixture():
    one, two = detector(), detector()
    trained(one, loader(1), [WarmStart(None, one)])
    trained(two, loader(1))
    assert torch.equal(one.mixture.means, two.mixture.means)


def test_a_model_of_another_backbone_is_an_error(saved):
    other = AnomalyDetector(torch.nn.Conv2d(3, D, 3), DPMM(D, 12))
    with pytest.raises(ValueError, match=r"model.pt: must fit .*size mismatch for backbone.weight"):
        trained(other, loader(1), [WarmStart(saved[1], other)])


def test_a_model_that_is_not_there(tmp_path):
    model = detector()
    with pytest.raises(FileNotFoundError, match=r"nothing.pt: must exist to start from"):
        trained(model, loader(1), [WarmStart(tmp_path / "nothing.pt", model)])
