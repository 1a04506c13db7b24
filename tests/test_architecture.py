"""The code holds to its own rules: imports flow one way, the core knows no MONAI."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from monai.transforms import Transform

import monai_dpmm

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "monai_dpmm"

# Each module may import the modules above it, as the README's architecture section draws them.
ORDER = [
    *(
        "tensor_files",
        "json_files",
        "whole_files",
        "geometry",
        "intensity",
        "calibration",
        "covariance",
        "von_mises_fisher",
    ),
    *(
        "em",
        "initialization",
        "precision",
        "scores",
        "mixture",
        "adaptation",
        "merging",
        "distributed",
        "areas",
        "streaming",
        "bootstrap",
        "coreset",
        "memory_bank",
        "padim",
    ),
    *("dinov2", "checkpoints", "backbones", "detector", "weights"),
    "estimator",
    *(
        "errors",
        "dicom_series",
        "text_headers",
        "loading",
        "label_loading",
        "layouts",
        "inferer",
        "metatensors",
        "transforms",
        "foreground",
        "bias_field",
    ),
    *("dictionary", "labels", "serving"),
    *("volume_calibration", "scan_check", "scan_handlers"),
    *("scans", "data", "dataset_check", "engines", "handlers", "refusals", "regions"),
    *("output_formats", "dicom_output", "findings"),
    *("lesion_metrics", "image_metrics", "protocols", "metrics"),
    *("warm_start", "baselines"),
    *("lesions", "phantom", "cohort"),
    *("display", "subjects", "environment", "panels", "figures", "curves"),
    *("viewer", "page", "report"),
    *("embeddings", "trials", "comparison", "significance", "tables", "paper_tables"),
    *("paper_style", "score_figures", "prototype_colors", "cases", "galleries", "scenes"),
    *("atlas", "publication"),
    *("saved_maps", "scoring", "reporting", "saved_results", "model_card", "bundle_folder"),
    *("timing", "benchmark", "settings", "workflows", "costs", "completion"),
    *("cli_options", "cli_commands", "cli_parser", "cli", "__main__"),
]
CORE = ORDER[: ORDER.index("weights") + 1]
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
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_flow_one_way(module):
    own = [name.split(".")[1] for name in _imports(module) if name.startswith("monai_dpmm.")]
    later = [name for name in own if ORDER.index(name) >= ORDER.index(module)]
    assert not later


@pytest.mark.parametrize("module", CORE)
def test_the_core_knows_torch_but_neither_monai_nor_ignite(module):
    assert not [n for n in _imports(module) if n.split(".")[0] in ("monai", "ignite")]


def test_public_names_are_exported():
    for name in monai_dpmm.__all__:
        assert getattr(monai_dpmm, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = monai_dpmm.Nothing


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
