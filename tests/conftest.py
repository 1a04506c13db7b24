"""Fixtures of all tests. The folder of real volumes is named here and nowhere else."""

import locale
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from workflows import DEFAULTS, SMALL, run_bundle

from monai_dpmm.engines.earlier import release_folders
from monai_dpmm.study.cohort.cohort import make_demo_cohort
from monai_dpmm.transforms import foreground

_LOCALE = locale.setlocale(locale.LC_ALL)
_BESIDE = Path(__file__).parents[2] / "shared" / "data"
REAL_DATA = Path(os.environ.get("MONAI_DPMM_REAL_DATA", _BESIDE))


@pytest.fixture(scope="session")
def real_data():
    """Folder of real volumes, tests that need it are skipped where it is absent."""
    folder = REAL_DATA / "niivue"
    if not folder.is_dir():
        pytest.skip("the folder of real volumes is absent (MONAI_DPMM_REAL_DATA names it)")
    return folder


@pytest.fixture(scope="session")
def real_slices():
    """Folder of real slices with masks, tests that need it are skipped where it is absent."""
    folder = REAL_DATA / "lgg_flair" / "slices"
    if not folder.is_dir():
        pytest.skip("the folder of real slices is absent (see MONAI_DPMM_REAL_DATA)")
    return folder


@pytest.fixture(scope="session")
def cases():
    """Folder of small inputs that went wrong, tests that need it are skipped where it is absent."""
    folder = REAL_DATA / "cases"
    if not folder.is_dir():
        pytest.skip("the folder of inputs that went wrong is absent (see MONAI_DPMM_REAL_DATA)")
    return folder


def pytest_collection_modifyitems(items):
    """Tests of a model that was trained are slow, like those that are marked so."""
    for item in items:
        if {"trained", "trained_by_default"} & {*item.fixturenames}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """A small simulated cohort; leave it as it is."""
    folder = tmp_path_factory.mktemp("cohort") / "data"
    return make_demo_cohort(folder, train=3, val=2, test=3, spacing=5.0)


@pytest.fixture(scope="session")
def trained(cohort, tmp_path_factory):
    """Bundle root with a model of that cohort, trained once; leave it as it is."""
    root = tmp_path_factory.mktemp("root")
    run_bundle("training", ["train"], bundle_root=root, dataset_dir=cohort, **SMALL)
    return root


@pytest.fixture(scope="session")
def trained_by_default(cohort, tmp_path_factory):
    """Bundle root with a model of three directions, places and volumes; leave it as it is."""
    root = tmp_path_factory.mktemp("default")
    settings = DEFAULTS | {"false_positive_volumes": "[0.5,2]"}
    run_bundle("training", ["train"], bundle_root=root, dataset_dir=cohort, **settings)
    return root


@pytest.fixture(autouse=True)
def _nothing_held(request):
    """Folders that a test has taken are given back; what tests share is as it was."""
    shared = {"cohort", "trained", "trained_by_default"} & {*request.fixturenames}
    folders = [request.getfixturevalue(name) for name in shared]
    before = {folder: _listed(folder) for folder in folders}
    yield
    release_folders()
    for folder in folders:
        assert _listed(folder) == before[folder], f"{folder}: must stay as it is"


def _listed(folder):
    """Files below a folder and their sizes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder): file.stat().st_size for file in files}


@pytest.fixture(autouse=True)
def _same_locale():
    """Compiled libraries may leave the process in the C locale, whose default encoding is ASCII."""
    yield
    locale.setlocale(locale.LC_ALL, _LOCALE)


@pytest.fixture(autouse=True)
def _untold(monkeypatch):
    """What a process says once, each test hears again, whatever ran before it."""
    monkeypatch.setattr(foreground, "_told", set())


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - MONAI's transforms draw from it
