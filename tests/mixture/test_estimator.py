"""The scikit-learn face: its own checks, the mixture behind it, tools around it, data on disk."""

import os
import pickle
import subprocess
import sys
import tracemalloc
from inspect import signature

import numpy as np
import pytest
import torch
from oracle import clustered
from scipy.sparse import csr_array
from sklearn.base import clone, is_clusterer
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from monai_dpmm import DirichletProcessMixture
from monai_dpmm.mixture.dpmm import DPMM

D, K = 8, 12


def patches(n=600, seed=0, dtype=torch.float64):
    return clustered(n, D, 6, seed=seed, dtype=dtype).numpy()


def small(**options):
    options = {"components": K, "max_epochs": 6, "batch_size": 200, "random_state": 0, **options}
    return DirichletProcessMixture(**options)


def by_hand(model, x, options, *, epochs):
    """The mixture that `small(shuffle=False)` should come to, from batches of 200 patches."""
    mixture = DPMM(D, K, seed=model.mixture_.seed, **options).to(x.dtype)
    mixture.initialize(x[:200])
    for _ in range(epochs):
        for batch in x.split(200):
            mixture.step(batch)
    return mixture


def assert_same_mixture(one, two):
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


# No check is expected to fail. One is skipped here, and taken by the test below, because it asks
# for an environment variable before SciPy is imported.
@parametrize_with_checks(
    [
        DirichletProcessMixture(max_epochs=5),
        DirichletProcessMixture(
            5, component_kind="full", max_epochs=3, batch_size=7, shuffle=False
        ),
        DirichletProcessMixture(5, component_kind="spherical", schedule="none", tol=1e3),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
def test_no_check_is_skipped_where_scipy_takes_array_apis():
    code = """
from sklearn.utils.estimator_checks import check_estimator
from monai_dpmm import DirichletProcessMixture
results = check_estimator(DirichletProcessMixture(max_epochs=2), on_fail=None, on_skip=None)
print(len(results), *{r["check_name"] for r in results if r["status"] != "passed"})
"""
    environment = os.environ | {"SCIPY_ARRAY_API": "1"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    count, *others = result.stdout.split()
    assert int(count) > 30
    assert not others


# --- the mixture behind it ------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"component_kind": "full", "schedule": "exp", "step_size": 0.6},
        {"component_kind": "spherical", "concentration": 0.5, "learn_concentration": False},
        {"schedule": "none", "variance_floor": 1e-3, "weight_threshold": 1e-3},
        {"component_kind": "von_mises_fisher", "initial_weights": "uniform"},
        {"initialization": "k-means++"},
    ],
)
def test_it_is_the_mixture_that_the_same_batches_make(options):
    x = torch.from_numpy(patches())
    model = small(shuffle=False, max_epochs=4, **options).fit(x.numpy())
    mixture = by_hand(model, x, options, epochs=4)
    assert_same_mixture(model.mixture_, mixture)
    for mine, theirs in [
        (model.weights_, mixture.weights),
        (model.means_, mixture.means),
        (model.score_samples(x.numpy()), mixture.log_prob(x)),
        (model.anomaly_score(x.numpy()), mixture.score(x)),
        (model.anomaly_score(x.numpy(), "mahalanobis"), mixture.score(x, "mahalanobis")),
        (model.predict(x.numpy()), mixture.assign(x, "mixture")),
    ]:
        np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-12)


def test_every_option_of_the_mixture_is_there_with_its_default():
    own = signature(DirichletProcessMixture).parameters
    for name, parameter in signature(DPMM).parameters.items():
        # n_features_in_, random_state, and places, which an array of patches does not have
        if name not in ("features", "seed", "place_grid"):
            assert own[name].default == parameter.default, name


def test_partial_fit_goes_on_from_what_was_fitted():
    x = torch.from_numpy(patches())
    model = small(shuffle=False, max_epochs=2).fit(x.numpy())
    for batch in (x, x[:200], x[200:400], x[400:]):  # an epoch at once, and one batch by batch
        model.partial_fit(batch.numpy())
    assert_same_mixture(model.mixture_, by_hand(model, x, {}, epochs=4))
    assert model.n_iter_ == len(model.history_) == 2 + 4


def test_partial_fit_starts_where_nothing_was_fitted():
    model = small(shuffle=False, max_epochs=1)
    fitted = clone(model).fit(patches())
    assert_same_mixture(model.partial_fit(patches()).mixture_, fitted.mixture_)
    assert model.history_ == fitted.history_
    assert not model.converged_


def test_batches_differ_by_one_patch_at_most(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        DPMM, "step", lambda self, x: sizes.append(len(x)) or torch.zeros((), dtype=x.dtype)
    )
    small(max_epochs=1, batch_size=200).fit(patches(401))
    assert sorted(sizes) == [133, 134, 134]


