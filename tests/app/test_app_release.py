"""Wheel and sdist hold what a release needs and nothing else; versions are the same everywhere."""

import configparser
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import monai_dpmm

ROOT = Path(__file__).parents[2]
VERSION = monai_dpmm.__version__
METADATA = json.loads((ROOT / "configs/metadata.json").read_text())


def pinned():
    """Versions of constraints.txt by name."""
    lines = (ROOT / "constraints.txt").read_text().split()
    return {name.lower(): version for name, version in (line.split("==") for line in lines)}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Folder with sdist and the wheel that is built from it, by what is installed."""
    folder = tmp_path_factory.mktemp("release")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(release):
    with zipfile.ZipFile(release / f"monai_dpmm-{VERSION}-py3-none-any.whl") as archive:
        yield archive


def tree(folder, pattern="*"):
    """Files below a folder of the checkout, as paths relative to it."""
    files = (path for path in folder.rglob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix() for path in files}


def test_the_wheel_holds_modules_configs_documents_and_nothing_else(wheel):
    package = {name for name in tree(ROOT / "monai_dpmm") if "__pycache__" not in name}
    assert {"report/templates/report.html", "__init__.pyi", "py.typed"} <= package
    modules = {f"monai_dpmm/{name}" for name in package}
    documents = {f"monai_dpmm/bundle/{name}" for name in tree(ROOT / "bundle")}
    configs = {f"monai_dpmm/bundle/configs/{name}" for name in tree(ROOT / "configs")}
    about = f"monai_dpmm-{VERSION}.dist-info"
    names = {name for name in wheel.namelist() if not name.startswith(f"{about}/")}
    assert names == modules | documents | configs
    assert f"{about}/licenses/LICENSE" in wheel.namelist()


def test_the_wheel_tells_its_version_and_its_command(wheel):
    about = f"monai_dpmm-{VERSION}.dist-info"
    metadata = wheel.read(f"{about}/METADATA").decode().splitlines()
    assert f"Version: {VERSION}" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(f"{about}/entry_points.txt").decode())
    assert scripts["console_scripts"]["monai-dpmm"] == "monai_dpmm.app.cli:main"


@pytest.mark.slow
def test_the_unpacked_wheel_finds_its_configs_and_documents(wheel, trained, tmp_path):
    wheel.extractall(tmp_path / "site")
    code = (
        "import sys; from pathlib import Path; import monai_dpmm\n"
        "print(monai_dpmm.__file__, monai_dpmm.write_bundle('heads', sys.argv[1]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(trained)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split() == [
        str(tmp_path / "site/monai_dpmm/__init__.py"),
        str(tmp_path / "heads"),
    ], result.stderr
    assert tree(tmp_path / "heads/docs") == tree(ROOT / "bundle/docs")
    configs = tree(tmp_path / "heads/configs")
    assert {"train.json", "inference.json", "metadata.json"} <= configs < tree(ROOT / "configs")


def test_the_sdist_builds_and_tests_the_package(release):
    prefix = f"monai_dpmm-{VERSION}/"
    with tarfile.open(release / f"monai_dpmm-{VERSION}.tar.gz") as archive:
        names = {name.removeprefix(prefix) for name in archive.getnames()}
    for folder in ("monai_dpmm", "configs", "bundle", "tests"):
        files = {f"{folder}/{name}" for name in tree(ROOT / folder) if "__pycache__" not in name}
        assert files <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "constraints.txt"} <= names
    assert "lowest.txt" in names
    grown = ("models/", "output/", "demo/", "data/", "dist/", ".git/", ".venv/")
    assert not [name for name in names if name.startswith(grown) or "__pycache__" in name]


def test_the_metadata_names_the_versions_of_the_constraints():
    named = {
        "monai": METADATA["monai_version"],
        "torch": METADATA["pytorch_version"],
        "numpy": METADATA["numpy_version"],
        **METADATA["required_packages_version"],
    }
    assert named.pop("monai-dpmm") == VERSION
    pins = pinned()
    assert named == {name: pins.get(name.lower()) for name in named}


def test_the_lowest_versions_that_ci_tries_are_those_that_the_package_allows():
    lines = (ROOT / "lowest.txt").read_text().splitlines()
    tried = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {}
    for text in project["dependencies"] + project["optional-dependencies"]["demo"]:
        needed = Requirement(text)
        (bound,) = needed.specifier
        bounds[needed.name.lower()] = bound.version
    assert bounds.keys() - tried.keys() == {"torch"}  # see there
    for name, version in bounds.items():
        assert name == "torch" or Version(tried[name]) == Version(version), name


def test_the_changelogs_tell_of_this_version():
    headings = [
        line.removeprefix("## ").split(",")[0]
        for line in (ROOT / "CHANGELOG.md").read_text().splitlines()
        if line.startswith("## ")
    ]
    assert headings[0] == METADATA["version"] == next(iter(METADATA["changelog"])) == VERSION
    assert METADATA["changelog"].keys() == set(headings)
