"""Inputs of every kind, mutated, at the doors of the package: refused in one line, or read."""

import faulthandler
import gzip
import io
import json
import os
import random
import re
import signal
import struct
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from dicom_files import write_series
from ignite.engine import Engine
from PIL import Image

from campaign.workloads import scan, store
from monai_dpmm.app.config import read_config
from monai_dpmm.app.release import checked_settings
from monai_dpmm.engines.resuming import History, TrainingCheckpoint
from monai_dpmm.engines.warm_start import WarmStart
from monai_dpmm.errors import expected_error
from monai_dpmm.files import load_tensors
from monai_dpmm.io.datalist import datalist
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.federation import load_moments, save_moments
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.network.weights import load_weights
from monai_dpmm.report.saved_results import curves_of, findings_of
from monai_dpmm.study.external_maps import load_map

D, K = 4, 5
HANGS = 10  # seconds
GREEDY = 1_500_000  # kB that a process may have at its peak, imports included


class Door(NamedTuple):
    """A file's name, what it holds, and what opens it."""

    name: str
    content: bytes
    opened: object


class _Validator:
    class state:  # noqa: N801 - as ignite's
        best_metric, best_metric_epoch = 0.0, 1


def _fitted():
    torch.manual_seed(0)
    mixture = DPMM(D, K)
    patches = torch.nn.functional.normalize(torch.randn(60, D), dim=1)
    mixture.initialize(patches)
    mixture.step(patches)
    return mixture


def _detector(mixture=None):
    return AnomalyDetector(torch.nn.Conv2d(3, D, 1), mixture or DPMM(D, K))


def _saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _resumed(path):
    engine = Engine(lambda *_: None)
    TrainingCheckpoint(path, DPMM(D, K), _Validator, resume=True)._load(engine)


def _checkpoint():
    trainer = {"epoch_length": 4, "max_epochs": 3, "iteration": 8}
    best = {"best_metric": 1.5, "best_metric_epoch": 2}
    state = {"mixture": _fitted().state_dict(), "trainer": trainer, "validator": best}
    return _saved({**state, "settings": {"components": K, "window": [0, 80]}, "data": None})


def _bytes_of(write, suffix):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        write(path)
        return path.read_bytes()


def _volume(suffix):
    if suffix.startswith(".nii"):
        image = nib.Nifti1Image(scan(0), np.diag([2.0, 2, 3, 1]))
        return _bytes_of(lambda path: nib.save(image, path), suffix)
    import itk

    image = itk.image_from_array(scan(0))
    return _bytes_of(lambda path: itk.imwrite(image, str(path)), suffix)


def _picture(suffix):
    voxels = (scan(0)[:, :, 5].clip(0, 400) / 400 * 255).astype(np.uint8)
    return _bytes_of(Image.fromarray(voxels).save, suffix)


