"""Files from strangers, at every door of the package: nothing in them is run.

A payload that is run leaves a file behind, its trace. Each is shown to do so where it is opened
carelessly: without that, a test that finds no trace would mean nothing.
"""

import ast
import gzip
import io
import json
import pickle
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import transformers
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.engines import Evaluator
from refusal import refusal

import monai_dpmm
from monai_dpmm.app.cli import main
from monai_dpmm.app.model_card import model_card
from monai_dpmm.app.release import configs_dir, write_bundle
from monai_dpmm.engines.resuming import TrainingCheckpoint
from monai_dpmm.engines.warm_start import WarmStart
from monai_dpmm.files import load_tensors
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.federation import load_moments
from monai_dpmm.network.backbones.registry import load_backbone
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.network.weights import bundled_backbone, load_weights, model_setting
from monai_dpmm.report.report import write_report
from monai_dpmm.study.external_maps import load_map

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
D = 4


class Evil:
    """Unpickled, it leaves its trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path):
    """What must not be there after a test."""
    path = tmp_path / "trace"
    yield path
    assert not path.exists()


def assert_it_would_have_run(careless, trace):
    """The control: opened carelessly, the same file leaves its trace."""
    assert not trace.exists()
    careless()
    assert trace.exists()
    trace.unlink()


# Tensors: models, checkpoints, moments


def _saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _detector():
    return AnomalyDetector(torch.nn.Conv2d(3, D, 1), DPMM(D, 5))


def _warm_start(path):
    WarmStart(path, _detector())._load(Engine(lambda *_: None), Path(path))


def _resume(path):
    mixture = DPMM(D, 5)
    TrainingCheckpoint(path, mixture, Evaluator, resume=True)._load(Engine(lambda *_: None))


TENSORS = {
    "tensors": load_tensors,
    "model": lambda path: load_weights(_detector(), path),
    "backbone of a model": load_backbone,
    "backbone of a bundle": lambda path: bundled_backbone("efficientnet_lite0", path),
    "official backbone": lambda path: load_backbone(path.rename(path.with_name("dinov2.pth"))),
    "moments": lambda path: load_moments(path, DPMM(D, 5)),
    "warm start": _warm_start,
    "checkpoint": _resume,
    "model card": lambda path: model_card(path, "", name="b"),
    "bundle": lambda path: write_bundle(path.parents[1] / "bundle", path.parents[1]),
}
PICKLES = {
    "pickle": lambda trace: pickle.dumps({"weight": Evil(trace)}, protocol=2),
    "zip": lambda trace: _saved({"weight": Evil(trace)}),
}
BROKEN = {
    "garbage": b"<html>not found</html>",
    "empty": b"",
    "cut": _saved({"weight": torch.ones(1000)})[:-500],
}


def _model(folder, content):
    """A file as models/model.pt, beside settings that look right."""
    (folder / "models").mkdir()
    (folder / "models/model.json").write_text('{"backbone_architecture": "efficientnet_lite0"}')
    (folder / "models/model.pt").write_bytes(content)
    return folder / "models/model.pt"


@pytest.mark.parametrize("door", TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("payload", PICKLES.values(), ids=PICKLES)
def test_no_pickle_is_run(payload, door, trace, tmp_path):
    path = _model(tmp_path, payload(trace))
    careless = pickle.loads if path.read_bytes()[:2] != b"PK" else _unpickled
    assert_it_would_have_run(lambda: careless(path.read_bytes()), trace)
    line = refusal(door, path)
    assert re.search(r"(model.pt|dinov2.pth) is broken or holds more", line)


def _unpickled(content):
    return torch.load(io.BytesIO(content), weights_only=False)


@pytest.mark.parametrize("door", TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_files_are_refused(content, door, tmp_path):
    line = refusal(door, _model(tmp_path, content))
    assert re.search(r"(model.pt|dinov2.pth) is broken or holds more", line)


def test_an_evaluation_runs_no_pickle(cohort, trained, trace, tmp_path):
    """Through the workflow: MONAI's own loader is not asked."""
    path = _model(tmp_path, pickle.dumps(Evil(trace), protocol=2))
    settings = json.loads((trained / "models/model.json").read_text())
    settings.pop("model_digest", None)  # of a model of before, or one that was forged
    path.with_name("model.json").write_text(json.dumps(settings))
    for command in ("evaluate", "calibrate", "infer"):
        line = refusal(main, [command, str(cohort), "-f", str(tmp_path)])
        assert line.startswith(f"{path} is broken or holds more than tensors")


