"""A setting that no run could use is reported before anything runs."""

import json
import re
from typing import get_args

import pytest

from monai_dpmm.app.cli import main
from monai_dpmm.app.commands.settings import settings_tables
from monai_dpmm.app.config import check_settings, check_values
from monai_dpmm.app.release import configs_dir
from monai_dpmm.app.settings import RENAMED, SETTINGS
from monai_dpmm.errors import UsageError
from monai_dpmm.io.formats import volume_writer
from monai_dpmm.io.label_loading import LabelRule
from monai_dpmm.metrics import evaluation_size as protocols
from monai_dpmm.network.thresholds import DEFAULT_RATES
from monai_dpmm.transforms.intensity import WINDOWS


def _config(name):
    return json.loads((configs_dir() / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_literals_of_the_configs_are_the_defaults(name):
    config = _config(name)
    known = {key: value for key, value in config.items() if key in SETTINGS}
    assert known == {key: SETTINGS[key].default for key in known}
    plain = {key for key, value in config.items() if not isinstance(value, list | dict | str)}
    assert plain <= known.keys() | {"metrics"}  # which an evaluation has, and inference has not


def test_every_setting_is_one_of_a_config():
    assert SETTINGS.keys() <= _config("train").keys() | _config("inference").keys()


@pytest.mark.parametrize("name", ["train", "inference"])
def test_a_model_remembers_what_the_table_says(name):
    expected = {key: f"@{key}" for key, row in SETTINGS.items() if row.remembered}
    assert _config(name)["settings"] == expected
    assert expected.keys() <= _config("inference").keys()


def test_training_calibrates_as_inference_makes_its_maps():
    train, infer, calibrate = (_config(name) for name in ("train", "inference", "calibrate"))
    assert train["maps"] == infer["maps"]
    own, alone = train["calibrate"]["handlers"][2], calibrate["handlers"][1]
    differ = {"path": None, "held_back": None}
    assert own | differ == alone | differ
    assert train["train"]["inferer"] | {"detector": "@detector"} == infer["inferer"]
    assert train["preprocessing"] == infer["preprocessing"]


def test_embeddings_follow_from_what_the_table_says():
    """All that the steps and the backbone refer to, but where and how many at once they run."""
    config, found = _config("train"), set()
    names = ["preprocessing", "embedding", "backbone"]
    while names:
        name = names.pop()
        found.add(name)
        referred = set(re.findall(r"@(\w+)", json.dumps(config[name])))
        names += sorted(referred - found - {"device", "embedding_batch_size"})
    assert found & SETTINGS.keys() == {name for name, row in SETTINGS.items() if row.embeds}


def test_defaults_keep_their_rules():
    check_values({name: row.default for name, row in SETTINGS.items()}, "-s")


def test_old_names_are_none_of_todays():
    assert not RENAMED.keys() & SETTINGS.keys()
    assert set(RENAMED.values()) <= SETTINGS.keys()


@pytest.mark.parametrize("path", sorted(configs_dir().glob("[!m]*.json")), ids=lambda p: p.stem)
def test_all_configs_pass(path):
    check_settings(json.loads(path.read_text()), str(path))


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("evaluation_size", get_args(protocols.Protocol)),
        ("lesion_label", get_args(LabelRule)),
        ("window", tuple(WINDOWS)),
    ],
)
def test_the_choices_are_those_of_the_code(name, choices):
    assert all(
        SETTINGS[name].rule.holds(choice) and choice in SETTINGS[name].rule.text
        for choice in choices
    )
    told = (
        SETTINGS[name]
        .rule.text.replace("one of", "")
        .replace("[low, high] or", "")
        .split(" or null")[0]
    )
    assert {word.strip() for word in told.replace(" or ", ",").split(",")} == set(choices)


def test_the_rates_are_those_that_thresholds_are_kept_for():
    check = SETTINGS["false_positive_rate"].rule
    assert all(check.holds(rate) and f"{rate:g}" in check.text for rate in DEFAULT_RATES)
    assert not check.holds(0.02)
    assert not check.holds("x")


