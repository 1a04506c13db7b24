import json
import shutil

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from workflows import run_bundle

from monai_dpmm.app.cli import configs_dir, main
from monai_dpmm.errors import InputError, expected_error
from monai_dpmm.study.figures.publication import write_figures

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

NAMES = ("cases", "components", "curves", "prototypes", "scores")


def parser_of(root, dataset, **overrides):
    """What the command reads: inference and the model's own settings."""
    parser = ConfigParser()
    names = [configs_dir() / "inference.json", root / "models/model.json"]
    parser.read_config([str(name) for name in names])
    parser.update({"bundle_root": str(root), "dataset_dir": str(dataset), **overrides})
    return parser


@pytest.fixture(scope="module")
def evaluated(trained, cohort, tmp_path_factory):
    """Bundle root with the results of an evaluation, and a comparison beside the model."""
    root = tmp_path_factory.mktemp("figures") / "root"
    shutil.copytree(trained / "models", root / "models")
    configs = ["inference", str(root / "models/model.json"), "evaluate"]
    run_bundle("run", configs, bundle_root=root, dataset_dir=cohort)
    score = {"auroc": 0.9, "aupr": 0.5, "milliseconds": 2.0, "megabytes": 10.0}
    trial = {"label": "DPMM", "prototypes": 5, "scores": {"cosine": score}}
    (root / "comparison").mkdir()
    (root / "comparison" / "comparison.json").write_text(json.dumps({"trials": [trial]}))
    return root


@pytest.fixture(scope="module")
def written(evaluated, cohort, tmp_path_factory):
    """Folder of the figures that the command draws."""
    folder = tmp_path_factory.mktemp("figures") / "out"
    main(["figures", str(cohort), "-f", str(evaluated), "-o", str(folder)])
    return folder


def test_one_command_draws_all_figures(written):
    expected = [f"{name}.{suffix}" for name in (*NAMES, "tradeoff") for suffix in ("pdf", "png")]
    assert sorted(path.name for path in written.iterdir()) == sorted(expected)


@pytest.mark.parametrize("name", [*NAMES, "tradeoff"])
def test_no_figure_is_blank_or_large(written, name):
    picture = matplotlib.image.imread(written / f"{name}.png")
    assert (picture[..., :3].min(-1) < 0.9).mean() > 0.01
    assert (written / f"{name}.png").stat().st_size < 1_500_000
    assert (written / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_without_a_comparison(evaluated, cohort, tmp_path):
    paths = write_figures(parser_of(evaluated, cohort), tmp_path / "out", tmp_path / "nowhere.json")
    assert {path.stem for path in paths} == set(NAMES)


def test_cases_have_the_metrics_of_the_evaluation(evaluated, cohort, tmp_path, monkeypatch):
    report = json.loads((evaluated / "output/report/metrics.json").read_text())
    auprs = [s["metrics"]["aupr"] for s in report["subjects"] if s["metrics"]["anomalous"]]
    shown = []

    def case_figure(cases, threshold):
        shown.extend(case.quality for case in cases)
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_dpmm.study.figures.publication.case_figure", case_figure)
    with pytest.raises(KeyboardInterrupt):
        write_figures(parser_of(evaluated, cohort), tmp_path / "out")
    assert [text.split(",")[0] for text in shown] == [f"AUPR {a:.2f}" for a in sorted(auprs)[::-1]]


def test_a_data_set_without_lesions_is_refused(evaluated, cohort, tmp_path):
    shutil.copytree(cohort / "test", tmp_path / "data" / "test")
    for path in (tmp_path / "data" / "test" / "labels").iterdir():
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    with pytest.raises(InputError, match="must have a test scan with a lesion, got 3 without"):
        write_figures(parser_of(evaluated, tmp_path / "data"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_told_in_one_line(evaluated, trained, cohort, tmp_path):
    with pytest.raises(InputError, match=r"output: must hold .* run `monai-dpmm evaluate` first"):
        write_figures(parser_of(trained, cohort), tmp_path / "out")
    shutil.copytree(evaluated / "models", tmp_path / "models")
    (tmp_path / "models" / "model.pt").unlink()
    parser = parser_of(tmp_path, cohort, output_dir=str(evaluated / "output"))
    with pytest.raises(RuntimeError) as caught:  # MONAI's, of the network that cannot be made
        write_figures(parser, tmp_path / "out")
    assert "model.pt: must exist" in str(expected_error(caught.value))
    with pytest.raises(InputError, match="nowhere: must be a data set's folder"):
        write_figures(parser_of(evaluated, tmp_path / "nowhere"), tmp_path / "out")