def test_a_planted_cache_is_not_unpickled(cohort, trace, tmp_path):
    """PersistentDataset, which the configs take in the place of CacheDataset where asked."""
    parser = ConfigParser()
    parser.read_config(configs_dir() / "train.json")
    own = {"backbone_architecture": "efficientnet_lite0", "image_size": 64, "slice_axis": 2}
    parser.update({**own, "dataset_dir": str(cohort), "device": "cpu"})
    parser["train#dataset#_target_"] = "PersistentDataset"
    parser["train#dataset#cache_dir"] = str(tmp_path / "cache")
    for name in {*parser["train#dataset"]} - {"_target_", "data", "transform", "cache_dir"}:
        del parser.config["train"]["dataset"][name]  # which are the own store's
    dataset = parser.get_parsed_content("train#dataset")
    wanted = dataset[0]["image"]
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(_saved({"image": Evil(trace)}))
    assert_it_would_have_run(lambda: _unpickled(file.read_bytes()), trace)
    with pytest.warns(UserWarning, match="Corrupt cache file detected"):
        assert torch.equal(dataset[0]["image"], wanted)


# Arrays of other tools


def _npz(array):
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("door", [load_map, LoadVolume()], ids=["map", "scan"])
@pytest.mark.parametrize(("suffix", "written"), [("npy", _npy), ("npz", _npz)])
def test_no_object_of_an_array_is_unpickled(suffix, written, door, trace, tmp_path):
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(written(np.array([Evil(trace)], dtype=object)))

    def careless():
        loaded = np.load(file, allow_pickle=True)
        return loaded if suffix == "npy" else loaded["arr_0"]

    assert_it_would_have_run(careless, trace)
    assert refusal(door, file).startswith(f"{file}: must be a")


# Folders of Hugging Face


@pytest.fixture
def hub_folder(tmp_path):
    """A small network with its weights, as a stranger publishes it."""
    config = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


