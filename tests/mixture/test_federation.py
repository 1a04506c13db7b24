"""Sites that share moments fit one mixture exactly; merged mixtures have the mean density."""

import copy

import pytest
import torch
from oracle import clustered

from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.federation import load_moments, merged, pooled_moments, save_moments

D = 8
KINDS = ["diagonal", "full", "spherical", "von_mises_fisher"]
every_kind = pytest.mark.parametrize("covariance", KINDS)


def patches(n=300, seed=0, clusters=6, dtype=torch.float64):
    return clustered(n, D, clusters, spread=0.3, seed=seed, dtype=dtype)


def fitted(x, steps=20, **options):
    model = DPMM(D, **{"components": 12, **options}).to(x.dtype)
    model.initialize(x)
    for _ in range(steps):
        model.step(x)
    return model


@every_kind
@pytest.mark.parametrize("schedule", ["none", "ema"])
def test_sites_that_share_moments_fit_the_mixture_of_all_their_data(covariance, schedule, tmp_path):
    x = patches()
    central = fitted(x, steps=0, component_kind=covariance, schedule=schedule)
    shared = copy.deepcopy(central)
    for _ in range(15):
        total = None
        for name, data in {"one": x[:50], "two": x[50:180], "three": x[180:]}.items():
            site = copy.deepcopy(shared)  # what each site gets
            save_moments(pooled_moments(site, data.split(40)), tmp_path / name, site)
            own = load_moments(tmp_path / name, shared)
            total = own if total is None else total + own
        shared.m_step(total)
        central.step(x)
    for name, expected in central.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], expected, rtol=1e-8, atol=1e-8)


def test_moments_of_other_parameters_are_refused(tmp_path):
    x = patches()
    model = fitted(x)
    save_moments(model.e_step(x), tmp_path / "moments.pt", model)
    load_moments(tmp_path / "moments.pt", model)
    model.step(x)
    with pytest.raises(ValueError, match=r"moments.pt: must hold moments of this mixture as it is"):
        load_moments(tmp_path / "moments.pt", model)


@pytest.mark.parametrize("content", [{"weight": torch.ones(3)}, [1, 2], {}])
def test_a_file_of_anything_else_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "moments.pt")
    with pytest.raises(ValueError, match=r"moments.pt: must be a file of moments"):
        load_moments(tmp_path / "moments.pt", fitted(patches()))


def test_no_batch_has_no_moments():
    with pytest.raises(ValueError, match="batches must hold at least one batch, got none"):
        pooled_moments(fitted(patches()), [])


def sites(covariance, **options):
    data = patches(300, seed=1), patches(100, seed=2, clusters=9)
    return [
        fitted(x, component_kind=covariance, seed=i, **options) for i, x in enumerate(data)
    ], data


@every_kind
def test_the_merged_density_is_the_weighted_mean_of_the_densities(covariance):
    models, _ = sites(covariance)
    before = copy.deepcopy(models)
    result = merged(models, [300, 100])
    x = patches(200, seed=3)
    one, two = (model.log_prob(x).exp() for model in models)
    torch.testing.assert_close(result.log_prob(x).exp(), 0.75 * one + 0.25 * two, rtol=1e-5, atol=0)
    assert result.components == sum(int(m.num_surviving) for m in models)
    assert float(result.weights.sum()) == pytest.approx(1, abs=1e-12)
    assert (result.weights.diff() <= 0).all()
    for model, same in zip(models, before, strict=True):
        for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True):
            assert torch.equal(a, b)


@every_kind
def test_em_goes_on_from_the_moments_of_both(covariance):
    """A step of size zero gives back the parameters: averages and parameters belong together."""
    models, data = sites(covariance)
    result = merged(models, [300, 100])
    means, x = result.means.clone(), torch.cat(data)
    densities = result.component_log_prob(x)
    result._step_size = torch.zeros_like
    result.step(x)
    torch.testing.assert_close(result.means, means, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.component_log_prob(x), densities, rtol=1e-6, atol=1e-6)
    result._step_size = lambda t: torch.full_like(t, 0.2)
    first = [result.step(x) for _ in range(20)]
    assert first[-1] > first[0]


@every_kind
def test_a_mixture_merged_with_itself_is_itself(covariance):
    model = fitted(patches(), component_kind=covariance)
    result = merged([model, model], [5, 5])
    x = patches(100, seed=4)
    torch.testing.assert_close(result.log_prob(x), model.log_prob(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.score(x), model.score(x))
    assert int(result.steps) == 2 * int(model.steps)


@every_kind
def test_a_merged_mixture_survives_saving(covariance, tmp_path):
    models, data = sites(covariance)
    result = merged(models, [300, 100])
    torch.save(result.state_dict(), tmp_path / "merged.pt")
    other = DPMM(D, result.components, component_kind=covariance).double()
    other.load_state_dict(torch.load(tmp_path / "merged.pt", weights_only=True))
    torch.testing.assert_close(other.step(data[0]), result.step(data[0]))
    torch.testing.assert_close(other.means, result.means)


def test_float32_mixtures_merge_too():
    data = [patches(300, seed=i, dtype=torch.float32) for i in (1, 2)]
    result = merged([fitted(x) for x in data], [300, 300])
    assert result.offsets.dtype == torch.float32
    assert torch.isfinite(result.step(data[0]))


@pytest.mark.parametrize(
    ("mixtures", "counts", "message"),
    [
        ([], [], "mixtures and patches must be as many, at least one, got 0 and 0"),
        ([{}], [1, 2], "mixtures and patches must be as many, at least one, got 1 and 2"),
        ([{}, {}], [1, 0], r"patches must be at least 1 each, got \[1, 0\]"),
        (
            [{}, {"component_kind": "full"}],
            [1, 1],
            "mixtures must be of one covariance, dimension and",
        ),
    ],
)
def test_mixtures_that_do_not_go_together(mixtures, counts, message):
    with pytest.raises(ValueError, match=message):
        merged([fitted(patches(), steps=1, **options) for options in mixtures], counts)


def test_an_unfitted_mixture_is_refused():
    with pytest.raises(RuntimeError, match="DPMM is not fitted: only fitted"):
        merged([fitted(patches()), DPMM(D, 12).double()], [1, 1])
