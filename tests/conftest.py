"""Fixtures of all tests. The folder of real volumes is named here and nowhere else."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

_BESIDE = Path(__file__).parents[2] / "shared" / "data"
REAL_DATA = Path(os.environ.get("MONAI_DPMM_REAL_DATA", _BESIDE))


@pytest.fixture(scope="session")
def real_data():
    """Folder of real volumes, tests that need it are skipped where it is absent."""
    folder = REAL_DATA / "niivue"
    if not folder.is_dir():
        pytest.skip("the folder of real volumes is absent (MONAI_DPMM_REAL_DATA names it)")
    return folder


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - MONAI's transforms draw from it