def _add(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_pickled_weights_of_a_hub_folder_are_refused(hub_folder, trace):
    payload = {"weight": Evil(trace)}
    (hub_folder / "model.safetensors").rename(hub_folder.with_name("kept"))
    torch.save(payload, hub_folder / "pytorch_model.bin")
    content = (hub_folder / "pytorch_model.bin").read_bytes()
    assert_it_would_have_run(lambda: _unpickled(content), trace)
    assert "pickled weights are not read" in refusal(load_backbone, hub_folder)
    (hub_folder / "pytorch_model.bin").rename(hub_folder / "model.safetensors")
    assert "cannot be loaded: SafetensorError" in refusal(load_backbone, hub_folder)
    (hub_folder / "model.safetensors").unlink()
    (hub_folder / "shard.bin").write_bytes(content)
    index = {"weight_map": {"weight": "shard.bin"}}
    (hub_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "cannot be loaded: SafetensorError" in refusal(load_backbone, hub_folder)


def test_code_of_a_hub_folder_is_not_imported(hub_folder, trace):
    """It loads, by our own class of the model that it says it is."""
    _add(hub_folder, auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    (hub_folder / "evil.py").write_text(
        f"import pathlib, transformers\npathlib.Path({str(trace)!r}).touch()\n"
        "class Config(transformers.Dinov2Config): pass\n"
    )

    def careless():
        transformers.AutoConfig.from_pretrained(hub_folder, trust_remote_code=True)

    assert_it_would_have_run(careless, trace)
    assert load_backbone(hub_folder).embedding_dim == 64


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attn_implementation", "stranger/kernel"),  # transformers would get it from the hub
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("transformers_weights", "pytorch_model.bin"),
    ],
)
def test_a_hub_config_names_no_code(hub_folder, name, value):
    _add(hub_folder, **{name: value})
    with pytest.raises((ImportError, ValueError, OSError)):
        transformers.Dinov2Model.from_pretrained(hub_folder)  # it is obeyed
    assert load_backbone(hub_folder).embedding_dim == 64


# Settings beside a model, which become part of a config


def _touch(trace):
    return f"$__import__('pathlib').Path({str(trace)!r}).touch()"


def _target(trace):
    return {"_target_": "builtins.open", "file": str(trace), "mode": "w"}


SETTINGS = {
    "expression": lambda trace: {"orientation": _touch(trace)},
    "expression in a list": lambda trace: {"percentiles": [0, _touch(trace)]},
    "object": lambda trace: {"scan_reference": _target(trace)},
    "object in a list": lambda trace: {"volume_thresholds": [_target(trace)]},
    "setting of no training": lambda trace: {"displayable_configs": _target(trace)},
    "part of a setting": lambda trace: {"displayable_configs#output": _touch(trace)},
    "start of a run": lambda trace: {"initialize": [_touch(trace)]},
    "another file": lambda trace: {"window": f"%{trace.with_name('code.json')}::x"},
}
DOORS = {
    **{name: [name, "scans"] for name in ("infer", "evaluate", "calibrate")},
    "dry run": ["infer", "scans", "--dry-run"],
    "figures": ["figures", "scans"],
    "bundle": ["bundle", "OUT"],
}


@pytest.mark.parametrize("command", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("payload", SETTINGS.values(), ids=SETTINGS)
def test_settings_are_plain_values(payload, command, trace, tmp_path):
    settings = payload(trace)
    (tmp_path / "code.json").write_text(json.dumps({"x": _touch(trace)}))
    _model(tmp_path, b"").with_name("model.json").write_text(json.dumps(settings))
    parser = ConfigParser()
    parser.read_config([configs_dir() / "inference.json", tmp_path / "models/model.json"])
    name = next(iter(settings)).split("#")[0]
    assert_it_would_have_run(lambda: parser.get_parsed_content(name), trace)
    out = [word.replace("OUT", str(tmp_path / "out")) for word in command]
    line = refusal(main, [*out, "-f", str(tmp_path)])
    assert re.search(r"model.json: (\w+ must be a plain value|settings must be those of a)", line)
    assert not (tmp_path / "out").exists()


def test_what_a_bundle_takes_back_from_its_settings_is_not_run(trace, tmp_path):
    """The configs of a bundle read model.json anew, see `write_bundle`."""
    model = _model(tmp_path, b"")
    model.with_name("model.json").write_text(json.dumps({"scan_reference": _touch(trace)}))
    setting = f"$monai_dpmm.model_setting({str(model)!r}, 'scan_reference')"
    parser = ConfigParser({"imports": ["$import monai_dpmm"], "setting": setting, "x": "@setting"})
    assert parser.get_parsed_content("x") == _touch(trace) == model_setting(model, "scan_reference")


def test_settings_of_a_training_are_plain_values(trained):
    main(["infer", "scans", "-f", str(trained), "--show-config"])


# Headers that ask for more memory than there is


def _nifti():
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape((32767, 32767, 32767))
    header.set_sform(np.eye(4), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header.binaryblock + bytes(100)


def _array():
    file = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6, 10**6)}
    np.lib.format.write_array_header_1_0(file, shape)
    return file.getvalue()


def _png():
    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    size = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + pixels + chunk(b"IEND", b"")


def _mha():
    lines = ("NDims = 3", "DimSize = 60000 60000 60000", "ElementType = MET_DOUBLE")
    return "\n".join(["ObjectType = Image", *lines, "ElementDataFile = LOCAL\n"]).encode()


HUGE = {
    "a.nii": _nifti,
    "a.nii.gz": lambda: gzip.compress(_nifti()),
    "a.npy": _array,
    "a.png": _png,
    "a.mha": _mha,
    "a.nrrd": lambda: (
        b"NRRD0004\ntype: double\ndimension: 3\nsizes: 60000 60000 60000\nencoding: raw\n"
        b"endian: little\n\n"
    ),
}


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_absurd_headers_are_refused(name, tmp_path):
    file = tmp_path / name
    file.write_bytes(HUGE[name]())
    assert refusal(LoadVolume(), file).startswith(f"{file}: must be a scalar image")
    if file.suffix in (".npy", ".nii", ".gz"):
        assert refusal(load_map, file).startswith(f"{file}: must be a readable anomaly map")


# Names in pages and paths

FILE = "\"><img src=x onerror=document.title='run'>"
NAME = f"../{FILE}<script>document.title='run'</script>"  # no file's, which has no slash


def _title(page, folder):
    """Title of a page after Chromium has run its scripts."""
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [CHROMIUM, *options, profile, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return re.search(r"<title>(.*?)</title>", done.stdout.decode(), re.DOTALL)[1]


@pytest.fixture
def pages(cohort, trained, tmp_path):
    """Reports, each with a page to walk through a volume: of a file, and of all other names."""
    scan = shutil.copy(cohort / "test/images/test_000.nii.gz", tmp_path / f"{FILE}.nii.gz")
    main(["infer", str(scan), "-f", str(trained), "-s", f"output_dir={tmp_path / 'out'}"])
    volume = np.random.default_rng(0).random((12, 12, 12), np.float32)
    subject = {"name": NAME, "image": volume, "anomaly": volume, "metrics": {NAME: 1.0}}
    named = {"metrics": {NAME: 1.0}, "settings": {NAME: NAME}}
    write_report(tmp_path / "report", subjects=[subject], **named)
    folders = tmp_path / "out/report", tmp_path / "report"
    return [page for folder in folders for page in sorted(folder.rglob("*.html"))]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium, which runs the scripts")
def test_no_name_runs_a_script(pages, tmp_path):
    page = tmp_path / "careless.html"
    for name in (FILE, NAME):
        page.write_text(f'<!doctype html><title>own</title><p title="{name}">')
        assert _title(page, tmp_path) == "run"
    titles = [_title(page, tmp_path) for page in pages]
    assert titles[::2] == ["Anomaly report"] * 2
    assert all("onerror=document.title='run'&gt;" in title for title in titles[1::2])


@pytest.mark.slow
def test_names_of_a_report_leave_no_folder(pages):
    for folder in {page.parent for page in pages if page.name == "report.html"}:
        assert all(re.fullmatch(r"[\w.-]+", path.name) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "name", [NAME, "![x](https://e.org/p.png)", "[a](javascript:b)", "\x1b[31m", "$x", "@x"]
)
def test_markup_in_metrics_does_not_reach_the_card(name, trained, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"metrics": {name: 1.0}}))
    seen = refusal(lambda: write_bundle(tmp_path / "b", trained, metrics=tmp_path / "metrics.json"))
    assert "names of metrics must be plain words" in seen
    assert not (tmp_path / "b").exists()