def test_each_epoch_takes_every_patch_once_in_an_order_of_its_own(monkeypatch):
    seen = []
    monkeypatch.setattr(
        DPMM, "step", lambda self, x: seen.append(x) or torch.zeros((), dtype=x.dtype)
    )
    x = patches()
    small(max_epochs=2).fit(x)
    first, second = torch.cat(seen[:3]).numpy(), torch.cat(seen[3:]).numpy()
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch, axis=0), np.sort(x, axis=0))
    assert not np.array_equal(seen[0], seen[3])
    places = [np.flatnonzero((x == row).all(1)).item() for row in seen[0].numpy()]
    assert places == sorted(places)  # as they lie, which a disk is quickest to read


def test_history_weighs_batches_by_their_patches():
    x = torch.from_numpy(patches(401))
    model = small(shuffle=False, max_epochs=1).fit(x.numpy())
    mixture = DPMM(D, K, seed=model.mixture_.seed).double()
    mixture.initialize(x[:133])
    total = sum(mixture.step(part) * len(part) for part in x.split([133, 134, 134]))
    assert model.log_likelihood_ == pytest.approx(total.item() / 401)


def test_every_pass_leaves_vanished_components_out(monkeypatch):
    pruned = []
    monkeypatch.setattr(DPMM, "prune", lambda self: pruned.append(int(self.steps)))
    small(max_epochs=2).fit(patches()).partial_fit(patches(200))
    assert pruned == [3, 6, 7]


def test_history_tells_of_every_epoch():
    x = patches()
    model = small(schedule="none", batch_size=len(x), learn_concentration=False).fit(x)
    assert model.n_iter_ == 6
    log_likelihood = [record["log_likelihood"] for record in model.history_]
    assert log_likelihood == sorted(log_likelihood)  # plain EM climbs
    assert model.log_likelihood_ == log_likelihood[-1] < model.score(x)
    last = model.history_[-1]
    assert last["components"] == (model.weights_ > model.weight_threshold).sum()
    assert last["concentration"] == 2.0


def test_tol_ends_the_fit():
    model = small(schedule="none", batch_size=600, max_epochs=300, tol=1e-4).fit(patches())
    changes = np.diff([record["log_likelihood"] for record in model.history_])
    assert 2 < model.n_iter_ < 300
    assert model.converged_
    assert abs(changes[-1]) < 1e-4 <= abs(changes[:-1]).min()


def test_a_fall_does_not_end_the_fit(monkeypatch):
    values = iter([0.0, 5.0, 1.0, 1.2, 9.0])
    monkeypatch.setattr(
        DPMM, "step", lambda self, x: torch.tensor(next(values), dtype=torch.float64)
    )
    assert small(batch_size=600, tol=0.5).fit(patches()).n_iter_ == 4


def test_a_tol_that_is_not_met_is_told():
    with pytest.warns(ConvergenceWarning, match="max_epochs=2 passed before tol=1e-09 was met"):
        model = small(max_epochs=2, tol=1e-9).fit(patches())
    assert not model.converged_


def test_responsibilities_are_of_the_surviving_mixture():
    x = patches()
    model = small(weight_threshold=0.05).fit(x)
    surviving = model.weights_ > 0.05
    assert 1 < surviving.sum() < K
    proba = model.predict_proba(x)
    assert proba.shape == (len(x), K)
    assert (proba[:, ~surviving] == 0).all()
    np.testing.assert_allclose(proba.sum(1), 1)
    np.testing.assert_array_equal(proba.argmax(1), model.predict(x))


def test_scikit_learns_mixture_of_equal_parameters_says_the_same():
    x = patches()
    model = small(component_kind="full", weight_threshold=0).fit(x)
    peer = GaussianMixture(K)
    peer.weights_, peer.means_ = model.weights_, model.means_
    factor = torch.linalg.inv(model.mixture_.covariance.cholesky).mT
    peer.precisions_cholesky_ = factor.numpy()
    for method in ("score_samples", "predict", "predict_proba", "score"):
        np.testing.assert_allclose(getattr(model, method)(x), getattr(peer, method)(x), atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [("float16", "float32"), ("float32", "float32"), ("float64", "float64"), ("int64", "float64")],
)
def test_the_data_decide_the_precision(dtype, result):
    x = (8 * patches()).astype(dtype)
    model = small().fit(x)
    results = (model.means_, model.score_samples(x), model.predict_proba(x), model.anomaly_score(x))
    assert {array.dtype for array in results} == {np.dtype(result)}
    assert model.score_samples(x.astype(np.float64)).dtype == result  # until the next fit
    assert model.predict(x).dtype == np.int64


# --- tools around it ------------------------------------------------------------------------


def test_it_finds_clusters_and_outliers():
    x = patches()
    model = small(max_epochs=40).fit(x)
    label = model.predict(x)
    np.testing.assert_array_equal(label, small(max_epochs=40).fit_predict(x))
    again = small(max_epochs=40, random_state=1).fit_predict(x)
    assert adjusted_rand_score(label, again) > 0.5
    for kind in ("cosine", "mixture"):
        assert model.anomaly_score(-x, kind).min() > np.median(model.anomaly_score(x, kind))


