"""The mixture as a scikit-learn estimator, for embeddings of anything.

`DPMM` does the work; here arrays become batches, one at a time, and results become arrays.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from inspect import signature
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from monai_dpmm.errors import InputError, MissingPackageError, renamed_arguments
from monai_dpmm.mixture.dpmm import DPMM

try:
    from sklearn.base import BaseEstimator, DensityMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import assert_all_finite, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise MissingPackageError(
        "the estimator needs scikit-learn: pip install monai-dpmm[scikit-learn]"
    ) from error

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from monai_dpmm.mixture.dpmm import ComponentKind, ScheduleKind
    from monai_dpmm.mixture.initialization import InitializationKind, InitialWeightsKind
    from monai_dpmm.mixture.scores import ScoreKind

__all__ = ["DirichletProcessMixture"]

_OF_THE_MIXTURE = signature(DPMM).parameters
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class DirichletProcessMixture(DensityMixin, BaseEstimator):
    """Dirichlet process mixture of patches X (N, D), with scikit-learn's methods.

    `DPMM` explains the arguments from `components` (BayesianGaussianMixture's n_components) to
    `weight_threshold`. With the schedule "none" and a batch_size of at least N, EM is plain EM.
    Embeddings are expected at unit norm, as `sklearn.preprocessing.Normalizer` makes them, where a
    cosine is to mean something.

    X is read a batch at a time and never held twice: a NumPy array, or a memmap larger than memory.
    The first data seen decide the precision: float32 for float32 and float16, float64 for all
    else. It stays until the next `fit`, and results come back in it. NaN and infinite values are
    found as their batch is read.

    It is a density, as scikit-learn's own mixtures are, and no ClusterMixin: labels of one must be
    consecutive, while components keep their index when others vanish.

    Args:
        max_epochs: passes of `fit` over X.
        batch_size: most patches of one EM step, and of one evaluation. X is cut into batches whose
            sizes differ by one at most, so that no short one gets the weight of a whole one.
        tol: nats per patch; `fit` stops when an epoch's mean log-likelihood differs by less from
            that of the epoch before. None takes every epoch, as the paper does.
        shuffle: draw the rows anew for every epoch of `fit`; turn it off where rows are shuffled
            already and reading them in order is faster.
        random_state: of the start and the order: an int, a RandomState or None.
        device: where the mixture lives, as PyTorch names it.

    Attributes:
        mixture_: the fitted `DPMM`, with everything that it can do.
        history_: one dictionary for each epoch of `fit` and each call of `partial_fit`:
            "log_likelihood" (mean over its patches, each batch before its update, nats),
            "concentration" (α) and "components" (how many survive).
        converged_: whether `tol` ended `fit`.
        n_features_in_: D.
    """

    @renamed_arguments(covariance="component_kind", rate="step_size")
    def __init__(
        self,
        components: int = 500,
        *,
        component_kind: ComponentKind = "diagonal",
        initialization: InitializationKind = "random",
        initial_weights: InitialWeightsKind = "beta",
        concentration: float = 2.0,
        learn_concentration: bool = True,
        schedule: ScheduleKind = "ema",
        step_size: float = 0.2,
        variance_floor: float | None = None,
        weight_threshold: float = 1e-6,
        max_epochs: int = 40,
        batch_size: int = 12288,
        tol: float | None = None,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.components = components
        self.component_kind = component_kind
        self.initialization = initialization
        self.initial_weights = initial_weights
        self.concentration = concentration
        self.learn_concentration = learn_concentration
        self.schedule = schedule
        self.step_size = step_size
        self.variance_floor = variance_floor
        self.weight_threshold = weight_threshold
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.tol = tol
        self.shuffle = shuffle
        self.random_state = random_state
        self.device = device

    @property
    def weights_(self) -> NDArray[np.float64]:
        """Component weights π_k, which sum to 1: (K,)."""
        return self.mixture_.weights.cpu().numpy()

    @property
    def means_(self) -> NDArray[np.floating]:
        """Component means μ_k, the prototypes: (K, D)."""
        return self.mixture_.means.cpu().numpy()

    @property
    def log_likelihood_(self) -> float:
        """Mean log-likelihood of the last epoch's patches, each batch before its update, nats."""
        return self.history_[-1]["log_likelihood"]

    @property
    def n_iter_(self) -> int:
        """Epochs of `fit` and calls of `partial_fit` so far."""
        return len(self.history_)

    # --- fitting ------------------------------------------------------------------------------

    def fit(self, X: ArrayLike, y: object = None) -> DirichletProcessMixture:
        """The estimator, fitted to X (N, D) from a new start; the last epoch is kept.

        Raises:
            ValueError: for parameters out of range, and for X that is not finite or no (N, D).
            TypeError: for sparse X.
        """
        X = self._validated(X, reset=True)
        random = check_random_state(self.random_state)
        mixture, converged = self._new_mixture(X, random), False
        history: list[dict[str, float]] = []
        while len(history) < self.max_epochs and not converged:
            order = random.permutation(len(X)) if self.shuffle else None
            history.append(self._pass(mixture, X, order))
            change = np.diff([record["log_likelihood"] for record in history[-2:]])
            converged = self.tol is not None and bool((abs(change) < self.tol).any())
        self.mixture_, self.history_, self.converged_ = mixture, history, converged
        if self.tol is not None and not converged:
            message = f"max_epochs={self.max_epochs} passed before tol={self.tol} was met"
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return self

    def partial_fit(self, X: ArrayLike, y: object = None) -> DirichletProcessMixture:
        """The estimator after one more EM step for every batch of X (N, D), in the order of rows.

        It continues from whatever was fitted: parameters of the mixture that were set since then
        wait for the next `fit`. Where nothing was, the mixture starts from the first batch of X,
        which should hold several times as many patches as there are components.

        Raises:
            ValueError: as `fit`, and where X has another number of features than before.
            TypeError: for sparse X.
        """
        new = not hasattr(self, "mixture_")
        X = self._validated(X, reset=new)
        random = check_random_state(self.random_state)
        mixture = self._new_mixture(X, random) if new else self.mixture_
        record = self._pass(mixture, X)
        if new:
            self.mixture_, self.history_, self.converged_ = mixture, [], False
        self.history_.append(record)
        return self

    def fit_predict(self, X: ArrayLike, y: object = None) -> NDArray[np.int64]:
        """Component of each patch of X (N, D) after `fit` to them: (N,)."""
        return self.fit(X).predict(X)

    # --- evaluation ---------------------------------------------------------------------------

    def score_samples(self, X: ArrayLike) -> NDArray[np.floating]:
        """Log-likelihood per patch under the surviving mixture, nats: (N, D) -> (N,)."""
        return self._evaluated(X, lambda x: self.mixture_.log_prob(x))

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Mean log-likelihood of the patches under the surviving mixture, nats."""
        return float(self.score_samples(X).mean(dtype=np.float64))

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Surviving component of the highest responsibility for each patch: (N, D) -> (N,)."""
        return self._evaluated(X, lambda x: self.mixture_.assign(x, "mixture"))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.floating]:
        """Responsibilities of all components, 0 for those not surviving: (N, D) -> (N, K)."""
        return self._evaluated(X, self._surviving_responsibilities)

    def anomaly_score(self, X: ArrayLike, kind: ScoreKind = "cosine") -> NDArray[np.floating]:
        """Anomaly score of each patch, larger is more anomalous, see `DPMM`: (N, D) -> (N,)."""
        return self._evaluated(X, lambda x: self.mixture_.score(x, kind))

    def _surviving_responsibilities(self, x: Tensor) -> Tensor:
        log_weights = self.mixture_.log_weights.where(self.mixture_.surviving, -np.inf)
        return torch.softmax(self.mixture_.component_log_prob(x) + log_weights.to(x), dim=1)

    def _evaluated(self, X: ArrayLike, result: Callable[[Tensor], Tensor]) -> NDArray[Any]:
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        parts = [result(x).cpu().numpy() for x in self._batches(X, self.mixture_)]
        return np.concatenate(parts)

    # --- batches ------------------------------------------------------------------------------

    def _new_mixture(self, X: NDArray[Any], random: np.random.RandomState) -> DPMM:
        options = {k: v for k, v in self.get_params().items() if k in _OF_THE_MIXTURE}
        seed = random.randint(np.iinfo(np.int32).max)
        narrow = X.dtype in (np.float16, np.float32)
        mixture = DPMM(self.n_features_in_, **options, seed=seed)
        return mixture.to(self.device, torch.float32 if narrow else torch.float64)

    def _pass(
        self, mixture: DPMM, X: NDArray[Any], order: NDArray[np.int64] | None = None
    ) -> dict[str, float]:
        """What `history_` keeps of one EM step for each batch of X."""
        total = torch.zeros((), dtype=torch.float64, device=mixture.origin.device)
        for x in self._batches(X, mixture, order):
            if not mixture.fitted:
                mixture.initialize(x)
            total += mixture.step(x).double() * len(x)
        mixture.prune()
        return {
            "log_likelihood": total.item() / len(X),
            "concentration": mixture.concentration.item(),
            "components": int(mixture.num_surviving),
        }

    def _batches(
        self, X: NDArray[Any], mixture: DPMM, order: NDArray[np.int64] | None = None
    ) -> Iterator[Tensor]:
        """Rows of X as the mixture takes them; those of an order are read as they lie."""
        count = -(-len(X) // self.batch_size)
        edges = np.linspace(0, len(X), count + 1).astype(np.int64)
        for first, last in pairwise(edges):
            rows = slice(first, last) if order is None else np.sort(order[first:last])
            wide = _NUMPY[mixture.origin.dtype]
            part = X[rows].astype(wide, order="C", copy=order is None)  # rows of an order are one
            assert_all_finite(part, input_name="X")
            yield torch.from_numpy(part).to(mixture.origin.device)

    def _validated(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        """X as scikit-learn takes it, checked but for its values and not copied if an array."""
        for name in ("max_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.tol is not None and not self.tol > 0:
            raise InputError(f"tol must be positive or None, got {self.tol}")
        # Numbers stay of their type here, because a cast is a copy of all of X.
        return validate_data(self, X, reset=reset, dtype="numeric", ensure_all_finite=False)
