"""A trained model becomes a bundle folder that needs nothing else."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import nibabel as nib
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from workflows import ROOT

from monai_dpmm.app.cli import main
from monai_dpmm.app.model_card import model_card
from monai_dpmm.app.release import update_bundle, write_bundle
from monai_dpmm.app.settings import BESIDE, CALIBRATED

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

NO_NETWORK = """
import socket

def refuse(*args, **kwargs):
    raise OSError("no network here")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""
# as `python -m` does, one after the other, without importing everything anew
RUN_ALL = """
import json, runpy, sys

sys.path.insert(0, ".")
for module, *words in json.loads(sys.argv[1]):
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
SECTIONS = [
    *("# heads", "## Data", "## Training configuration", "### Input", "### Output"),
    *("### Settings", "## Performance", "## MONAI Bundle Commands", "## Limits"),
    *("## Not for clinical use", "## References", "## License"),
]


def commands(bundle, **places):
    """Commands of a bundle's README, with real folders in place of its words for them."""
    blocks = re.findall(r"```bash\n(.*?)```", (bundle / "docs/README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [[str(places.get(word, word)) for word in shlex.split(line)] for line in lines]


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundles") / "heads", trained)


def test_the_folder_is_a_bundle_and_appears_complete(bundle):
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", "large_files.yml"):
        assert (bundle / name).is_file()
    for name in ("metadata.json", "inference.json", "train.json", "evaluate.json", "logging.conf"):
        assert (bundle / "configs" / name).is_file()
    assert len(list((bundle / "configs").glob("*.json"))) <= 8
    assert json.loads((bundle / "configs/metadata.json").read_text())["name"] == "Heads"
    card = (bundle / "docs/README.md").read_text()
    assert (bundle / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")
    assert (bundle / "README.md").read_text().endswith(f"---\n\n{card}")
    assert sorted(p.name for p in (bundle / "models").iterdir()) == ["model.json", "model.pt"]
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["heads", "heads.zip"]


def test_the_checksums_are_those_of_all_files(bundle):
    lines = [line.split("  ") for line in (bundle / "SHA256SUMS").read_text().splitlines()]
    listed = {name: digest for digest, name in lines}
    files = {p.relative_to(bundle).as_posix(): p for p in bundle.rglob("*") if p.is_file()}
    assert files.pop("SHA256SUMS").is_file()
    assert listed == {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in files.items()}


def test_the_zip_holds_the_folder_and_nothing_beside_it(bundle):
    with zipfile.ZipFile(bundle.with_suffix(".zip")) as archive:
        assert archive.testzip() is None
        names = [name for name in archive.namelist() if not name.endswith("/")]
        files = {f"heads/{p.relative_to(bundle).as_posix()}" for p in bundle.rglob("*.*")}
        assert files - {f"heads/{n}" for n in ("models", "docs", "configs")} <= set(names)
        assert all(n.startswith("heads/") and ".." not in n.split("/") for n in names)
        for name in names:
            assert archive.read(name) == (bundle.parent / name).read_bytes()


def test_the_readmes_commands_run_in_the_unpacked_zip_without_network(bundle, cohort, tmp_path):
    """In a process in which whatever opens a connection fails."""
    shutil.unpack_archive(bundle.with_suffix(".zip"), tmp_path)
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    unpacked = tmp_path / "heads"
    scan = next((cohort / "test/images").iterdir())
    check, *others = sorted(
        commands(bundle, SCANS=scan, LABELLED=cohort, HEALTHY=cohort / "train"),
        key=lambda words: words[0] == "python",
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    options = {"cwd": unpacked, "env": environment, "capture_output": True, "text": True}
    assert check == ["sha256sum", "-c", "SHA256SUMS"]
    assert subprocess.run(check, **options).returncode == 0
    assert {words[1] for words in others} == {"-m"}
    trained = (unpacked / "models/model.pt").read_bytes()
    words = json.dumps([words[2:] for words in others])
    result = subprocess.run([sys.executable, "-c", RUN_ALL, words], **options)
    assert result.returncode == 0, result.stderr
    (heat_map,) = (unpacked / "output").glob(f"{scan.name.split('.')[0]}/*_anomaly.nii.gz")
    assert nib.load(heat_map).shape == nib.load(scan).shape
    report = json.loads((unpacked / "output/report/metrics.json").read_text())
    assert 0.5 < report["metrics"]["pixel_auroc"] <= 1
    assert torch.jit.load(unpacked / "model.ts")(torch.rand(1, 1, 50, 70)).shape == (1, 1, 50, 70)
    assert (unpacked / "new/model.pt").is_file()
    assert (unpacked / "models/model.pt").read_bytes() == trained
    online = [sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"]
    assert "no network here" in subprocess.run(online, **options).stderr


def test_the_readme_is_one_document_in_the_zoos_order(bundle):
    text = re.sub("```.*?```", "", (bundle / "docs/README.md").read_text(), flags=re.DOTALL)
    assert re.findall("^#+ .*$", text, re.MULTILINE) == SECTIONS
    assert "$" not in text
    assert "unknown" not in text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "the template must have places for data, .*, weights, got none"),
        ("$name $price", "the template must have places for data, .*, got name, price"),
        ("$name costs $ 3", r"the template must have places for data, .*, got \$, name"),
    ],
)
def test_a_template_of_other_places_is_refused(trained, template, message):
    with pytest.raises(ValueError, match=message):
        model_card(trained / "models/model.pt", template, name="b")


def test_text_of_others_stays_text_in_the_card(trained, tmp_path):
    bundle = write_bundle(tmp_path / "<i>$name", trained, data="Heads\n## <b>")
    card = (bundle / "docs/README.md").read_text().splitlines()
    assert card[0] == "# &lt;i&gt;$name"
    assert "Heads ## &lt;b&gt;" in card


@pytest.mark.parametrize(
    ("architecture", "score", "needed", "foreign", "value_range"),
    [
        ("dinov2_vits14", "cosine", "transformers", "efficientnet-lite-pytorch", [0, 2]),
        ("dinov3_vits16", "mixture", "transformers", "efficientnet-lite-pytorch", []),
        ("efficientnet_lite0", "cosine", "efficientnet-lite-pytorch", "transformers", [0, 2]),
    ],
)
def test_the_metadata_is_that_of_the_model(
    trained, tmp_path, architecture, score, needed, foreign, value_range
):
    (tmp_path / "models").mkdir()
    shutil.copy(trained / "models/model.pt", tmp_path / "models")
    settings = json.loads((trained / "models/model.json").read_text())
    settings |= {"backbone_architecture": architecture, "score": score}
    (tmp_path / "models/model.json").write_text(json.dumps(settings))
    bundle = write_bundle(tmp_path / "b", tmp_path)
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    whole = json.loads((ROOT / "configs/metadata.json").read_text())["required_packages_version"]
    assert metadata["required_packages_version"].keys() == whole.keys() - {foreign}
    assert needed in metadata["required_packages_version"]
    assert metadata["network_data_format"]["outputs"]["pred"]["value_range"] == value_range


def test_the_card_tells_of_this_very_model(trained, tmp_path):
    measured = tmp_path / "metrics.json"
    metrics = {"pixel_auroc": 0.75, "pixel_aupr": 0.5, "image_auroc": 1, "protocol": "native"}
    measured.write_text(json.dumps({"metrics": metrics}))
    bundle = write_bundle(
        tmp_path / "b", trained, data="Ten heads of volunteers.", metrics=measured
    )
    card = (bundle / "docs/README.md").read_text()
    state = torch.load(bundle / "models/model.pt", weights_only=True)
    for line in (
        "Ten heads of volunteers.",
        "| pixel_auroc | 0.7500 |",
        "| backbone_architecture | efficientnet_lite0 |",
        f"| threshold at 1% false positives | {state['thresholds'][0]:.4g} |",
    ):
        assert line in card.splitlines()
    assert f"Mixture: {len(state['mixture.offsets'])} components, diagonal." in card
    assert "brings their shorter side to 96 pixels" in card
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    assert metadata["eval_metrics"] == {"pixel_aupr": 0.5, "image_auroc": 1}
    assert metadata["data_source"] == "Ten heads of volunteers."


def test_the_card_does_not_invent(bundle):
    card = (bundle / "docs/README.md").read_text()
    assert "Not given when this bundle was built." in card.splitlines()
    assert "Not measured when this bundle was built." in card.splitlines()
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    assert metadata["eval_metrics"] == {}
    assert metadata["data_source"] == "not given"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "m.json: must exist, there is no such file"),
        ("{", "m.json: must be the metrics.json of an evaluation"),
        ("[]", "m.json: must be the metrics.json of an evaluation"),
        ('{"metrics": {}}', "m.json: must hold metrics, got none"),
    ],
)
def test_metrics_that_are_none_are_refused(trained, tmp_path, text, message):
    file = tmp_path / "m.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        write_bundle(tmp_path / "b", trained, metrics=file)
    assert not (tmp_path / "b").exists()


