"""Costs are measured of the real parts; how long anything takes is not asserted."""

import pytest
import torch
from monai.bundle import ConfigParser
from timing import STATM
from workload import (
    _STAGES,
    SURVIVING,
    StepSize,
    clustered,
    fresh_step_memory,
    products,
    scoring_cost,
    stand_in_detector,
    started,
    step_cost,
    volume_clock,
    volume_cost,
)

from monai_dpmm.app.cli import configs_dir

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

CPU = torch.device("cpu")
SMALL = StepSize(300, 16, 12)


def test_the_size_is_the_papers():
    assert tuple(StepSize()) == (12_288, 384, 500, "diagonal")


def test_patches_are_unit_norm_around_their_prototypes():
    x = clustered(400, 64, clusters=3)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(400))
    similarity = x @ x.T
    assert ((similarity > 0.5).sum(1) > 80).all()  # a third of them
    torch.testing.assert_close(x, clustered(400, 64, clusters=3))


def test_the_products_can_be_repeated_and_leave_the_patches_alone():
    x = clustered(50, 8)
    run, before = products(x, 5), x.clone()
    run()
    run()
    assert torch.equal(x, before)


def test_a_mixture_is_started_and_fitted():
    x = clustered(200, 8)
    fresh, fitted = started(x, 5), started(x, 5, "spherical", steps=3)
    assert fitted.log_prob(x).mean() > fresh.log_prob(x).mean()
    assert (fitted.components, fitted.features) == (5, 8)


def test_a_step_on_a_cpu_has_ratios_and_no_times():
    found = step_cost(SMALL, CPU, repeats=2)
    assert found["ratio"] > 0
    assert found["input_mb"] == pytest.approx(300 * 16 * 4 / 1e6)
    assert (found["patches"], found["features"], found["components"]) == (300, 16, 12)
    assert not [name for name in found if name.endswith("_ms")]


@pytest.mark.skipif(not STATM.exists(), reason="memory is read from /proc/self/statm")
def test_memory_grows_with_the_components_of_a_step():
    small, large = (
        fresh_step_memory(StepSize(4096, 16, components), CPU, threads=1)
        for components in (4, 4000)
    )
    assert large > small + 4


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr("workload.STATM", tmp_path / "none")
    assert fresh_step_memory(SMALL, CPU, threads=1) is None


@pytest.mark.parametrize("architecture", ["efficientnet_lite0", "dinov2_vits14"])
def test_a_stand_in_works_like_a_trained_model(architecture):
    detector = stand_in_detector(architecture, components=200, image_size=112)
    assert int(detector.mixture.log_weights.isfinite().sum()) == SURVIVING
    maps = detector(torch.rand(2, 1, 40, 40))
    assert maps.shape == (2, 1, 40, 40)
    assert maps.isfinite().all()
    assert maps.std() > 0
    assert float(detector.threshold(0.05)) > 0


@pytest.mark.parametrize("place_grid", [None, (2, 3, 2)])
def test_the_share_of_scoring(place_grid):
    detector = stand_in_detector("efficientnet_lite0", 20, 48, place_grid)
    assert (detector.mixture.places is not None) == (place_grid is not None)
    found = scoring_cost(detector, torch.rand(2, 1, 32, 32), CPU, repeats=2)
    assert list(found) == ["share"]
    assert found["share"] > 0


@pytest.fixture
def inference(trained, cohort, tmp_path):
    parser = ConfigParser()
    parser.read_config([str(configs_dir() / "inference.json"), str(trained / "models/model.json")])
    scan = str(cohort / "test/images/test_000.nii.gz")
    values = {"bundle_root": str(trained), "dataset_dir": scan, "output_dir": str(tmp_path)}
    parser.update({**values, "device": "$torch.device('cpu')"})
    return parser, scan


def test_a_volume_goes_through_all_stages(inference, tmp_path):
    clock = volume_clock(*inference, CPU, memory=lambda: 7)
    stages = ["LoadVolumed", "OrientScand", "RescaleIntensityd", "backbone", "mixture", "Invertd"]
    assert {*stages, "upsampling and stacking", "SaveImageResultsd"} <= set(clock.seconds)
    assert min(clock.seconds.values()) >= 0
    assert set(clock.memory.values()) == {7}
    assert (tmp_path / "test_000/test_000_findings.json").is_file()


def test_every_stage_after_the_network_is_known(inference):
    steps = inference[0].get_parsed_content("postprocessing").flatten().transforms
    assert {type(step).__name__ for step in steps} <= set(_STAGES)


def test_the_shares_of_a_volume_are_all_of_it(inference):
    found = volume_cost(*inference, CPU)
    shares = found["shares"]
    assert list(shares) == [
        *("load", "embed", "score", "put back on the grid"),
        *("smooth, less baseline", "threshold and findings", "save"),
    ]
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0
    assert found["to_embedding"] == pytest.approx(1 / shares["embed"])
    assert not [name for name in found if name.endswith("_ms")]