def _series():
    """Files of a DICOM series by name."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        series = Path(folder) / "series"
        write_series(series, scan(0).clip(0, 500).astype(np.uint16))
        return {path.name: path.read_bytes() for path in sorted(series.glob("*.dcm"))}


def _in_series(files, path):
    """A series in which a file is another."""
    folder = path.with_name("series")
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / next(iter(files))).write_bytes(path.read_bytes())
    LoadVolume()(folder)


def _array(save):
    buffer = io.BytesIO()
    save(buffer, scan(0)[:, :, 5])
    return buffer.getvalue()


def _json(value):
    return json.dumps(value, indent=1).encode()


def _in_dataset(path):
    (path.parent / "a.nii").write_bytes(b"x")
    for section in ("train", "test"):
        datalist(path.parent, section)


def _in_store(path):
    """A file of a store that is another: what is not whole is made again."""
    scans = path.parent / "scans"
    scans.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(scan(0), np.eye(4)), scans / "a.nii")
    found = store(path.parent / "store", scans)
    found.cache_dir.mkdir(exist_ok=True)
    found.path(0).write_bytes(path.read_bytes())
    found.embed()
    if tuple(found[0]["image"].shape) != (4, 4, 4, 4):
        raise AssertionError(f"the store gives {tuple(found[0]['image'].shape)}")


def _stored():
    def write(path):
        scans = path.parent / "scans"
        scans.mkdir()
        nib.save(nib.Nifti1Image(scan(0), np.eye(4)), scans / "a.nii")
        found = store(path.parent / "store", scans)
        found.embed()
        path.write_bytes(found.path(0).read_bytes())

    return _bytes_of(write, ".safetensors")


def _report(path):
    """A report whose metrics.json is another."""
    folder = path.parent / "out"
    (folder / "report").mkdir(parents=True, exist_ok=True)
    (folder / "report/metrics.json").write_bytes(path.read_bytes())
    from monai_dpmm.report import earlier_scans, saved_results

    now = {"subjects": [], "metrics": {}, "settings": {}, "environment": {}, "left_out": []}
    earlier_scans.earlier_scans(folder / "report", now, [], [])
    saved_results._measured(folder / "report/metrics.json")


def _config(path):
    read_config(str(path))


def _history(path):
    History(path, None)._earlier()
    curves_of(path)


def doors():
    """All doors with a good file of each."""
    mixture, series = _fitted(), _series()
    settings = {"components": 5, "window": [0, 80], "score": "cosine", "healthy_scans": {"a": [1]}}
    history = [{"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": None}]
    metrics = {
        "subjects": [{"name": "a", "score": 1.5, "threshold": 1, "metrics": {"auroc": 0.9}}],
        "metrics": {"auroc": 0.9},
        "intervals": {"auroc": [0.8, 1]},
        "settings": {"a": 1},
        "history": {"loss": [1, 2]},
        "environment": {"python": "3"},
    }
    findings = {
        "score": 1.5,
        "threshold": 2,
        "findings": [],
        "false_positive_rate": None,
        "false_positive_volume_ml": 2,
    }
    items = [{"image": "a.nii"}]
    moments = mixture.e_step(torch.randn(20, D))
    moments_file = _bytes_of(lambda path: save_moments(moments, path, mixture), ".pt")
    engine = Engine(lambda *_: None)
    model = _saved(_detector(mixture).state_dict())
    return {
        "tensors": Door("a.pt", _saved({"a": torch.ones(9), "b": [1, "x"]}), load_tensors),
        "model": Door("model.pt", model, lambda p: load_weights(_detector(), p)),
        "warm start": Door("start.pt", model, lambda p: WarmStart(p, _detector())._load(engine, p)),
        "checkpoint": Door("checkpoint.pt", _checkpoint(), _resumed),
        "moments": Door("moments.pt", moments_file, lambda p: load_moments(p, mixture)),
        "settings": Door("model.json", _json(settings), checked_settings),
        "config": Door("own.json", _json({"components": 5, "window": None}), _config),
        "history": Door("history.json", _json(history), _history),
        "metrics": Door("metrics.json", _json(metrics), _report),
        "findings": Door("a_findings.json", _json(findings), findings_of),
        "data set": Door("dataset.json", _json({"training": items, "test": items}), _in_dataset),
        "store": Door("a.safetensors", _stored(), _in_store),
        "map .npy": Door("a.npy", _array(np.save), load_map),
        "map .npz": Door("a.npz", _array(np.savez), load_map),
        "DICOM": Door("a.dcm", next(iter(series.values())), partial(_in_series, series)),
        **{
            f"scan {suffix}": Door(f"a{suffix}", _volume(suffix), LoadVolume())
            for suffix in (".nii", ".nii.gz", ".nrrd", ".mha")
        },
        **{
            f"picture {suffix}": Door(f"a{suffix}", _picture(suffix), LoadVolume())
            for suffix in (".png", ".jpg", ".tif")
        },
    }  # fmt: skip


_EXTREME = [0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, 2**16 - 1, 0x7F800000, 0x7FC00000]
_ODD = [None, True, -1, 0, 1e308, 10**30, "", "x" * 300, [], {}, [[[[]]]], "$print(1)", "../../x"]


def mutated(content, seed):
    """A good file's bytes, changed somehow, the same for one seed."""
    rng = random.Random(seed)
    if content[:1] in b"{[" and rng.random() < 0.6:
        return _mutated_json(content, rng)
    if content[:2] == b"\x1f\x8b" and rng.random() < 0.6:  # what is compressed is changed within
        return gzip.compress(_mutated_bytes(gzip.decompress(content), rng), 1)
    return _mutated_bytes(content, rng)