def test_the_formats_are_those_of_the_code():
    for suffix in (".nii.gz", ".nii", ".nrrd", ".mha"):
        assert SETTINGS["output_ext"].rule.holds(suffix)
        volume_writer(suffix)
    assert not SETTINGS["output_ext"].rule.holds(".png")


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("mask_foreground", [True, False, "$@x"], ["yes", "False", 1, None]),
        ("components", [1, 500, "@k", "%a.json#b"], [0, -1, 2.5, True, "foo", None]),
        ("score", ["cosine", "mixture"], ["l1", 3, ["cosine"]]),
        ("component_kind", ["diagonal", "von_mises_fisher"], ["round", None]),
        ("schedule", ["ema", "none"], ["cosine"]),
        ("initialization", ["k-means++"], ["beta"]),
        ("initial_weights", ["beta"], ["random"]),
        ("seed", [0, 7], [-1, 1.5, "abc"]),
        ("concentration", [0.5, 2], [0, -1.0, float("nan"), float("inf"), "x"]),
        ("step_size", [0.2, 1], [0, 1.5, "x"]),
        ("min_lesion_ml", [0, 0.5], [-1, "a"]),
        ("leave_one_out", [None, True, False], [1, "yes"]),
        ("val_fraction", [0.2], [0, 1, "abc"]),
        ("warm_start", ["a.pt", None], [True, ""]),
        ("orientation", ["PLI", "RAS", "ARS"], ["XYZ", "RA", "RLS", "pli", 3]),
        ("slice_axis", [0, 2, [0, 1, 2]], [3, -1, [], [0, 3], True, "2"]),
        ("percentiles", [[0.5, 99.5], [0, 100], None], [5, [1], [5, 5], [0, 101], [-1, 5]]),
        ("window", [[0, 80], "brain", None], [[1], "bone", [80, 0], 5]),
        ("patch_grid", [[32, 32], None], [5, [32], [0, 32], [1.5, 2]]),
        ("variance_floor", [1e-6, None], [0, "x"]),
        ("false_positive_volumes", [[1, 2.5]], [[], [0], 5, ["a"]]),
        ("evaluation_size", ["native", "224", 448], ["full", 225]),
        ("device", ["cpu", '$torch.device("cuda:1")'], ["foo", "cuda:99", 7.5]),
        ("output_dir", ["a"], ["", 5, None]),
    ],
)
def test_rules(name, right, wrong):
    for value in right:
        check_values({name: value}, "-s")
    for value in wrong:
        with pytest.raises(UsageError, match=f"^-s {name} must be .*, got ") as caught:
            check_values({name: value}, "-s")
        assert str(caught.value).endswith(repr(value))


@pytest.mark.parametrize("text", ["False", "false"])
def test_what_is_switched_off_is_off(text, capsys):
    main(["infer", "none", "-s", f"dicom_output={text}", "-s", "window=None", "--show-config"])
    config = json.loads(capsys.readouterr().out)
    assert config["dicom_output"] is False
    assert config["window"] is None


def test_wrong_settings_end_a_command_before_it_runs(tmp_path, capsys):
    file = tmp_path / "own.json"
    for content, message in (
        ({"components": "many"}, f"{file}: components must be a whole number, 1 to 100000"),
        ({"max_epoch": 3}, f"{file}: max_epoch is no setting (nearest: max_epochs"),
        ([1], f"-c must be a config in JSON, got {file}: values by name are needed, got list"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(SystemExit) as caught:
            main(["train", "none", "-c", str(file)])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


def test_a_config_may_have_parts_of_its_own():
    own = {"_target_": "x.Y"}
    check_settings({"my_backbone": own, "backbone": "@my_backbone"}, "own.json")
    check_settings({"component": 5, "mixture": {"components": "@component"}}, "own.json")


def test_the_page_of_settings_is_the_table():
    page = (configs_dir().parent / "docs/configuration.md").read_text()
    written = page[page.index("## Where") : page.index("\n## Overlays")]
    assert written == settings_tables(), "python -m monai_dpmm settings --markdown prints it"


def test_settings_are_printed(capsys):
    main(["settings"])
    text = capsys.readouterr().out
    assert all(f"  {name}, default " in text for name in SETTINGS)
    main(["settings", "rate"])
    text = capsys.readouterr().out
    assert text.startswith("step_size, default 0.2\n")
    assert "allowed: a number above 0, 1 at most" in text
    main(["settings", "--markdown"])
    assert capsys.readouterr().out == settings_tables()


def test_a_setting_that_there_is_none_of_is_reported_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["settings", "imag_size"])
    assert caught.value.code == 2
    assert "got 'imag_size' (nearest: image_size" in capsys.readouterr().err
