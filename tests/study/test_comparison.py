"""The comparison from scans to tables, once on a small cohort, and what it does not do twice."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from workflows import ROOT, SMALL

from monai_dpmm.app.cli import main
from monai_dpmm.errors import InputError
from monai_dpmm.study import comparison as module
from monai_dpmm.study.comparison import METHODS, compare

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

OPTIONS = SMALL | {"slice_step": 4, "max_epochs": 2}
FEW = ["k-means", "shots-1", "full"]


def parser_of(folder, done, **options):
    """Training's config, whose store lies beside the comparison's folder."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / "train.json"))
    kept = {"dataset_dir": str(folder), "embedding_dir": str(done.parent / "embeddings")}
    parser.update(OPTIONS | kept | options)
    return parser


@pytest.fixture(scope="module")
def done(cohort, tmp_path_factory):
    """Folder of a comparison by the command line, of all methods, with two seeds."""
    folder = tmp_path_factory.mktemp("bundle")
    settings = [f"{key}={json.dumps(value)}" for key, value in OPTIONS.items()]
    options = [part for setting in settings for part in ("-s", setting)]
    main(["compare", str(cohort), "-f", str(folder), "--seeds", "2", *options])
    return folder / "comparison"


@pytest.fixture
def ran(monkeypatch):
    """Methods and seeds whose trials were run."""
    trials = []
    real = module._Comparison._trial

    def trial(self, method, seed, count):
        trials.append((method.label, seed))
        return real(self, method, seed, count)

    monkeypatch.setattr(module._Comparison, "_trial", trial)
    return trials


def test_every_method_has_its_trials_and_rows(done):
    with (done / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    seeds = {name: {run["seed"] for run in runs if run["method"] == name} for name in METHODS}
    assert seeds == {name: {"0"} if m.seeds == 1 else {"0", "1"} for name, m in METHODS.items()}
    for run in runs:
        assert 0 < float(run["aupr"]) < float(run["auroc"]) <= 1
        assert float(run["milliseconds"]) > 0
        assert json.loads(run["settings"])["scores"]
        assert run["torch"]
        assert run["processor"]
    text = (done / "tables.md").read_text()
    assert all(method.label in text for method in METHODS.values() if method.unit_norm)
    assert text.count("\n## ") == 6


def test_k_means_and_the_finite_mixture_have_the_dpmms_number(done):
    def prototypes(name, seed):
        return json.loads((done / "trials" / f"{name}-{seed}.json").read_text())["prototypes"]

    for seed in (0, 1):
        assert prototypes("k-means", seed) == prototypes("dpmm", seed)
        assert prototypes("gaussian-mixture", seed) <= prototypes("dpmm", seed)
    assert prototypes("coreset-150", 0) == 150


def test_a_trial_that_is_there_is_not_run_again(cohort, done, ran):
    before = [json.loads(p.read_text()) for p in sorted((done / "trials").iterdir())]
    records = compare(parser_of(cohort, done), done, seeds=2, methods=FEW)
    assert not ran
    assert [(r["method"], r["seed"]) for r in records] == [
        *(("dpmm", 0), ("dpmm", 1), ("full", 0)),
        *(("shots-1", 0), ("shots-1", 1), ("k-means", 0), ("k-means", 1)),
    ]
    assert all(record in before for record in records)


def test_an_interrupted_comparison_goes_on_and_gives_the_same(cohort, done, ran, tmp_path):
    shutil.copytree(done, tmp_path / "copy")
    before = json.loads((done / "trials" / "shots-1-1.json").read_text())
    (tmp_path / "copy" / "trials" / "shots-1-1.json").unlink()
    records = compare(parser_of(cohort, done), tmp_path / "copy", seeds=2, methods=["shots-1"])
    assert ran == [("bank of 1 slice", 1)]
    assert records[-1]["scores"]["cosine"]["images"] == before["scores"]["cosine"]["images"]
    assert records[-1]["scores"]["cosine"]["auroc"] == before["scores"]["cosine"]["auroc"]


def test_other_settings_run_what_they_change(cohort, done, ran, tmp_path):
    shutil.copytree(done, tmp_path / "copy")
    methods = ["shots-1", "k-means"]
    compare(parser_of(cohort, done, components=20), tmp_path / "copy", seeds=1, methods=methods)
    assert ran == [("DPMM", 0), ("k-means", 0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"methods": ["dpmm", "flow"]}, "methods must be among dpmm, .*, got 'flow'"),
    ],
)
def test_wrong_arguments(options, message, cohort, tmp_path):
    with pytest.raises(ValueError, match=message):
        compare(parser_of(cohort, tmp_path), tmp_path, **options)


def test_a_missing_package_is_named(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs scipy: pip install 'monai-dpmm\[evaluation\]'"):
        compare(parser_of(cohort, tmp_path), tmp_path)


def test_what_the_data_do_not_allow(cohort, done, monkeypatch, capsys):
    big = {"coreset-1024": METHODS["coreset-1024"]._replace(patches=10**9)}
    monkeypatch.setattr(module, "METHODS", METHODS | big)
    with pytest.raises(InputError, match="coreset-1024 needs 1000000000 healthy patches"):
        compare(parser_of(cohort, done), done, seeds=2, methods=["coreset-1024"])
    records = compare(parser_of(cohort, done), done, seeds=2)
    assert "coreset-1024" not in {record["method"] for record in records}
    assert "coreset-1024 is left out: it needs 1000000000" in capsys.readouterr().out


def test_padim_needs_one_grid_and_few_shots_their_slices(cohort, done):
    dataset = module.embedded_dataset(parser_of(cohort, done))
    comparison = module._Comparison(parser_of(cohort, done), dataset, done / "trials", 1)
    assert comparison._obstacle(METHODS["padim"]) is None
    comparison.val[0] = comparison.val[0][1:]
    assert "slices of one patch grid, got [" in comparison._obstacle(METHODS["padim"])
    comparison.train = comparison.train[:15]
    needed = comparison._obstacle(METHODS["shots-16"])
    assert needed == "16 healthy slices to train on, got 15"


def test_test_scans_without_a_lesion_are_refused(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "data")
    for path in (tmp_path / "data/test/labels").iterdir():
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    with pytest.raises(InputError, match="must have test scans with lesions, got none"):
        compare(parser_of(tmp_path / "data", tmp_path / "comparison"), tmp_path / "comparison")
