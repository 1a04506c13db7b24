"""Configs are merged as MONAI merges them, and old names go on working."""

import json
import os
import subprocess
import sys
from importlib import import_module

import pytest
from monai.bundle import ConfigParser

from monai_dpmm.app.cli import main
from monai_dpmm.app.commands import compare
from monai_dpmm.app.config import MOVED, config_names, has, merged, nearest, read_config, renamed
from monai_dpmm.app.release import checked_settings, configs_dir
from monai_dpmm.app.settings import RENAMED, SETTINGS
from monai_dpmm.app.workflows import PLANS, applicable, planned
from monai_dpmm.errors import FileError, UsageError
from monai_dpmm.mixture.planes import mixtures
from monai_dpmm.study.methods import METHODS

OWN = {
    "step_size": 0.4,
    "train#trainer#max_epochs": 3,
    "validate::handlers::0": {"_target_": "x.Y"},
    "+settings": {"own": 1},
    "+run": ["$print(1)"],
}


def _of_monai(names, values):
    parser = ConfigParser()
    files = [str(configs_dir() / f"{n}.json") if "/" not in n else n for n in names]
    parser.read_config(files)
    parser.update(values)
    config = dict(parser.get())
    assert config.pop("_meta_") == {}
    return config


@pytest.mark.parametrize("command", PLANS)
def test_configs_are_merged_as_monai_does(command, tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps(OWN))
    values = {"imports#0": "$import this", "max_epochs": 5}
    for plan in PLANS[command]:
        for overlays in ([], ["kmeans_start"], ["resc", str(own)]):
            if plan[0] == "inference" and str(own) in overlays:
                continue  # there is no trainer
            names = planned(plan, overlays, None)
            assert merged(names, values) == _of_monai(names, values)


@pytest.mark.parametrize("name", config_names())
def test_every_config_is_merged_as_monai_does(name):
    base = ["inference"] if name in ("calibrate", "evaluate") else ["train"]
    base = ["inference", "evaluate"] if name == "multi_gpu_evaluate" else base
    assert merged([*base, name]) == _of_monai([*base, name], {})


@pytest.mark.parametrize("key", ["max_epochs", "train#trainer", "train::handlers::1", "x", "a#b"])
def test_ids_are_looked_up_as_monai_does(key):
    config = merged(["train"])
    assert has(config, key) == (key in ConfigParser(config))


def test_what_cannot_be_merged_is_one_line(tmp_path):
    own = tmp_path / "own.json"
    for content, message in (
        ({"trian#trainer": 1}, "own.json must set a key of the configs, got 'trian#trainer'"),
        ({"+run": {"a": 1}}, r"own.json: \+run must be names or a list as run is, got {'a': 1}"),
    ):
        own.write_text(json.dumps(content))
        with pytest.raises(UsageError, match=message):
            merged(["train", str(own)])


def test_the_nearest_of_a_whole_id():
    assert nearest(merged(["train"]), "train#trainr#max_epochs") == ["train#trainer#max_epochs"]


@pytest.mark.parametrize("name", MOVED)
def test_a_config_of_an_earlier_version_works_and_names_the_new_way(name, caplog):
    config = read_config(name)
    if isinstance(MOVED[name], str):
        assert config == read_config(MOVED[name])
        assert f"-c {MOVED[name]}" in caplog.text
    else:
        way = caplog.text.split("use ")[1].split()
        values = dict(part.split("=") for part in way if part != "-s")
        assert config == {
            k: v if k in ("window", "component_kind") else json.loads(v) for k, v in values.items()
        }
    assert merged(["inference", name]).keys() | merged(["train"]).keys() == (
        merged(["inference"]).keys() | merged(["train"]).keys()
    )


def test_old_names_of_settings_work(tmp_path, caplog):
    """With -s, in a file of -c and beside a model; the line that tells so comes once."""
    values = dict(zip(RENAMED, ("full", 255, "224", 0.1, 2), strict=True))
    new = {RENAMED[name]: value for name, value in values.items()}
    file = tmp_path / "own.json"
    file.write_text(json.dumps(values))
    of_training, of_inference = applicable([["train"], ["inference"]], values)
    assert of_training | of_inference == new
    for _ in range(2):
        config = merged(["train", str(file)])
    assert {name: config[name] for name in new} == new
    assert not values.keys() & config.keys()
    told = f"{file}: rate is called step_size now"
    assert caplog.text.count(told) == 1
    model = tmp_path / "model.json"
    model.write_text('{"covariance": "full", "image_size": 96}')
    assert checked_settings(model) == {"component_kind": "full", "image_size": 96}


