"""A trained model becomes a bundle folder that needs nothing else."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_dpmm.bundle_folder import write_bundle
from monai_dpmm.cli import main


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundles") / "heads", trained)


def test_the_folder_is_a_bundle_and_appears_complete(bundle):
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", "large_files.yml"):
        assert (bundle / name).is_file()
    for name in ("metadata.json", "inference.json", "train.json", "evaluate.json", "logging.conf"):
        assert (bundle / "configs" / name).is_file()
    assert json.loads((bundle / "configs/metadata.json").read_text())["name"] == "heads"
    assert sorted(p.name for p in (bundle / "models").iterdir()) == ["model.json", "model.pt"]
    assert [p.name for p in bundle.parent.iterdir()] == ["heads"]


def test_both_configs_hold_the_models_settings(bundle):
    settings = json.loads((bundle / "models/model.json").read_text())
    for name in ("inference", "train"):
        config = ConfigParser.load_config_file(bundle / f"configs/{name}.json")
        assert settings.items() <= config.items()


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
        "output": ["mask", "heatmap"],
        "false_positive_rate": ["0.01", "0.05", "0.1"],
    }
    postprocessing = parser.get_parsed_content("postprocessing")
    assert type(postprocessing.transforms[-1]).__name__ == "AnswerRequestd"


def test_a_training_in_the_folder_takes_calibrations_back(trained, tmp_path):
    (tmp_path / "models").mkdir()
    shutil.copy(trained / "models/model.pt", tmp_path / "models")
    settings = json.loads((trained / "models/model.json").read_text())
    calibrated = settings | {"volume_thresholds": [{"ml": 1}], "scan_reference": {"usage": []}}
    (tmp_path / "models/model.json").write_text(json.dumps(calibrated))
    bundle = write_bundle(tmp_path / "heads", tmp_path)

    def of(config):
        parser = ConfigParser(ConfigParser.load_config_file(bundle / f"configs/{config}.json"))
        parser["bundle_root"] = str(bundle)
        names = ("volume_thresholds", "scan_reference")
        return [parser.get_parsed_content(name) for name in names]

    for config in ("inference", "train"):
        assert of(config) == [[{"ml": 1}], {"usage": []}]
    (bundle / "models/model.json").write_text(json.dumps(settings))  # what a training writes
    for config in ("inference", "train"):
        assert of(config) == [[], None]


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
    with pytest.raises(FileExistsError, match="b: must be a new folder, it exists already"):
        write_bundle(tmp_path / "b", trained)
    assert not list((tmp_path / "b").iterdir())


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
    (tmp_path / "models/model.pt").touch()
    with pytest.raises(ValueError, match=r"settings must be those of .*, got prototypes as well"):
        write_bundle(tmp_path / "b", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
