"""The mixture: EM against a dense float64 oracle and scikit-learn, laws, edges, state."""

import copy
import pickle
from typing import get_args

import pytest
import torch
from fitted_mixtures import D, K, batches, fitted, sigma_of, started
from oracle import Oracle, clustered
from sklearn.mixture import GaussianMixture
from torch.utils._python_dispatch import TorchDispatchMode

from monai_dpmm.mixture import scores as scores_module
from monai_dpmm.mixture.dpmm import COMPONENT_KINDS, DPMM, ComponentKind, ScheduleKind
from monai_dpmm.mixture.em import STEP_SIZES, Moments
from monai_dpmm.mixture.initialization import (
    INITIAL_STICKS,
    INITIALIZATIONS,
    InitializationKind,
    InitialWeightsKind,
)

COVARIANCES = ["diagonal", "full", "spherical"]
SCORES = list(scores_module.SCORES)
FLOORS = {"diagonal": 1e-6, "full": 1e-3, "spherical": 1e-6}
every_kind = pytest.mark.parametrize("covariance", [*COVARIANCES, "von_mises_fisher"])
every_covariance = pytest.mark.parametrize("covariance", COVARIANCES)
every_schedule = pytest.mark.parametrize("schedule", ["ema", "exp", "none"])


def assert_finite(model):
    for name, value in model.state_dict().items():
        if name != "log_weights":
            assert torch.isfinite(value).all(), name
    assert not torch.isnan(model.log_weights).any()
    torch.testing.assert_close(model.weights.sum(), torch.ones((), dtype=torch.float64))


def assert_same_state(one, two):
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


# --- oracles --------------------------------------------------------------------------------


def oracle_of(model, covariance, schedule, rate, *, learn=True):
    return Oracle(
        model.weights,
        model.means,
        sigma_of(model),
        alpha=2.0,
        covariance=covariance,
        floor=FLOORS[covariance],
        schedule=schedule,
        rate=rate,
        learn=learn,
    )


@pytest.mark.slow
@every_covariance
@every_schedule
@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_fifty_steps_are_those_of_the_dense_oracle(covariance, schedule, learn, dtype, tolerance):
    """Parameters, weights, α and log-likelihood; means and covariances where s_k is not zero.

    A component that has fallen below 1e-30 is frozen by the module and drifts in the oracle.
    """
    rate = 0.6 if schedule == "exp" else 0.2
    data = batches(dtype=dtype)
    model = started(
        data[0],
        component_kind=covariance,
        schedule=schedule,
        step_size=rate,
        learn_concentration=learn,
    )
    oracle = oracle_of(model, covariance, schedule, rate, learn=learn)
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    for t in range(50):
        x = data[t % len(data)]
        torch.testing.assert_close(model.step(x), oracle.step(x), **close)
        torch.testing.assert_close(model.weights, oracle.weights, **close)
        there = oracle.s > 1e-6
        torch.testing.assert_close(model.means[there].double(), oracle.means[there], **close)
        torch.testing.assert_close(sigma_of(model)[there].double(), oracle.sigma[there], **close)
        assert float(model.concentration) == pytest.approx(oracle.alpha, rel=tolerance)
    assert there.sum() >= 5


@every_covariance
def test_scikit_learn_scores_the_same_at_equal_parameters(covariance):
    x = batches()[0]
    model = fitted(x, component_kind=covariance, weight_threshold=0.0)
    kind = {"diagonal": "diag"}.get(covariance, covariance)
    peer = GaussianMixture(K, covariance_type=kind)
    peer.weights_, peer.means_ = model.weights.numpy(), model.means.numpy()
    sigma = sigma_of(model)
    peer.precisions_cholesky_ = {
        "diagonal": sigma.diagonal(dim1=1, dim2=2).rsqrt(),
        "spherical": sigma[:, 0, 0].rsqrt(),
        "full": torch.linalg.inv(torch.linalg.cholesky(sigma)).mT,
    }[covariance].numpy()
    far = torch.cat([x, 5 * x])
    expected = torch.from_numpy(peer.score_samples(far.numpy()))
    torch.testing.assert_close(model.log_prob(far), expected, rtol=1e-9, atol=1e-9)
    proba = torch.from_numpy(peer.predict_proba(far.numpy()))
    torch.testing.assert_close(model.responsibilities(far), proba, rtol=1e-9, atol=1e-9)


