"""One batched EM step of the Dirichlet process mixture, as its equations read: dense and slow.

Everything is float64; responsibilities, differences and outer products are formed for every patch,
component and pair of features. Nothing is chunked, expanded or centred, and no result is shared
with the package. Tests compare the package with it.
"""

import numpy as np
import torch
from scipy.optimize import bisect
from scipy.special import ive
from torch.distributions import MultivariateNormal


def clustered(n, features, clusters, *, spread=0.2, seed=0, dtype=torch.float32):
    """Unit-norm patches (n, features) around `clusters` unit prototypes of unequal weight."""
    generator = torch.Generator().manual_seed(1000 + clusters)
    centres = torch.randn(clusters, features, generator=generator, dtype=torch.float64)
    centres = centres / centres.norm(dim=1, keepdim=True)
    scales = 0.5 + torch.rand(clusters, features, generator=generator, dtype=torch.float64)
    generator.manual_seed(seed)
    weights = 1 / torch.arange(1, clusters + 1, dtype=torch.float64)
    label = torch.multinomial(weights, n, replacement=True, generator=generator)
    noise = torch.randn(n, features, generator=generator, dtype=torch.float64)
    x = centres[label] + spread * noise * scales[label] / features**0.5
    return (x / x.norm(dim=1, keepdim=True)).to(dtype)


class Oracle:
    """State of the mixture in float64: weights (K,), means (K, D), sigma (K, D, D), alpha.

    The moving averages s (K,), m (K, D) and C (K, D, D) start at zero. Spherical covariances are
    the mean of the diagonal, diagonal ones the diagonal, of Σ_k = C_k / s_k - μ_k μ_kᵀ + ε I.
    """

    def __init__(
        self, weights, means, sigma, *, alpha, covariance, floor, schedule, rate=0.2, learn=True
    ):
        self.weights, self.means, self.sigma = (t.double().clone() for t in (weights, means, sigma))
        self.alpha = float(alpha)
        self.covariance, self.floor = covariance, floor
        self.schedule, self.rate, self.learn = schedule, rate, learn
        K, D = self.means.shape
        self.s = torch.zeros(K, dtype=torch.float64)
        self.m = torch.zeros(K, D, dtype=torch.float64)
        self.C = torch.zeros(K, D, D, dtype=torch.float64)
        self.t = 0

    def component_log_prob(self, x):
        """log N(x_n; μ_k, Σ_k): (N, D) -> (N, K)."""
        gaussians = MultivariateNormal(self.means, self.sigma, validate_args=False)
        return gaussians.log_prob(x.double()[:, None, :])

    def step(self, x):
        """E-step, moving averages, M-step; the mean log-likelihood of x before the update."""
        x = x.double()
        N, K = len(x), len(self.s)
        log_joint = self.weights.log() + self.component_log_prob(x)
        log_likelihood = log_joint.logsumexp(1)
        r = (log_joint - log_likelihood[:, None]).exp()

        self.t += 1
        gamma = {"ema": self.rate, "exp": self.t**-self.rate, "none": 1.0}[self.schedule]
        outer = x[:, :, None] * x[:, None, :]
        self.s = (1 - gamma) * self.s + gamma * r.mean(0)
        self.m = (1 - gamma) * self.m + gamma * (r[:, :, None] * x[:, None, :]).mean(0)
        weighted = r[:, :, None, None] * outer[:, None, :, :]
        self.C = (1 - gamma) * self.C + gamma * weighted.mean(0)

        there = self.s > 0  # a component without any weight keeps its parameters
        self.means[there] = self.m[there] / self.s[there, None]
        between = self.means[:, :, None] * self.means[:, None, :]
        sigma = self.C[there] / self.s[there, None, None] - between[there]
        self.sigma[there] = self._shaped(sigma)
        self._update_sticks(N, K)
        return log_likelihood.mean()

    def _shaped(self, sigma):
        D = sigma.shape[1]
        variance = sigma.diagonal(dim1=1, dim2=2)
        if self.covariance == "spherical":
            variance = variance.mean(1, keepdim=True).expand(-1, D)
        if self.covariance != "full":
            sigma = torch.diag_embed(variance)
        return sigma + self.floor * torch.eye(D, dtype=torch.float64)

    def _update_sticks(self, N, K):
        after = [float(self.s[k + 1 :].sum()) for k in range(K)]
        rest, weights, total = 1.0, [], 0.0
        for k in range(K):
            s, T = float(self.s[k]), after[k]
            v = 1.0 if k == K - 1 else min(max(s / (s + T + (self.alpha - 1) / N), 0.0), 1.0)
            weights.append(v * rest)
            rest *= 1 - v
            if k < K - 1:
                total += float(
                    torch.digamma(torch.tensor(N * (s + T) + self.alpha + 1, dtype=torch.float64))
                    - torch.digamma(torch.tensor(N * T + self.alpha, dtype=torch.float64))
                )
        self.weights = torch.tensor(weights, dtype=torch.float64)
        if self.learn and K > 1:
            self.alpha = (K - 1) / total


class SphereOracle(Oracle):
    """The same step for von Mises-Fisher components: directions (K, D) and kappa (K,).

    Bessel functions are scipy's, and κ is found by bisection of A_D(κ) = ρ.
    """

    def __init__(self, weights, means, kappa, **options):
        K, D = means.shape
        super().__init__(weights, means, torch.zeros(K, D, D), covariance="sphere", **options)
        self.kappa = kappa.double().clone()

    def component_log_prob(self, x):
        """log C_D(κ_k) + κ_k cos(x_n, μ_k): (N, D) -> (N, K)."""
        D = self.means.shape[1]
        kappa = self.kappa.numpy()
        log_bessel = np.log(ive(D / 2 - 1, kappa)) + kappa
        log_constant = (D / 2 - 1) * np.log(kappa) - D / 2 * np.log(2 * np.pi) - log_bessel
        directions = self.means / self.means.norm(dim=1, keepdim=True)
        return torch.from_numpy(log_constant) + self.kappa * (x.double() @ directions.T)

    def _shaped(self, sigma):
        D = self.means.shape[1]
        for k in torch.nonzero(self.s > 0)[:, 0].tolist():
            rho = float(self.means[k].norm())
            kappa = (D - 1) / 2 / max(1 - rho, 1e-9)  # the limit for ρ near 1, as for one patch
            if rho < 1 - 1e-7:
                kappa = bisect(lambda z, rho=rho: _resultant(D, z) - rho, 1e-9, 1e9, rtol=1e-15)
            self.kappa[k] = 1 / (1 / kappa + self.floor)
        return sigma


def _resultant(D, kappa):
    """A_D(κ)."""
    return ive(D / 2, kappa) / ive(D / 2 - 1, kappa)