def test_results_stay_in_their_folder(cohort, trained, tmp_path):
    """A dataset.json that names a scan elsewhere, beside which its results would be written."""
    data, private = tmp_path / "a/data", tmp_path / "private"
    data.mkdir(parents=True)
    private.mkdir()
    shutil.copy(cohort / "test/images/test_000.nii.gz", private / "x.nii.gz")
    (data / "dataset.json").write_text(json.dumps({"test": ["../../private/x.nii.gz"]}))
    command = ["infer", str(data), "-f", str(trained), "-s", f"output_dir={tmp_path / 'a/out'}"]
    assert "scans to test must lie below its folder" in refusal(main, command)
    assert [path.name for path in private.iterdir()] == ["x.nii.gz"]
    assert not (tmp_path / "a/out").exists()


# The code itself

PACKAGE = Path(monai_dpmm.__file__).parent
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "os.system"),
}
FORBIDDEN_METHODS = {"extractall", "unpack_archive", "read_pickle"}
FORBIDDEN_IMPORTS = {
    *("pickle", "joblib", "cloudpickle", "dill", "shelve", "marshal", "yaml", "zipfile"),
    *("tarfile", "subprocess"),
}


def _dangers(code):
    """Calls and imports by which a file could run code, or be written anywhere."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from {a.name.split(".")[0] for a in node.names} & FORBIDDEN_IMPORTS
        elif isinstance(node, ast.ImportFrom):
            yield from {(node.module or "").split(".")[0]} & FORBIDDEN_IMPORTS
        elif isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            plain = getattr(options.get("allow_pickle"), "value", None) is False
            method = name.split(".")[-1]
            if name in FORBIDDEN_CALLS or method in FORBIDDEN_METHODS:
                yield name
            if name == "np.load" and not plain:
                yield name
            if "trust_remote_code" in options:
                yield "trust_remote_code"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_there_is_one_door_for_what_could_run_code(path):
    allowed = {
        "files.py": ["zipfile", "torch.load"],
        "io/reading_process.py": ["subprocess"],
    }
    name = path.relative_to(PACKAGE).as_posix()
    assert list(dict.fromkeys(_dangers(path.read_text()))) == allowed.get(name, [])


@pytest.mark.parametrize(
    ("code", "danger"),
    [
        ("import torch\ntorch.load('x', weights_only=True)", "torch.load"),
        ("def f():\n    from pickle import load", "pickle"),
        ("np.load('x')", "np.load"),
        ("np.load('x', allow_pickle=True)", "np.load"),
        ("eval('1')", "eval"),
        ("archive.extractall('x')", "archive.extractall"),
        ("shutil.unpack_archive('x')", "shutil.unpack_archive"),
        ("import yaml", "yaml"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code"),
    ],
)
def test_the_search_finds_them(code, danger):
    assert list(_dangers(code)) == [danger]
    assert not list(_dangers("network.eval(); np.load('x', allow_pickle=False); re.compile('x')"))
