"""Plans of configs, keys that exist, and those that do not."""

import json
import sys
from importlib import import_module

import pytest

from monai_dpmm.app.config import config_names, merged
from monai_dpmm.app.release import configs_dir
from monai_dpmm.app.workflows import (
    MODEL,
    PLANS,
    _unseen,
    applicable,
    planned,
    require_inputs,
    run_workflow,
)
from monai_dpmm.errors import MissingFileError, UsageError

EVALUATION = planned(PLANS["evaluate"][0], [], None)


@pytest.mark.parametrize("command", PLANS)
def test_every_config_of_a_plan_exists_and_overlays_come_after_the_models_settings(
    command, tmp_path
):
    (tmp_path / "models").mkdir()
    settings = tmp_path / "models/model.json"
    settings.write_text('{"components": 7}')
    for plan in PLANS[command]:
        names = planned(plan, ["kmeans_start"], settings.parent)
        assert set(names) - {str(settings)} <= set(config_names())
        assert names[0] == ("inference" if MODEL in plan else "train")
        assert (str(settings) in names) == (MODEL in plan)
        if MODEL in plan:
            assert names.index(str(settings)) < names.index("kmeans_start")
            assert names.count("kmeans_start") == 1


@pytest.mark.parametrize("command", PLANS)
def test_every_step_of_every_command_is_checked_before_it_runs(command, tmp_path):
    models = tmp_path / "models"
    folders = {"bundle_root": str(tmp_path), "dataset_dir": str(tmp_path), "ckpt_dir": str(models)}
    for plan in PLANS[command]:
        config = merged(planned(plan, [], None), folders)
        require_inputs(config, command, None)
        if MODEL in plan:
            with pytest.raises(MissingFileError, match=r"model\.pt.*train a model first"):
                require_inputs(config, command, models)
    if command in ("demo", "train"):
        config = merged(planned(PLANS[command][0], [], None), folders | {"resume": True})
        with pytest.raises(MissingFileError, match="to resume from"):
            require_inputs(config, command, None)


def test_without_a_model_there_are_no_settings_of_it(tmp_path):
    assert planned(PLANS["infer"][0], ["demo"], tmp_path) == ["inference", "demo"]


def test_metadata_is_no_workflow():
    assert "metadata" not in config_names()
    assert {"train", "inference", "evaluate", "demo"} <= {*config_names()}


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("image_siz", "image_size"),
        ("metrics#bootstrp", "metrics#bootstrap"),
        ("metrics::bootstrp", "metrics#bootstrap"),
        ("evaluatr#device", "evaluator#device, evaluation_size"),
        ("handlers#0#descr", "handlers#0#desc"),
        ("dataloader#xyz", "dataloader#_target_, dataloader#dataset, .*"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key, nearest):
    message = rf"^-s must .* the configs inference, evaluate, got '{key}' \(nearest: {nearest}\)$"
    with pytest.raises(UsageError, match=message):
        applicable([EVALUATION], {"seed": 1, key: 1})


def test_where_nothing_is_near_it_says_what_prints_all():
    with pytest.raises(UsageError, match=r"got 'qqqq' \(--show-config prints all\)$"):
        applicable([EVALUATION], {"qqqq": 1})


def test_keys_are_set_where_they_exist_only():
    """Those of the evaluation are none of the training that comes before it."""
    plans = [planned(plan, [], None) for plan in PLANS["demo"]]
    overrides = {"metrics#bootstrap": 5, "train#trainer#max_epochs": 2, "tracking": "x"}
    training, evaluation = applicable(plans, overrides)
    assert training == {"train#trainer#max_epochs": 2, "tracking": "x"}
    assert evaluation == {"metrics#bootstrap": 5, "tracking": "x"}
    config = merged(plans[1], evaluation)
    assert config["metrics"]["bootstrap"] == 5
    assert "tracking" not in config


def test_keys_of_an_overlay_file_exist(tmp_path):
    overlay = tmp_path / "own.json"
    overlay.write_text('{"my_key": 1}')
    names = planned(PLANS["train"][0], [str(overlay)], None)
    assert applicable([names], {"my_key": 2}) == [{"my_key": 2}]


def test_an_unknown_config_is_refused_with_those_there_are():
    with pytest.raises(
        UsageError, match=r"^-c must be one of bmad, .*kmeans_start.*, got 'stedy'$"
    ):
        merged(["train", "stedy"])
    with pytest.raises(UsageError, match="got 'trian'"):
        run_workflow(["trian"])


@pytest.mark.parametrize(
    ("text", "message"), [(None, "No such file or directory"), ("{", "must be a config in JSON")]
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, message):
    file = tmp_path / "own.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match=message):
        merged(["train", str(file)])


def test_settings_of_a_model_are_checked(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"image_size": "$print(1)"}))
    with pytest.raises(ValueError, match="image_size must be a plain value"):
        planned(PLANS["infer"][0], [], tmp_path)


def test_a_config_may_be_named_by_its_file():
    file = str(configs_dir() / "kmeans_start.json")
    assert merged(["train", file]) == merged(["train", "kmeans_start"])


def test_packages_are_unseen_for_a_while_unless_they_are_there_already(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with _unseen(("this", "json")):
        with pytest.raises(ImportError):
            import_module("this")
        assert import_module("json") is json
    assert "this" not in sys.modules
    assert sys.modules["json"] is json