def test_both_configs_hold_the_models_settings(bundle):
    settings = json.loads((bundle / "models/model.json").read_text())
    for name in ("inference", "train"):
        config = ConfigParser.load_config_file(bundle / f"configs/{name}.json")
        own = [key for key in settings if key not in BESIDE]  # which are read when needed
        assert {key: config[key] for key in own} == {key: settings[key] for key in own}


def test_inference_needs_no_overlay_and_reads_what_the_server_reads(bundle):
    """MONAI Label reads inference.json alone, without metadata and without `initialize`."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs/inference.json")
    parser.config["bundle_root"] = str(bundle)
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True))
    assert torch.isfinite(network.thresholds).all()
    options = parser.get_parsed_content("displayable_configs")
    assert options == {
        "output": ["mask", "levels"],
        "false_positive_rate": ["default", "0.01", "0.05", "0.1"],
    }
    postprocessing = parser.get_parsed_content("postprocessing")
    assert type(postprocessing.transforms[-1]).__name__ == "AnswerRequestd"


def test_card_configs_and_checksums_follow_a_training_in_the_folder(bundle, cohort, tmp_path):
    shutil.copytree(bundle, tmp_path / "heads", ignore=shutil.ignore_patterns("output"))
    folder = tmp_path / "heads"
    digests = (folder / "SHA256SUMS").read_text()
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file"]
    options = ["--dataset_dir", cohort, "--components", 30, "--max_epochs", 2]
    command += ["configs/train.json", *options]
    subprocess.run(list(map(str, command)), cwd=folder, check=True, capture_output=True)
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True)
    assert check.returncode == 0, check.stdout
    assert (folder / "SHA256SUMS").read_text() != digests
    card = (folder / "docs/README.md").read_text()
    assert "Mixture: 30 components" in card
    assert "trained further on scans of the folder's user" in card
    assert "Not measured when this bundle was built." in card
    assert json.loads((folder / "configs/metadata.json").read_text())["eval_metrics"] == {}
    config = json.loads((folder / "configs/inference.json").read_text())
    assert config["components"] == 30
    assert config["released"].keys() == {*CALIBRATED}
    update_bundle(folder, tmp_path / "elsewhere")  # whose model is none of the bundle's
    assert (folder / "docs/README.md").read_text() == card


def test_a_training_in_the_folder_takes_calibrations_back(trained, tmp_path):
    (tmp_path / "models").mkdir()
    shutil.copy(trained / "models/model.pt", tmp_path / "models")
    settings = json.loads((trained / "models/model.json").read_text())
    settings = {key: value for key, value in settings.items() if key not in CALIBRATED}
    calibrated = settings | {"volume_thresholds": [{"ml": 1}], "scan_reference": {"usage": []}}
    (tmp_path / "models/model.json").write_text(json.dumps(calibrated))
    bundle = write_bundle(tmp_path / "heads", tmp_path)

    def calibrations():
        parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs/inference.json"))
        parser["bundle_root"] = str(bundle)
        names = ("volume_thresholds", "scan_reference")
        return [parser.get_parsed_content(name) for name in names]

    assert calibrations() == [[{"ml": 1}], {"usage": []}]
    (bundle / "models/model.json").write_text(json.dumps(settings))  # what a training writes
    assert calibrations() == [[], None]
    assert "volume_thresholds" not in json.loads((bundle / "configs/train.json").read_text())


def test_training_goes_on_with_the_models_own_backbone(bundle, cohort):
    workflow = ConfigWorkflow(
        str(bundle / "configs/train.json"),
        workflow_type="train",
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(cohort),
    )
    workflow.initialize()
    backbone = workflow.parser.get_parsed_content("backbone").state_dict()
    saved = torch.load(bundle / "models/model.pt", weights_only=True)
    assert all(torch.equal(value, saved[f"backbone.{key}"]) for key, value in backbone.items())


def test_the_command_writes_it_too(trained, tmp_path, capsys):
    main(["bundle", str(tmp_path / "a/b"), "-f", str(trained)])
    assert (tmp_path / "a/b/models/model.pt").is_file()
    assert str(tmp_path / "a/b") in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["tumour_detection", "Classification2", "deepedit_brain", "x_deepgrow"]
)
def test_a_name_that_a_server_would_misread_is_refused(trained, tmp_path, name):
    with pytest.raises(ValueError, match="the bundle's name must not contain"):
        write_bundle(tmp_path / name, trained)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_touched(trained, tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(FileExistsError, match="b: must be new, it exists already"):
        write_bundle(tmp_path / "b", trained)
    assert not list((tmp_path / "b").iterdir())
    (tmp_path / "c.zip").touch()
    with pytest.raises(FileExistsError, match=r"c\.zip: must be new, it exists already"):
        write_bundle(tmp_path / "c", trained)


def test_no_model_ends_the_command_in_one_line(tmp_path):
    command = [sys.executable, "-m", "monai_dpmm", "bundle", str(tmp_path / "b"), "-f"]
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "models/model.pt: must exist, there is no such file (train a model first)" in line
    assert not list(tmp_path.iterdir())


def test_settings_of_another_version_are_refused_and_nothing_is_left(trained, tmp_path):
    (tmp_path / "models").mkdir()
    settings = json.loads((trained / "models/model.json").read_text())
    (tmp_path / "models/model.json").write_text(json.dumps({**settings, "prototypes": 3}))
    shutil.copy(trained / "models/model.pt", tmp_path / "models")
    with pytest.raises(ValueError, match=r"settings must be those of .*, got prototypes as well"):
        write_bundle(tmp_path / "b", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda model: model[: len(model) // 2], "must be the model that model.json was written"),
        (lambda model: b"", "must be the model that model.json was written with"),
    ],
)
def test_a_damaged_model_is_not_released_and_named(change, told, trained, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    model = tmp_path / "models/model.pt"
    model.write_bytes(change(model.read_bytes()))
    with pytest.raises(ValueError, match=f"^{model}: {told}"):
        write_bundle(tmp_path / "b", tmp_path)
    file = model.with_suffix(".json")
    settings = json.loads(file.read_text())
    settings.pop("model_digest")  # of an earlier version
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=rf"^{model} is broken .*copy it again, or train again\)$"):
        write_bundle(tmp_path / "b", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