@every_covariance
@pytest.mark.filterwarnings("ignore:Best performing initialization")
def test_scikit_learn_takes_the_same_step(covariance):
    x = batches()[0]
    model = fitted(x, steps=2, component_kind=covariance, schedule="none", components=4)
    sigma = sigma_of(model)
    precisions = {
        "diagonal": sigma.diagonal(dim1=1, dim2=2).reciprocal(),
        "spherical": sigma[:, 0, 0].reciprocal(),
        "full": torch.linalg.inv(sigma),
    }[covariance]
    peer = GaussianMixture(
        4,
        covariance_type={"diagonal": "diag"}.get(covariance, covariance),
        reg_covar=FLOORS[covariance],
        max_iter=1,
        init_params="random",
        random_state=0,
        weights_init=(model.weights / model.weights.sum()).numpy(),
        means_init=model.means.numpy(),
        precisions_init=precisions.numpy(),
    ).fit(x.numpy())
    model.step(x)
    torch.testing.assert_close(model.means, torch.from_numpy(peer.means_))
    expected = torch.from_numpy(peer.covariances_)
    if covariance == "full":
        torch.testing.assert_close(sigma_of(model), expected)
    else:
        torch.testing.assert_close(model.covariance.variance, expected)
    torch.testing.assert_close(model.average_weight, torch.from_numpy(peer.weights_))


@pytest.mark.slow
@every_covariance
def test_plain_batch_em_never_lowers_its_objective(covariance):
    """log p(x_1..N) + Σ_{k<K} log Beta(v_k; 1, α) rises, as the M-step for v_k is its MAP (Eq. 5).

    It does so exactly only without a floor: ε is added after the maximum of the likelihood is
    found, which is no maximum of anything the E-step knows. Here ε = 1e-12 and variances are
    above 1e-4, so what the floor can take is below the tolerance.
    """
    x = batches(spread=0.5)[0]
    model = started(
        x,
        components=6,
        component_kind=covariance,
        schedule="none",
        learn_concentration=False,
        variance_floor=1e-12,
        weight_threshold=0.0,
    )

    def objective():
        v = []
        rest = 1.0
        for weight in model.weights[:-1].tolist():
            v.append(weight / rest)
            rest -= weight
        prior = torch.distributions.Beta(1.0, model.concentration)
        return float(model.log_prob(x).sum() + prior.log_prob(torch.tensor(v).double()).sum())

    values = [objective()]
    for _ in range(60):
        model.step(x)
        values.append(objective())
    gains = torch.tensor(values).diff()
    assert gains.min() > -1e-6
    assert values[-1] > values[0] + 100
    assert sigma_of(model).diagonal(dim1=1, dim2=2).min() > 1e-4


def test_the_step_reports_the_likelihood_of_the_parameters_before_it():
    x = batches()[0]
    model = started(x, weight_threshold=0.0)
    before = model.log_prob(x).mean()
    torch.testing.assert_close(model.step(x), before)


# --- the start ------------------------------------------------------------------------------


@every_covariance
def test_the_start_is_the_methods(covariance):
    x = batches()[0]
    model = started(x, component_kind=covariance)
    distances = torch.cdist(model.means, x)
    assert distances.min(1).values.max() < 1e-6
    assert distances.argmin(1).unique().numel() == K
    variance = x.var(0, correction=0)
    if covariance == "spherical":
        variance = variance.mean().expand(D)
    expected = torch.diag(variance + FLOORS[covariance])
    torch.testing.assert_close(sigma_of(model), expected.expand(K, D, D))
    assert float(model.concentration) == 2
    assert_finite(model)


@pytest.mark.slow
def test_sticks_start_as_beta_draws():
    """v_k ~ Beta(1, α): 1 - v_k has mean α / (α + 1), over many seeds."""
    x = batches(n=8)[0]
    first = torch.stack([started(x, seed=seed, concentration=3.0).weights for seed in range(400)])
    v_1, v_2 = first[:, 0], first[:, 1] / (1 - first[:, 0])
    for v in (v_1, v_2):
        assert float(1 - v.mean()) == pytest.approx(0.75, abs=0.03)
        assert float(v.var()) == pytest.approx(3 / (16 * 5), abs=0.01)


