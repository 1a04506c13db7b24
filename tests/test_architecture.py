"""The code holds to its own rules: imports flow one way, the core knows no MONAI."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from monai.transforms import Transform

import monai_dpmm

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "monai_dpmm"
LONGEST = 300  # lines

# A room may import itself and the rooms named here; `files` and `errors` are the ground.
ROOMS = {
    "files": {"errors", "writing"},
    "writing": {"errors"},
    "errors": set(),
    "mixture": {"files", "errors"},
    "network": {"files", "errors", "mixture"},
    "io": {"files", "errors"},
    "transforms": {"files", "errors", "mixture", "network", "io"},
    "engines": {"files", "errors", "mixture", "network", "io", "transforms"},
    "metrics": {"files", "errors", "mixture", "network", "io", "transforms", "engines"},
}
ROOMS["report"] = {*ROOMS["metrics"], "metrics"}
ROOMS["study"] = {*ROOMS["report"], "report"}
ROOMS["app"] = {*ROOMS["study"], "study"}
# What a room must not know, whoever imports it.
FORBIDDEN = {
    "files": {"monai", "ignite", "nibabel"},
    "errors": {"ignite", "nibabel", "torch"},
    "mixture": {"monai", "ignite", "nibabel", "transformers"},
    "network": {"monai", "ignite", "nibabel"},
    "io": {"ignite"},
    "transforms": {"ignite"},
    "report": {"torch.nn"},
}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.parent != PACKAGE or not path.name.startswith("__")
)
LOADED = """
import json, sys
import monai, monai_dpmm
heavy = json.loads(sys.argv[1])
for name in list(sys.modules):
    if name.split(".")[0] in heavy:
        del sys.modules[name]
for name in sys.argv[2:]:
    getattr(monai_dpmm, name)
print(json.dumps([name for name in heavy if name in sys.modules]))
monai_dpmm.AnomalyMetrics
print(json.dumps([name for name in heavy if name in sys.modules]))
"""


def _imports(module):
    """Names of all modules that a module imports, also inside functions."""
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(name):
    return name.removeprefix("monai_dpmm.").partition(".")[0]


def test_every_module_lives_in_a_room():
    assert {_room(module) for module in MODULES} == set(ROOMS)
    assert len(list(PACKAGE.glob("*.py"))) <= 6


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_the_rooms_below_it(module):
    own = {_room(n) for n in _imports(module) if n.startswith("monai_dpmm.")}
    room = _room(module)
    assert own - {room, "__version__"} <= ROOMS[room]


@pytest.mark.parametrize("module", MODULES)
def test_a_room_knows_only_the_packages_that_it_may(module):
    names = set(_imports(module))
    for package in FORBIDDEN.get(_room(module), ()):
        assert not [n for n in names if f"{n}.".startswith(f"{package}.")]


def test_modules_do_not_import_each_other_in_a_circle():
    known = {f"monai_dpmm.{module.removesuffix('.__init__')}" for module in MODULES}

    def own(module):
        for name in _imports(module.removeprefix("monai_dpmm.")):
            yield from {name, name.rpartition(".")[0]} & known - {module}

    graph = {
        m: set(own(m)) for m in known if (PACKAGE.parent / f"{m.replace('.', '/')}.py").is_file()
    }
    while free := {m for m, above in graph.items() if not above & graph.keys()}:
        graph = {m: above for m, above in graph.items() if m not in free}
    assert not graph


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_one_idea(module):
    assert len((PACKAGE / f"{module.replace('.', '/')}.py").read_text().splitlines()) <= LONGEST


def test_public_names_are_exported():
    for name in monai_dpmm.__all__:
        assert getattr(monai_dpmm, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = monai_dpmm.Nothing


def test_dictionary_transforms_have_the_aliases_that_monai_gives_them():
    assert monai_dpmm.LoadVolumeD is monai_dpmm.LoadVolumeDict is monai_dpmm.LoadVolumed
    assert "LoadVolumeD" not in monai_dpmm.__all__
    with pytest.raises(AttributeError, match="DatalistD"):
        _ = monai_dpmm.DatalistD


@pytest.mark.parametrize("name", sorted(monai_dpmm._DEPRECATED_HOMES))
def test_names_that_are_no_longer_public_say_where_they_are(name):
    with pytest.warns(DeprecationWarning, match=rf"{name}.*import it from monai_dpmm\."):
        assert getattr(monai_dpmm, name) is not None


@pytest.mark.slow
def test_type_checkers_see_the_public_names(tmp_path):
    """A user's own code is checked against our signatures."""
    code = "import monai_dpmm\nmonai_dpmm.DPMM(384, components='many')\nmonai_dpmm.Nothing\n"
    (tmp_path / "user.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--follow-imports=silent"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    result = subprocess.run(
        [*command, "user.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "user.py:2" in result.stdout
    assert 'expected "int"' in result.stdout
    assert "user.py:3" in result.stdout


def test_without_scikit_learn_all_that_is_listed_can_be_imported(monkeypatch):
    """MONAI's configs get every attribute of the package that `dir` lists."""
    assert "DirichletProcessMixture" in dir(monai_dpmm)
    monkeypatch.setattr(monai_dpmm, "find_spec", lambda name: None)
    assert set(monai_dpmm.__all__) - set(dir(monai_dpmm)) == {"DirichletProcessMixture"}


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, json, monai_dpmm; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(json.loads(result.stdout))
    assert not loaded & {"torch", "monai", "transformers", "matplotlib", "nilearn", "torchmetrics"}


@pytest.mark.slow
def test_importing_the_public_transforms_imports_nothing_heavy():
    """Beside what `import monai` does: it loads some of these itself, where they are installed."""
    names = [name for name in monai_dpmm.__all__ if _is_transform(getattr(monai_dpmm, name))]
    assert {"EmbedPatches", "EmbedPatchesd", "LoadVolumed", "CheckScand"} <= set(names)
    heavy = ("matplotlib", "nilearn", "pandas", "sklearn", "torchmetrics", "transformers")
    command = [sys.executable, "-c", LOADED, json.dumps(heavy), *names]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    by_transforms, by_metrics = map(json.loads, result.stdout.splitlines()[-2:])
    assert by_transforms == []
    assert "torchmetrics" in by_metrics  # it would be seen


def _is_transform(value):
    return isinstance(value, type) and issubclass(value, Transform)


def test_the_version_is_one():
    metadata = json.loads((ROOT / "configs/metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert metadata["version"] == monai_dpmm.__version__
    assert f"version: {monai_dpmm.__version__}\n" in (ROOT / "CITATION.cff").read_text()
