import json
import shutil

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
from test_scenes import parser_of

from monai_dpmm.app.cli import main
from monai_dpmm.errors import InputError
from monai_dpmm.study.figures.publication import write_figures

NAMES = ("cases", "components", "curves", "prototypes", "scores")


@pytest.fixture(scope="module")
def written(trained, cohort, tmp_path_factory):
    """Folder of the figures that the command draws, a comparison beside the model."""
    folder = tmp_path_factory.mktemp("figures")
    root = folder / "root"
    shutil.copytree(trained / "models", root / "models")
    score = {"auroc": 0.9, "aupr": 0.5, "milliseconds": 2.0, "megabytes": 10.0}
    trial = {"label": "DPMM", "prototypes": 5, "scores": {"cosine": score}}
    (root / "comparison").mkdir()
    (root / "comparison" / "comparison.json").write_text(json.dumps({"trials": [trial]}))
    main(["figures", str(cohort), "-f", str(root), "-o", str(folder / "out")])
    return folder / "out"


def test_one_command_draws_all_figures(written):
    expected = [f"{name}.{suffix}" for name in (*NAMES, "tradeoff") for suffix in ("pdf", "png")]
    assert sorted(path.name for path in written.iterdir()) == sorted(expected)


@pytest.mark.parametrize("name", [*NAMES, "tradeoff"])
def test_no_figure_is_blank_or_large(written, name):
    picture = matplotlib.image.imread(written / f"{name}.png")
    assert (picture[..., :3].min(-1) < 0.9).mean() > 0.01
    assert (written / f"{name}.png").stat().st_size < 1_500_000
    assert (written / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_without_training_scans_or_comparison(trained, cohort, tmp_path):
    """A data set for testing only: the patches come from its test scans, never from labels."""
    shutil.copytree(cohort / "test", tmp_path / "data" / "test")
    parser = parser_of(trained, tmp_path / "data")
    paths = write_figures(parser, tmp_path / "out", tmp_path / "nowhere.json")
    assert {path.stem for path in paths} == set(NAMES)


def test_a_data_set_without_lesions_is_refused(trained, cohort, tmp_path):
    shutil.copytree(cohort / "test", tmp_path / "data" / "test")
    for path in (tmp_path / "data" / "test" / "labels").iterdir():
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    with pytest.raises(InputError, match="must have a test scan with a lesion, got 3 without"):
        write_figures(parser_of(trained, tmp_path / "data"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_model_is_told_from_a_missing_data_set(trained, cohort, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    (tmp_path / "models" / "model.pt").unlink()
    with pytest.raises((InputError, FileNotFoundError), match=r"model\.pt: must exist"):
        write_figures(parser_of(tmp_path, cohort), tmp_path / "out")
    with pytest.raises(InputError, match="nowhere: must be a data set's folder"):
        write_figures(parser_of(trained, tmp_path / "nowhere"), tmp_path / "out")
