"""Small mixtures fitted to clustered patches, D = 8 and K = 12."""

import torch
from oracle import clustered

from monai_dpmm.mixture.dpmm import DPMM

D, K = 8, 12


def sigma_of(model):
    """Covariance matrices (K, D, D) of a mixture."""
    if hasattr(model.covariance, "cholesky"):
        return model.covariance.covariance
    variance = model.covariance.variance.reshape(model.components, -1)
    return torch.diag_embed(variance.expand(-1, model.features))


def batches(n=256, count=4, dtype=torch.float64, spread=0.3):
    return [clustered(n, D, 6, spread=spread, seed=i, dtype=dtype) for i in range(count)]


def started(x, **options):
    """A mixture of x's dtype, started from x."""
    options = {"components": K, **options}
    model = DPMM(x.shape[1], **options).to(x.dtype)
    model.initialize(x)
    return model


def fitted(x, steps=5, **options):
    model = started(x, **options)
    for _ in range(steps):
        model.step(x)
    return model