def _mutated_bytes(content, rng):
    data = bytearray(content)
    # headers are at the beginning, directories of archives at the end
    for _ in range(rng.choice([1, 1, 2, 5])):
        near = rng.choice([64, 400, 2000, len(data) or 1])
        at = rng.randrange(max(1, min(near, len(data))))
        at = max(0, len(data) - 1 - at) if rng.random() < 0.15 else at
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.choice([1, 4, 100])]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.choice([1, 4, 100]))
        elif kind == 4:
            size, number = (
                rng.choice([("<i", 4), (">i", 4), ("<q", 8), ("<h", 2)]),
                rng.choice(_EXTREME),
            )
            mask = (1 << 8 * size[1]) - 1
            data[at : at + size[1]] = struct.pack(size[0].upper(), number & mask)
        elif kind == 5:
            data[at : at + 16] = bytes(16)
        elif kind == 6:
            data[at:at] = data[at : at + rng.choice([10, 500])]
        elif rng.random() < 0.4:
            data = data[:at]
    return bytes(data)


def _mutated_json(content, rng):
    value = json.loads(content)
    for _ in range(rng.choice([1, 1, 3])):
        value = _changed(value, rng)
    if rng.random() < 0.05:
        return b"[" * 100_000
    return json.dumps(value).encode()


def _changed(value, rng):
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name, kind = rng.choice(sorted(value)), rng.random()
        changed = {**value, name: _changed(value[name], rng)}
        if kind < 0.15:
            del changed[name]
        elif kind < 0.25:
            changed[f"{name}x"] = value[name]
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    return rng.choice([*_ODD, float("nan"), float("inf")])