def test_every_patch_of_the_batch_can_be_a_mean():
    x = torch.arange(20.0)[:, None].double()
    seen = {float(m) for seed in range(60) for m in started(x, components=2, seed=seed).means}
    assert len({round(value) for value in seen}) == 20


@pytest.mark.slow
@every_kind
def test_fewer_patches_than_components(covariance):
    x = batches(n=5)[0]
    model = started(x, component_kind=covariance, components=40)
    torch.testing.assert_close(model.means[:5].sort(0).values, x.sort(0).values)
    assert model.means[5:].std() == pytest.approx(1, abs=0.2)
    for _ in range(30):
        model.step(x)
    assert_finite(model)


def test_starting_again_forgets_what_was_fitted():
    one, two = batches(count=2)
    again = fitted(one, steps=20)
    again.initialize(two)
    assert_same_state(again, started(two))


def test_a_seed_decides_the_start_and_nothing_else_does():
    x = batches()[0]
    torch.manual_seed(1)
    one = fitted(x, seed=7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = fitted(x, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_state(one, two)
    assert not torch.equal(fitted(x, seed=8).means, one.means)


# --- laws -----------------------------------------------------------------------------------


@every_kind
def test_moments_of_parts_add_up(covariance):
    x = batches()[0]
    model = fitted(x, component_kind=covariance)
    whole = model.e_step(x)
    parts = model.e_step(x[:100]) + model.e_step(x[100:101]) + model.e_step(x[101:])
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    assert float(whole.weight.sum()) == pytest.approx(len(x))
    assert float(whole.count) == len(x)


@every_kind
def test_no_patches_are_the_zero_of_addition(covariance):
    x = batches()[0]
    model = fitted(x, component_kind=covariance)
    nothing, some = model.e_step(x[:0]), model.e_step(x)
    assert all(not part.any() for part in nothing)
    for a, b in zip(some + nothing, some, strict=True):
        assert torch.equal(a, b)


@every_kind
@every_schedule
@pytest.mark.parametrize("steps", [0, 3])
def test_moments_of_no_patches_change_nothing(covariance, schedule, steps):
    x = batches()[0]
    model = fitted(x, steps, component_kind=covariance, schedule=schedule)
    before = copy.deepcopy(model)
    model.m_step(model.e_step(x[:0]))
    assert_same_state(model, before)


@every_kind
def test_moments_can_be_reduced_across_processes(covariance):
    x = batches()[0]
    for moment in fitted(x, component_kind=covariance).e_step(x):
        assert moment.is_contiguous()


def test_the_e_step_changes_nothing():
    x = batches()[0]
    model = fitted(x)
    before = copy.deepcopy(model)
    model.e_step(x)
    model.log_prob(x)
    assert_same_state(model, before)


@every_covariance
def test_order_of_patches_does_not_matter(covariance):
    x = batches()[0]
    one = started(x, component_kind=covariance)
    two = copy.deepcopy(one)
    shuffled = x[torch.randperm(len(x))]
    for _ in range(20):
        one.step(x)
        two.step(shuffled)
    torch.testing.assert_close(one.means, two.means)
    torch.testing.assert_close(one.weights, two.weights)
    torch.testing.assert_close(sigma_of(one), sigma_of(two))


@every_covariance
def test_translation_moves_the_means_only(covariance):
    x = batches()[0]
    shift = torch.linspace(-50, 70, D, dtype=x.dtype)
    one = fitted(x, steps=20, component_kind=covariance)
    two = fitted(x + shift, steps=20, component_kind=covariance)
    torch.testing.assert_close(two.means, one.means + shift)
    torch.testing.assert_close(sigma_of(two), sigma_of(one), rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(two.weights, one.weights)
    torch.testing.assert_close(two.log_prob(x + shift), one.log_prob(x), rtol=1e-6, atol=1e-6)


def test_translation_costs_float32_little():
    """Data a hundred standard deviations away are fitted about their own origin."""
    x = batches(dtype=torch.float32)[0]
    one, two = fitted(x, steps=10), fitted(x + 30, steps=10)
    torch.testing.assert_close(two.log_prob(x + 30), one.log_prob(x), rtol=0, atol=0.02)


def corners(scales):
    """Three far clusters of 2^D points each, whose features are exactly uncorrelated."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * len(scales))
    centres = 40 * torch.eye(3, len(scales)).double()
    cluster = signs * torch.tensor(scales).double()
    return torch.cat([centre + cluster for centre in centres])


def at_clusters(x, covariance):
    """A mixture of three components in their clusters, one plain EM step on."""
    model = started(
        x, components=3, component_kind=covariance, schedule="none", variance_floor=1e-4
    )
    model.offsets.copy_(40 * torch.eye(3, x.shape[1]) + 0.1 - model.origin)
    model.log_weights.fill_(1 / 3).log_()
    model.covariance.reset(torch.ones(x.shape[1], dtype=x.dtype))
    model.step(x)
    return model


def test_full_is_diagonal_on_axis_aligned_data():
    x = corners([0.5, 1.0, 2.0])
    full, diagonal = at_clusters(x, "full"), at_clusters(x, "diagonal")
    torch.testing.assert_close(sigma_of(full), sigma_of(diagonal))
    expected = torch.diag(torch.tensor([0.25, 1.0, 4.0]).double() + 1e-4)
    torch.testing.assert_close(sigma_of(full)[0], expected)
    torch.testing.assert_close(full.log_prob(x), diagonal.log_prob(x))


def test_spherical_is_diagonal_at_equal_variances():
    x = corners([0.7, 0.7, 0.7])
    spherical, diagonal = at_clusters(x, "spherical"), at_clusters(x, "diagonal")
    torch.testing.assert_close(sigma_of(spherical), sigma_of(diagonal))
    torch.testing.assert_close(spherical.log_prob(x), diagonal.log_prob(x))


@every_covariance
def test_one_component_is_the_sample_mean_and_covariance(covariance):
    x = batches()[0]
    model = fitted(x, steps=1, component_kind=covariance, components=1, schedule="none")
    torch.testing.assert_close(model.means[0], x.mean(0))
    expected = torch.cov(x.T, correction=0)
    if covariance != "full":
        variance = expected.diagonal()
        expected = torch.diag(variance.mean().expand(D) if covariance == "spherical" else variance)
    expected = expected + FLOORS[covariance] * torch.eye(D, dtype=x.dtype)
    torch.testing.assert_close(sigma_of(model)[0], expected)
    assert model.weights.tolist() == [1.0]
    assert float(model.concentration) == 2


@pytest.mark.slow
@every_kind
@every_schedule
def test_weights_sum_to_one_and_the_last_stick_is_the_rest(covariance, schedule):
    x = batches()[0]
    model = started(x, component_kind=covariance, schedule=schedule)
    for _ in range(40):
        model.step(x)
        assert float(model.weights.sum()) == pytest.approx(1, abs=1e-12)


def test_survivors_are_above_the_threshold():
    x = batches()[0]
    model = fitted(x, weight_threshold=0.05)
    assert torch.equal(model.surviving, model.weights > 0.05)
    assert 0 < int(model.surviving.sum()) < K


# --- chunks, memory, numerics ---------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("chunk", [1, 7, 255, 256, 1000])
def test_the_size_of_a_chunk_changes_nothing(covariance, chunk, monkeypatch):
    x = batches()[0]
    model = fitted(x, component_kind=covariance)
    whole, scores = model.e_step(x), [model.score(x, kind) for kind in SCORES]
    monkeypatch.setattr(scores_module, "_CHUNK", chunk)
    for a, b in zip(model.e_step(x), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    for kind, score in zip(SCORES, scores, strict=True):
        torch.testing.assert_close(model.score(x, kind), score, rtol=1e-6, atol=1e-6)


class Recorder(TorchDispatchMode):
    """Names of the operators that run, and the elements of the largest tensor that they make."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.add(str(func))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("covariance", ["diagonal", "spherical"])
def test_no_tensor_has_patches_components_and_features(covariance, monkeypatch):
    """Nothing larger than (n, K), (n, 2D) or (K, 2D) is made, n the chunk."""
    monkeypatch.setattr(scores_module, "_CHUNK", 64)
    x = clustered(300, 48, 6)
    model = started(x, components=40, component_kind=covariance)
    with Recorder() as recorder:
        model.step(x)
        model.log_prob(x)
    assert recorder.largest <= 64 * 2 * 48


@every_kind
def test_a_step_never_waits_for_the_device(covariance):
    x = batches()[0]
    model = started(x, component_kind=covariance)
    with Recorder() as recorder:
        model.step(x)
    waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal.default")
    assert not [name for name in recorder.names if any(wait in name for wait in waits)]


def two_components(gap):
    """Unit Gaussians at 0 and at `gap` nats from it, of equal weight, in one dimension."""
    x = torch.tensor([[0.0], [0.0]])
    model = started(x, components=2)
    model.origin.zero_()
    model.offsets.copy_(torch.tensor([[0.0], [(2 * gap) ** 0.5]]))
    model.covariance.variance.fill_(1)
    model.log_weights.fill_(0.5).log_()
    return model, x


@pytest.mark.parametrize(
    ("gap", "there"), [(60.0, True), (69.0, True), (69.2, False), (90.0, False)]
)
def test_responsibilities_below_1e_30_are_exactly_zero(gap, there):
    model, x = two_components(gap)
    far = float(model.responsibilities(x)[0, 1])
    assert (far > 0) is there
    assert (float(model.e_step(x).weight[1]) > 0) is there
    if there:
        assert far == pytest.approx(torch.tensor(-gap).exp().item(), rel=1e-3)


@pytest.mark.slow
@every_covariance
def test_no_denormal_numbers_are_left_in_the_state(covariance):
    """Components that die pass 1e-38 on their way to zero if nothing stops them."""
    data = batches(dtype=torch.float32, spread=0.05)
    model = started(data[0], component_kind=covariance, components=40, variance_floor=1e-6)
    for t in range(400):
        model.step(data[t % 4])
    assert (model.average_weight == 0).any()
    alive = model.average_weight[model.average_weight > 0]
    assert alive.min() > 1e-30
    tiny = torch.finfo(torch.float32).tiny
    for value in (model.average_first, model.covariance.second):
        assert not ((value != 0) & (value.abs() < tiny)).any()


@every_covariance
def test_identical_patches(covariance):
    x = torch.full((50, D), 0.35)
    model = fitted(x, steps=60, component_kind=covariance, components=5)
    assert_finite(model)
    survivors = sigma_of(model)[model.surviving]
    expected = FLOORS[covariance] * torch.eye(D).expand_as(survivors)
    torch.testing.assert_close(survivors, expected, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(model.means[model.surviving], x[: len(survivors)])


@every_covariance
def test_duplicates_of_one_patch_among_others(covariance):
    others = batches(n=64, dtype=torch.float32)[0]
    x = torch.cat([others, others[:1].expand(400, D)])
    model = fitted(x, steps=100, component_kind=covariance)
    assert_finite(model)
    assert sigma_of(model).diagonal(dim1=1, dim2=2).min() >= 0.99 * FLOORS[covariance]
    torch.testing.assert_close(
        model.score(others[:1], "euclidean"), torch.zeros(1), atol=0.02, rtol=0
    )


@every_covariance
@pytest.mark.parametrize("distance", [1e2, 1e4, 1e8])
def test_a_far_outlier_gets_finite_values(covariance, distance):
    x = batches(dtype=torch.float32)[0]
    model = fitted(x, steps=20, component_kind=covariance)
    far = torch.full((1, D), distance)
    typical = model.score(x[:1], "likelihood")
    for kind in SCORES:
        assert torch.isfinite(model.score(far, kind)).all(), kind
    assert model.score(far, "likelihood") > typical
    torch.testing.assert_close(model.responsibilities(far).sum(), torch.ones(()))
    model.step(torch.cat([x, far]))
    assert_finite(model)
    for _ in range(20):
        model.step(x)
    assert_finite(model)


def test_a_stick_that_rounds_to_one():
    """All weight on component 0: 1 - v_0 is 1e-16 of it, and later sticks keep their shares."""
    x = batches()[0]
    model = started(x, components=4, schedule="none", concentration=1.0, learn_concentration=False)
    share = torch.tensor([1.0, 3e-20, 1e-20, 4e-20], dtype=torch.float64)
    moments = model.e_step(x)
    model.m_step(moments._replace(weight=share * len(x)))
    torch.testing.assert_close(model.weights, share, rtol=1e-12, atol=0)
    model.concentration.fill_(2)
    model.m_step(moments._replace(weight=share * len(x)))
    assert_finite(model)
    assert float(model.weights[-1]) == pytest.approx(1 / len(x), rel=0.02)


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("concentration", [1e-3, 0.5, 1.0, 1e3])
@pytest.mark.parametrize("learn", [True, False])
def test_any_concentration_keeps_sticks_in_range(covariance, concentration, learn):
    data = batches(n=40)
    options = {"concentration": concentration, "learn_concentration": learn}
    model = started(data[0], component_kind=covariance, **options)
    for t in range(60):
        model.step(data[t % 4])
        assert_finite(model)
        assert (model.weights <= 1).all()
        assert model.concentration > 0
    if not learn:
        assert float(model.concentration) == concentration


def test_a_stick_past_one_is_cut():
    """With α = 0.5 and T_k below 0.5 / N, Eq. 5 gives v_k > 1: all the rest goes to component k."""
    x = batches(n=40)[0]
    model = started(x, components=4, schedule="none", concentration=0.5, learn_concentration=False)
    share = torch.tensor([0.5, 0.495, 0.003, 0.002], dtype=torch.float64)
    model.m_step(model.e_step(x)._replace(weight=share * len(x)))
    first = 0.5 / (1 - 0.5 / len(x))
    expected = torch.tensor([first, 1 - first, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(model.weights, expected, rtol=1e-12, atol=1e-200)


# --- components that vanish -----------------------------------------------------------------


@pytest.mark.slow
@every_covariance
@pytest.mark.parametrize("schedule", ["ema", "none"])  # "exp" takes thousands of steps to 1e-30
def test_vanished_components_stay_where_they_are(covariance, schedule):
    """Weight exactly zero (the last stick takes what is left), parameters kept, for good."""
    data = batches(dtype=torch.float32, spread=0.05)
    model = started(
        data[0],
        component_kind=covariance,
        schedule=schedule,
        components=40,
        variance_floor=1e-6,
    )
    for t in range(400):
        model.step(data[t % 4])
    gone = model.average_weight == 0
    gone[-1] = False  # it may come back through data, since v_K = 1
    assert 5 < int(gone.sum()) < 40
    means, sigma = model.means[gone], sigma_of(model)[gone]
    for t in range(300):
        model.step(data[t % 4])
    assert_finite(model)
    assert not model.average_weight[gone].any()
    assert not model.weights[:-1][gone[:-1]].any()
    assert torch.equal(model.means[gone], means)
    assert torch.equal(sigma_of(model)[gone], sigma)
    assert not model.surviving[:-1][gone[:-1]].any()


@every_covariance
@every_schedule
def test_components_without_weight_never_come_back(covariance, schedule):
    """From the state that vanishing ends in, whatever the schedule."""
    data = batches(dtype=torch.float32)
    model = fitted(data[0], component_kind=covariance, schedule=schedule)
    gone = torch.tensor([0, 3, 7])
    for average in (model.average_weight, model.average_first, model.covariance.second):
        average[gone] = 0
    model.log_weights[gone] = -torch.inf
    means, sigma = model.means[gone], sigma_of(model)[gone]
    for t in range(300):
        model.step(data[t % 4])
    assert_finite(model)
    assert not model.weights[gone].any()
    assert not model.average_weight[gone].any()
    assert torch.equal(model.means[gone], means)
    assert torch.equal(sigma_of(model)[gone], sigma)


@every_kind
@every_schedule
def test_vanished_components_cost_nothing_and_change_nothing(covariance, schedule):
    x = batches()[0]
    dense = fitted(
        x, components=40, concentration=0.5, component_kind=covariance, schedule=schedule
    )
    dense.average_weight[5:30] = 0
    dense.log_weights[5:30] = -torch.inf
    sparse = copy.deepcopy(dense)
    sparse.prune()
    for batch in batches():
        dense.step(batch)
        sparse.step(batch)
        sparse.prune()
    assert len(dense.active) == 40
    assert len(sparse.active) <= 15
    assert 39 in sparse.active  # the last stick is the rest: it may come back through patches
    for (name, a), b in zip(dense.state_dict().items(), sparse.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)


def test_a_pruned_step_evaluates_the_active_components_only(monkeypatch):
    x = batches()[0]
    model = fitted(x)
    model.log_weights[2:9] = -torch.inf
    model.prune()
    monkeypatch.setattr(torch, "addmm", (seen := Shapes(torch.addmm)))
    model.e_step(x)
    assert seen.shapes == {(256, K - 7)}


class Shapes:
    """A function that notes the shapes of its results."""

    def __init__(self, function):
        self.function = function
        self.shapes = set()

    def __call__(self, *args):
        result = self.function(*args)
        self.shapes.add(tuple(result.shape))
        return result


def test_a_loaded_mixture_is_pruned_and_a_started_one_is_whole():
    x = batches()[0]
    model = fitted(x)
    model.log_weights[3] = -torch.inf
    other = DPMM(D, K).double()
    other.load_state_dict(model.state_dict())
    assert 3 not in other.active
    assert len(other.active) == K - 1
    other.initialize(x)
    assert len(other.active) == K


def test_a_vanishing_component_does_not_move_on_its_way():
    """Its averages shrink together, so mean and variance are still until it is frozen."""
    x = batches(dtype=torch.float32)[0]
    model = fitted(x, steps=10)
    model.log_weights[3] = -torch.inf
    mean, variance = model.means[3].clone(), model.covariance.variance[3].clone()
    model.learn_concentration = False
    for _ in range(300):
        moments = model.e_step(x)
        weight, first, second = (m.clone() for m in moments[:3])
        weight[3], first[3], second[3] = 0, 0, 0
        model.m_step(moments._replace(weight=weight, first=first, second=second))
        model.log_weights[3] = -torch.inf
        torch.testing.assert_close(model.means[3], mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.covariance.variance[3], variance, rtol=1e-3, atol=1e-7)
    assert float(model.average_weight[3]) == 0


# --- types ----------------------------------------------------------------------------------


@every_kind
def test_float64_modules_stay_float64(covariance):
    x = batches()[0]
    model = fitted(x, component_kind=covariance)
    assert model.means.dtype == model.score(x).dtype == model.step(x).dtype == torch.float64
    assert all(t.dtype == torch.float64 for t in model.e_step(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", SCORES)
def test_half_patches_are_computed_in_the_modules_type(dtype, kind):
    x = batches(dtype=torch.float32)[0].to(dtype)
    half, full = DPMM(D, K), DPMM(D, K)
    half.initialize(x)
    full.initialize(x.float())
    torch.testing.assert_close(half.step(x), full.step(x.float()))
    torch.testing.assert_close(half.score(x, kind), full.score(x.float(), kind))


def test_a_cast_keeps_weights_and_concentration_float64():
    x = batches(dtype=torch.float32)[0]
    model = fitted(x, steps=30)
    cast = copy.deepcopy(model).double().float()
    assert_same_state(cast, model)
    cast.step(x)
    assert cast.log_weights.dtype == cast.concentration.dtype == torch.float64
    assert_finite(cast)


# --- state ----------------------------------------------------------------------------------


@every_kind
@every_schedule
def test_a_loaded_mixture_takes_the_very_next_step(covariance, schedule, tmp_path):
    data = batches(dtype=torch.float32)
    options = {"component_kind": covariance, "schedule": schedule}
    model = started(data[0], **options)
    for x in data:
        model.step(x)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = DPMM(D, K, seed=99, **options)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert other.fitted
    assert torch.equal(model.step(data[1]), other.step(data[1]))
    assert_same_state(model, other)
    assert torch.equal(model.score(data[2]), other.score(data[2]))


def test_the_state_of_an_unfitted_mixture_leaves_it_unfitted():
    x = batches(dtype=torch.float32)[0]
    model = fitted(x)
    model.load_state_dict(DPMM(D, K).state_dict())
    assert not model.fitted
    with pytest.raises(RuntimeError, match="DPMM is not fitted"):
        model.score(x)


@every_schedule
def test_copies_and_pickles_step_alike(schedule):
    x = batches()[0]
    model = fitted(x, schedule=schedule)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    model.step(x)
    for twin in twins:
        twin.step(x)
        assert_same_state(model, twin)


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features must be at least 1, got 0"),
        ({"components": 0}, "components must be at least 1, got 0"),
        (
            {"component_kind": "tied"},
            "component_kind must be one of diagonal, full, .*, got 'tied'",
        ),
        (
            {"initialization": "first"},
            "initialization must be one of random, k-means.., got 'first'",
        ),
        ({"initial_weights": "zipf"}, "initial_weights must be one of beta, uniform, got 'zipf'"),
        ({"schedule": "cosine"}, "schedule must be one of ema, exp, none, got 'cosine'"),
        ({"concentration": 0.0}, "concentration must be positive and finite, got 0.0"),
        ({"concentration": float("inf")}, "concentration must be positive and finite, got inf"),
        ({"concentration": float("nan")}, "concentration must be positive and finite, got nan"),
        ({"variance_floor": 0.0}, "variance_floor must be positive and finite, got 0.0"),
        ({"step_size": 0.0}, r"step_size must lie in \(0, 1\], got 0.0"),
        ({"step_size": 1.5}, r"step_size must lie in \(0, 1\], got 1.5"),
        ({"weight_threshold": 1.0}, r"weight_threshold must lie in \[0, 1\), got 1.0"),
        ({"weight_threshold": -0.1}, r"weight_threshold must lie in \[0, 1\), got -0.1"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DPMM(**{"features": D, "components": K, **options})


def test_old_names_of_arguments_work_for_one_version():
    with pytest.warns(DeprecationWarning, match="covariance is deprecated: it is component_kind"):
        old = DPMM(D, K, covariance="full")
    assert_same_state(old, DPMM(D, K, component_kind="full"))
    with pytest.warns(DeprecationWarning, match="rate is deprecated: it is step_size"):
        old = DPMM(D, K, rate=0.5)
    assert float(old._step_size(old.steps.double())) == 0.5
    with pytest.raises(TypeError, match="rate is the old name of step_size, got both"):
        DPMM(D, K, rate=0.5, step_size=0.5)


@pytest.mark.parametrize("shape", [(5, D + 1), (D,), (2, 3, D)])
@pytest.mark.parametrize("method", ["initialize", "e_step", "step", "log_prob", "score", "assign"])
def test_patches_of_another_shape(method, shape):
    model = fitted(batches(dtype=torch.float32)[0])
    with pytest.raises(ValueError, match=rf"x must be \(N, {D}\), got shape"):
        getattr(model, method)(torch.zeros(shape))


@pytest.mark.parametrize("method", ["initialize", "step"])
def test_a_start_and_a_step_need_a_patch(method):
    model = fitted(batches(dtype=torch.float32)[0])
    with pytest.raises(ValueError, match=rf"x must hold at least one patch, got shape \(0, {D}\)"):
        getattr(model, method)(torch.zeros(0, D))


def test_patches_of_integers():
    with pytest.raises(TypeError, match=r"x must be of floating point, got torch.int64"):
        DPMM(D, K).initialize(torch.zeros(4, D, dtype=torch.int64))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_first_batch_that_is_not_finite(value):
    x = batches()[0]
    x[3, 2] = value
    with pytest.raises(ValueError, match="x must be finite"):
        DPMM(D, K).initialize(x)


@pytest.mark.parametrize(
    "method", ["step", "e_step", "log_prob", "component_log_prob", "responsibilities", "score"]
)
def test_an_unfitted_mixture(method):
    with pytest.raises(RuntimeError, match="DPMM is not fitted: call initialize"):
        getattr(DPMM(D, K), method)(torch.rand(4, D))


def test_an_unfitted_m_step():
    with pytest.raises(RuntimeError, match="DPMM is not fitted"):
        DPMM(D, K).m_step(Moments(*[torch.zeros(())] * 5))


def test_no_survivor():
    x = batches(dtype=torch.float32)[0]
    model = fitted(x, weight_threshold=0.9)
    with pytest.raises(RuntimeError, match=r"no component survives the weight_threshold of 0.9"):
        model.score(x)


def test_a_state_of_another_size():
    message = f"checkpoint has components=5 and features={D}, this DPMM has components={K}"
    with pytest.raises(ValueError, match=message):
        DPMM(D, K).load_state_dict(DPMM(D, 5).state_dict())


def test_moments_add_to_moments_only():
    moments = Moments(*[torch.ones(())] * 5)
    with pytest.raises(TypeError, match="unsupported operand"):
        moments + 3


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (ComponentKind, COMPONENT_KINDS),
        (ScheduleKind, STEP_SIZES),
        (InitializationKind, INITIALIZATIONS),
        (InitialWeightsKind, INITIAL_STICKS),
    ],
)
def test_what_type_checkers_know_is_what_there_is(names, table):
    assert get_args(names) == tuple(table)