def test_a_new_name_wins_and_a_name_of_ones_own_stays():
    assert renamed({"step_size": 1, "rate": 0.5}, "-s") == {"step_size": 1}
    own = {"rate": 0.5, "mixture": {"rate": "@rate"}}
    assert renamed(own, "own.json") == own


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "none"], 1, "none: must exist, there is no such file or folder"),
        (["infer", "."], 1, "model.pt: must exist, there is no such file (train a model first)"),
        (["compare", "none"], 1, "none: must exist"),
        (["figures", "."], 1, "(train a model first)"),
        (["train", ".", "-s", "imag_size=1"], 2, "nearest: image_size"),
        (["train", ".", "-s", "image_size=0"], 2, "image_size must be a whole number"),
        (["train", ".", "-c", "stedy"], 2, "got 'stedy'"),
        (["check", "none"], 1, "none: must exist"),
        (["score", ".", "none"], 1, "none: must exist"),
        (["report", "."], 1, "output: must exist"),
        (["settings", "x"], 2, "NAME must be a setting"),
        (["train", ".", "-s", "score=x"], 2, "score must be one of cosine"),
        (["train", ".", "-s", "device=tpu"], 2, "device must be cpu, or cuda"),
        (["train", ".", "-s", "warm_start=m.pt"], 1, "m.pt: must exist, there is no such file to"),
        (["train", ".", "-s", "resume=true"], 1, "checkpoint.pt: must exist, there is no such"),
        (["train", ".", "-s", "backbone_weights=/no/w.pth"], 1, "/no/w.pth: must exist"),
        (["train", ".", "-f", "own.json"], 1, "must be a folder to write to, "),
        (["train", ".", "-s", "embedding_dir=own.json/x"], 1, "own.json/x: must be a folder to"),
        (["compare", ".", "--methods", "x"], 2, "methods must be among dpmm"),
        (["compare", ".", "--reference", "x"], 2, "methods must be among dpmm"),
        (["score", ".", ".", "--evaluation-size", "9"], 2, "evaluation_size must be native"),
        (["bundle", "new"], 1, "(train a model first)"),
    ],
)
def test_what_was_typed_is_checked_before_anything_heavy_is_imported(
    arguments, code, message, tmp_path
):
    program = (
        "import sys, atexit\n"
        "from monai_dpmm.app.cli import main\n"
        "atexit.register(lambda: print(sorted({'torch', 'monai', 'numpy'} & sys.modules.keys())))\n"
        "main()"
    )
    (tmp_path / "own.json").write_text("{}")
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stdout == "[]\n"
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_refused_before_anything_is_imported(tmp_path):
    (tmp_path / "kept").mkdir(mode=0o500)
    with pytest.raises(FileError, match="kept/models: must be a folder to write to"):
        main(["train", str(tmp_path), "-f", str(tmp_path / "kept")])


def test_tables_are_read_as_they_are_imported():
    for name in ("component_kind", "initialization", "initial_weights", "schedule", "score"):
        rule = SETTINGS[name].rule
        table = getattr(import_module(f"monai_dpmm.{rule.module}"), rule.table)
        assert rule.names == tuple(table)
    assert compare._METHODS.names == tuple(METHODS)


class _Backbone:
    embedding_dim = 4


@pytest.mark.parametrize(
    ("overlays", "own", "setting", "floor"),
    [
        ([], None, None, 1e-6),
        ([], 1e-3, None, 1e-3),
        ([], 1e-3, 1e-4, 1e-4),
        (["paper"], 1e-3, None, 1e-6),
        (["kmeans_start"], 1e-3, None, 1e-3),
    ],
)
def test_the_floor_is_the_backbones_unless_it_is_set(overlays, own, setting, floor):
    parser = ConfigParser()
    parser.read_config([str(configs_dir() / f"{name}.json") for name in ["train", *overlays]])
    backbone = _Backbone()
    if own is not None:
        backbone.variance_floor = own
    parser["backbone"] = backbone
    if setting is not None:
        parser["variance_floor"] = setting
    model = parser.get_parsed_content("mixture")
    assert {mixture.covariance.floor for mixture in mixtures(model)} == {floor}