def test_predictions_do_not_depend_on_batches_or_order():
    x = patches()
    model = small().fit(x)
    order = np.random.default_rng(0).permutation(len(x))
    for method in ("score_samples", "predict", "predict_proba", "anomaly_score"):
        whole = getattr(model, method)(x)
        np.testing.assert_allclose(getattr(model, method)(x[order]), whole[order], atol=1e-12)
        other = clone(model).set_params(batch_size=7)
        other.mixture_, other.n_features_in_ = model.mixture_, D
        np.testing.assert_allclose(getattr(other, method)(x), whole, atol=1e-12)


def test_it_can_be_cloned_and_pickled():
    x = patches()
    model = small(component_kind="spherical").fit(x)
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(x)
    assert not hasattr(fresh, "weights_")
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(loaded.score_samples(x), model.score_samples(x))
    assert_same_mixture(loaded.partial_fit(x).mixture_, model.partial_fit(x).mixture_)


def test_the_same_random_state_fits_the_same_and_another_does_not():
    x = patches()
    one, two, other = (small(random_state=seed).fit(x) for seed in (0, 0, 1))
    assert_same_mixture(one.mixture_, two.mixture_)
    assert one.mixture_.seed != other.mixture_.seed
    assert not np.array_equal(one.means_, other.means_)
    stream = np.random.RandomState(0)
    first, second = (small(random_state=stream).fit(x) for _ in range(2))
    np.testing.assert_array_equal(first.means_, one.means_)
    assert not np.array_equal(first.means_, second.means_)


@pytest.mark.parametrize("scaler", [StandardScaler(), Normalizer()])
def test_it_ends_a_pipeline(scaler):
    x = 5 + 3 * patches()
    pipeline = make_pipeline(scaler, small()).fit(x)
    scaled = scaler.fit_transform(x)
    assert pipeline.score(x) == small().fit(scaled).score(scaled)
    np.testing.assert_array_equal(pipeline.predict_proba(x).argmax(1), pipeline.predict(x))


def test_a_grid_search_prefers_components_and_covariances_that_fit():
    grid = {"components": [1, K], "component_kind": ["diagonal", "spherical"]}
    search = GridSearchCV(small(), grid, cv=2, error_score="raise").fit(patches())
    assert search.best_params_["components"] == K
    assert search.best_score_ == max(search.cv_results_["mean_test_score"])


def test_it_is_a_density_and_no_clusterer():
    assert not is_clusterer(DirichletProcessMixture())
    assert DirichletProcessMixture().__sklearn_tags__().estimator_type == "density_estimator"


# --- data on disk ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_data_larger_than_memory_are_read_a_batch_at_a_time(tmp_path, dtype, shuffle):
    x = (20 * patches(60_000)).astype(dtype)
    stored = np.memmap(tmp_path / "x", dtype, "w+", shape=x.shape)
    stored[:] = x
    stored.flush()
    stored = np.memmap(tmp_path / "x", dtype, "r", shape=x.shape)
    model = small(max_epochs=1, batch_size=500, shuffle=shuffle)
    whole = small(max_epochs=1, batch_size=500, shuffle=shuffle).fit(x)
    tracemalloc.start()
    model.fit(stored).partial_fit(stored).score_samples(stored)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    rows = 8 * len(x)  # an int64 or float64 for each patch: its place in the order, its result
    assert peak < 3 * rows < x.size * 8
    np.testing.assert_array_equal(whole.partial_fit(x).means_, model.means_)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_fits_the_same_on_a_gpu():
    x = patches()
    model, expected = small(device="cuda").fit(x), small().fit(x)
    assert model.mixture_.origin.is_cuda
    np.testing.assert_allclose(model.means_, expected.means_, atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(x), expected.predict_proba(x), atol=1e-6)


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": 0}, "components must be at least 1, got 0"),
        ({"component_kind": "tied"}, "component_kind must be one of .*, got 'tied'"),
        ({"max_epochs": 0}, "max_epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"tol": 0.0}, "tol must be positive or None, got 0.0"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_parameters_are_checked_when_fitting(options, message, method):
    with pytest.raises(ValueError, match=message):
        getattr(small(**options), method)(patches())


def test_data_are_checked():
    model = small().fit(patches())
    for method in (model.fit, model.partial_fit, model.predict):
        with pytest.raises(TypeError, match=r"Sparse data was passed.* dense data is required"):
            method(csr_array(patches()))
        broken = patches()
        broken[599, 3] = np.nan
        with pytest.raises(ValueError, match="Input X contains NaN"):
            method(broken)
    with pytest.raises(ValueError, match=r"X has 5 features, but .* is expecting 8 features"):
        model.partial_fit(patches()[:, :5])
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'entropy'"):
        model.anomaly_score(patches(), "entropy")


def test_a_fit_that_fails_leaves_what_was_fitted():
    model = small().fit(patches())
    before = model.means_
    broken = patches()
    broken[599] = np.inf
    with pytest.raises(ValueError, match="Input X contains infinity"):
        model.fit(broken)
    np.testing.assert_array_equal(model.means_, before)


@pytest.mark.slow
def test_without_scikit_learn_the_error_names_the_extra():
    code = "import sys; sys.modules['sklearn'] = None; import monai_dpmm.mixture.estimator"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "the estimator needs scikit-learn: pip install monai-dpmm[scikit-learn]" in result.stderr