def _pickled(*opcodes):
    """A file of torch whose pickle is of these opcodes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"".join(opcodes) + b".")
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/version", "3\n")
        archive.writestr("a/data/0", bytes(8))
    return buffer.getvalue()


def _compressed_zeros():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 28))
    return buffer.getvalue()


def _nan(name):
    state = _detector(_fitted()).state_dict()
    state[name].view(-1)[0] = float("nan")
    return _saved(state)


def corpus():
    """Files that were trouble once, or are made to be: door, name of the fault, bytes."""
    array = b"cbuiltins\nbytearray\n"
    state = _detector(_fitted()).state_dict()
    tensor = [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQK\x00",
    ]
    huge = _pickled(
        *tensor,
        b"(\x8a\x08",
        struct.pack("<q", 2**31),
        b"t(K\x01t\x89ccollections\nOrderedDict\n)RtR",
    )
    tensors = ("tensors", "model", "checkpoint", "moments", "warm start")
    found = [
        (door, "bytearray of 1.8 GB", _pickled(array, b"(J\x00\x00\x00\x6btR")) for door in tensors
    ]
    found += [
        (door, "plain bytearray of 1.8 GB", b"\x80\x02" + array + b"(J\x00\x00\x00\x6btR.")
        for door in tensors
    ]
    found += [(door, "storage of 8 GB", huge) for door in tensors]
    found += [(door, "archive of zeros", _compressed_zeros()) for door in tensors]
    found += [(door, "system", b"cposix\nsystem\n(S'touch traced'\ntR.") for door in tensors]
    found += [
        (door, "system, zipped", _pickled(b"cposix\nsystem\n(S'touch traced'\ntR"))
        for door in tensors
    ]
    found += [
        ("model", f"NaN in {n}", _nan(n))
        for n in ("mixture.log_weights", "backbone.weight", "thresholds")
    ]
    flat = {**state, "mixture.offsets": torch.ones(D)}
    found += [(door, "offsets of one axis", _saved(flat)) for door in ("model", "warm start")]
    found += [
        ("warm start", "a checkpoint", _checkpoint()),
        ("checkpoint", "a model", _saved(state)),
    ]
    names = ("settings", "config", "history", "metrics", "findings", "data set")
    found += [(door, "100,000 brackets", b"[" * 100_000) for door in names]
    found += [
        (door, "a number of 10,000 digits", b'{"a": ' + b"1" * 10_000 + b"}") for door in names
    ]
    found += [(door, "33 MB", b" " * (33 << 20) + b"{}") for door in names]
    found += [(door, "a byte-order mark", b"\xef\xbb\xbf{}") for door in names]
    found += [(door, "not UTF-8", b'{"a": "\xff"}') for door in names]
    found += [("config", "image_size 2^31", _json({"image_size": 2**31}))]
    found += [
        ("settings", "a program", _json({"score": "$__import__('os').system('touch traced')"}))
    ]
    found += [(door, "empty", b"") for door in doors()]
    found += [(door, "HTML", b"<html>not found</html>") for door in doors()]
    return found


def judged(door, path):
    """What is wrong with how a door takes a file, or ""; it refuses in a line with its name."""
    try:
        door.opened(path)
    except Exception as error:
        expected = expected_error(error)
        if expected is None:
            return f"traceback: {type(error).__name__}: {error}"
        text = str(expected)
        if len(text.splitlines()) != 1:
            return f"more than a line: {text[:200]!r}"
        if path.name not in text and path.parent.name not in text and "series" not in text:
            return f"no name of the file: {text[:200]!r}"
    return ""


def campaign(folder, count, seed=0):
    """Faults of mutated inputs, and how many were tried: {door: (tried, [faults])}.

    A child does one after the other and says which; where it dies or hangs, another goes on after
    that one.
    """
    known = doors()
    trials = [(door, fault, content) for door, fault, content in corpus()]
    each = max(1, (count - len(trials)) // len(known) + 1)
    trials += [
        (name, f"seed {seed + i}", mutated(door.content, seed + i))
        for name, door in known.items()
        for i in range(each)
    ]
    tried = dict.fromkeys(known, 0)
    faults = {name: [] for name in known}
    for name, *_ in trials:
        tried[name] += 1
    at = 0
    while at < len(trials):
        at = _some(folder, known, trials, at, faults)
    return {name: (tried[name], faults[name]) for name in known}


def _some(folder, known, trials, start, faults):
    """Try from one trial on, in a child; the number to go on with."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reader)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        _try_all(folder, known, trials, start, writer)
        os._exit(0)
    os.close(writer)
    lines, done = os.fdopen(reader, "rb", buffering=0), start
    buffer, last = b"", time.monotonic()
    os.set_blocking(reader, False)
    while True:
        block = lines.read(65536)
        if block:
            buffer += block
            last = time.monotonic()
            *whole, buffer = buffer.split(b"\n")
            for line in whole:
                number, peak, why = line.decode().split("\t", 2)
                done = int(number) + 1
                name, fault, _ = trials[int(number)]
                if why:
                    faults[name].append(f"{fault}: {why}")
                if int(peak) > GREEDY:
                    faults[name].append(f"{fault}: {int(peak) // 1000} MB of memory")
                    os.kill(child, signal.SIGKILL)  # whose peak would count for the next, too
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid and not block:
            break
        if time.monotonic() - last > 6 * HANGS:  # of a machine that is busy
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            status = None
            break
        time.sleep(0.001)
    if done < len(trials) and status != 0 and status != signal.SIGKILL:
        name, fault, _ = trials[done]
        how = "hangs" if status is None else f"ends the process ({status})"
        faults[name].append(f"{fault}: {how}")
        return done + 1
    return done if done > start or done == len(trials) else start + 1


def _try_all(folder, known, trials, start, writer):
    faulthandler.disable()
    import resource

    for number in range(start, len(trials)):
        name, _, content = trials[number]
        place = Path(folder) / re.sub(r"\W", "_", name)
        place.mkdir(parents=True, exist_ok=True)
        path = place / known[name].name
        path.write_bytes(content)
        began = time.process_time()
        why = judged(known[name], path)
        if not why and time.process_time() - began > HANGS:
            why = f"{time.process_time() - began:.0f} s"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(writer, f"{number}\t{peak}\t{' '.join(why.split())[:400]}\n".encode())
