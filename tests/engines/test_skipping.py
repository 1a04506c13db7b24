"""Scans that cannot be used are skipped and listed; anything else stops the run."""

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, MetaTensor
from monai.handlers import StatsHandler

from monai_dpmm.engines.skipping import ScanDataset, ScanEvaluator, collate_scans
from monai_dpmm.errors import InputError
from monai_dpmm.transforms.intensity import RescaleIntensity
from monai_dpmm.transforms.slicing import NormalizeSlices


def _loaded(data):
    """A transform that refuses a constant scan, and breaks where it is told to."""
    if data["image"] is None:
        raise KeyError("broken")
    return {"image": MetaTensor(RescaleIntensity()(data["image"]), meta={"filename_or_obj": "x"})}


def _evaluator(scans, *, post=None, network=None):
    loader = DataLoader(
        ScanDataset([{"image": scan} for scan in scans], _loaded),
        batch_size=1,
        collate_fn=collate_scans,
    )
    return ScanEvaluator(
        torch.device("cpu"), loader, network or torch.nn.Identity(), postprocessing=post
    )


def _scan(seed, side=6):
    return torch.from_numpy(np.random.default_rng(seed).random((1, side, side, side)))


def _seen(evaluator):
    seen = []
    done = Events.ITERATION_COMPLETED
    evaluator.add_event_handler(done, lambda engine: seen.append(len(engine.state.output)))
    return seen


def test_all_scans_that_can_be_read_are_done():
    evaluator = _evaluator([_scan(0), torch.zeros(1, 6, 6, 6), _scan(1)])
    seen = _seen(evaluator)
    with pytest.raises(InputError, match=r"^1 of 3 scans were skipped:\n  image must not be const"):
        evaluator.run()
    assert seen == [1, 0, 1]


def test_scans_that_fail_later_are_skipped_too():
    def refuse_large(data):
        NormalizeSlices(28, 14)(data["image"].movedim(-1, 0))
        return data

    long = torch.rand(1, 2, 60, 6)
    evaluator = _evaluator([long, _scan(1)], post=refuse_large)
    seen = _seen(evaluator)
    with pytest.raises(InputError, match=r"1 of 2 scans were skipped:\n  .*at most 8 times"):
        evaluator.run()
    assert seen == [0, 1]


def test_a_run_without_skipped_scans_ends_well_and_a_second_one_starts_anew():
    evaluator = _evaluator([_scan(0), _scan(1)])
    StatsHandler(iteration_log=False).attach(evaluator)
    evaluator.run()
    evaluator.run()
    assert (evaluator.scans, evaluator.skipped) == (2, [])


def test_errors_of_other_classes_stop_the_run():
    with pytest.raises(RuntimeError, match="applying transform"):
        _evaluator([None, _scan(0)]).run()

    class Broken(torch.nn.Module):
        def forward(self, x):
            raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        _evaluator([_scan(0)], network=Broken()).run()
