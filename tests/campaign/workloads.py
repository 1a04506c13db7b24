"""Small trainings, inferences, comparisons and stores, and whether what they left is whole."""

import json
import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from monai_dpmm import files, writing
from monai_dpmm.app.cli import main
from monai_dpmm.engines.embedding_store import StoredEmbeddings
from monai_dpmm.errors import one_line_errors
from monai_dpmm.files import file_digest, json_value, load_tensors, sweep
from monai_dpmm.io.datalist import find_images

SMALL = {
    "backbone_architecture": "efficientnet_lite0",
    "image_size": 32,
    "components": 5,
    "max_epochs": 2,
    "slice_axis": 2,
    "slice_step": 2,
    "place_grid": "[2,2,2]",
    "seed": 3,
}
_SHAPE = (14, 16, 10)


def scan(seed, lesion=False):
    """A ball with structure in noise: float32."""
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in _SHAPE), indexing="ij")
    voxels = (x**2 + y**2 + z**2 < 0.8) * (300 + 80 * np.sin(4 * x) + 60 * np.cos(5 * y * z))
    voxels = voxels + random.normal(0, 8, _SHAPE) * (x**2 + y**2 + z**2 < 0.8)
    if lesion:
        voxels[5:8, 6:9, 4:7] += 400
    return voxels.astype(np.float32)


def write_scans(folder, count, lesion=False, first=0):
    """Scans NIfTI files: SCAN_i.nii."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        image = nib.Nifti1Image(scan(i + 100 * lesion, lesion), np.diag([8.0, 8, 8, 1]))
        nib.save(image, folder / f"scan_{i}.nii")
    return folder


def settings(**own):
    """Settings of a small model, for a command line."""
    return [part for name, value in {**SMALL, **own}.items() for part in ("-s", f"{name}={value}")]


def train(root, healthy, *more):
    """Train a small model."""
    quiet()
    main(["train", str(healthy), "-f", str(root), *settings(), *more])


def infer(root, scans, output, *more):
    """Score scans."""
    quiet()
    main(["infer", str(scans), "-f", str(root), "-s", f"output_dir={output}", *more])


def compare(root, dataset, *more):
    """Compare two methods."""
    quiet()
    methods = ["--methods", "padim", "--seeds", "1"]
    main(["compare", str(dataset), "-f", str(root), *settings(), *methods, *more])


def quiet():
    """Nothing that is no concern of a campaign is printed; leftovers count at once as old."""
    warnings.simplefilter("ignore")
    writing._FRESH = -1.0
    files.LEAST = 0  # a disk is full while it is written, not before
    one_line_errors()


class _Embed:
    """What stands for preprocessing and backbone."""

    def __call__(self, item):
        voxels = np.asarray(nib.load(item["image"]).dataobj)
        patches = torch.from_numpy(voxels[:8, :8, :4].reshape(4, 4, 4, 4).copy())
        return {"image": patches}


def store(folder, scans):
    """A store of embeddings without a backbone."""
    items = [{"image": str(path)} for path in sorted(Path(scans).glob("*.nii"))]
    return StoredEmbeddings(items, [_Embed()], folder)


def wrong_store(folder, scans):
    """What is wrong with a store after whatever befell it; it makes again what is not whole."""
    found = store(folder, scans)
    found.embed()
    for i, item in enumerate(found.data):
        if not torch.equal(found[i]["image"], _Embed()(item)["image"]):
            return [f"another embedding of {item['image']}"]
    return leftovers(folder)


def leftovers(folder):
    """Files of killed runs that a later run has not swept."""
    hidden = (path for path in Path(folder).rglob(".*") if path.name != ".")
    return [f"left over: {path.name}" for path in hidden]


def wrong_model(root):
    """What is torn in a training's folder: a run may just have been killed there."""
    models, wrong = Path(root) / "models", []
    sweep(models, {})
    model, beside = models / "model.pt", models / "model.json"
    if model.exists() != beside.exists():
        wrong.append("one of model.pt and model.json")
    if model.exists() and beside.exists():
        if json_value(beside)["model_digest"] != file_digest(model):
            wrong.append("model.pt and model.json are not of one run")
        wrong += _unreadable(load_tensors, model)
    for path, read in (
        (models / "checkpoint.pt", load_tensors),
        (Path(root) / "output/history.json", json_value),
    ):
        wrong += _unreadable(read, path) if path.exists() else []
    return wrong


def _unreadable(read, path):
    try:
        read(path)
    except (OSError, ValueError) as error:
        return [f"torn: {path.name}, {error}"]
    return []


def model_of(root):
    """Tensors and settings of a trained model."""
    settings_ = json.loads((Path(root) / "models/model.json").read_text())
    settings_.pop("model_digest")
    return load_tensors(Path(root) / "models/model.pt"), settings_


def other_model(one, other):
    """What differs between two models, by bits."""
    names = [name for name, value in one[0].items() if not _equal(value, other[0][name])]
    names += [name for name in one[1] if one[1][name] != other[1].get(name)]
    return [f"differs: {name}" for name in names]


def _equal(one, other):
    return one.shape == other.shape and torch.equal(one.nan_to_num(7), other.nan_to_num(7))


def wrong_results(scans, output, reference=None):
    """What is torn or foreign in results of inference; `output` may lie among the scans."""
    wrong = []
    names = {path.name for path in find_images(scans)}
    wrong += [f"taken for a scan: {n}" for n in sorted(names) if not n.startswith("scan_")]
    wrong += [f"taken for a scan: {n}" for n in sorted(names) if n.count("_") > 1]
    for findings in Path(output).rglob("*_findings.json"):
        if any(part.startswith(".") for part in findings.relative_to(output).parts):
            continue
        wrong += _unreadable(json_value, findings)
        for end in ("anomaly", "component", "mask"):
            path = findings.with_name(findings.name.replace("findings.json", f"{end}.nii.gz"))
            try:
                voxels = np.asarray(nib.load(path).dataobj)
            except Exception as error:
                wrong.append(f"torn: {path.name}, {error!r}")
                continue
            if reference is not None and not np.array_equal(voxels, reference[path.name]):
                wrong.append(f"other voxels: {path.name}")
    page = Path(output) / "report/report.html"
    if page.exists():
        text = page.read_text()
        missing = [n for n in ("metrics.json",) if not (page.parent / n).exists()]
        missing += [p for p in _addresses(text) if not (page.parent / p).exists()]
        wrong += [f"a page without {name}" for name in missing]
    return wrong


def not_reported(scans, output):
    """Scans that a report of several runs lacks."""
    report = json_value(Path(output) / "report/metrics.json")
    shown = {subject["name"] for subject in report["subjects"]}
    return [
        f"not in the report: {path.stem}" for path in find_images(scans) if path.stem not in shown
    ]


def _addresses(page):
    import re

    return set(re.findall(r'(?:src|href)="((?:figures|viewers)/[^"#]+)"', page))


def results_of(output):
    """Voxels of all results by name."""
    return {
        path.name: np.asarray(nib.load(path).dataobj) for path in Path(output).rglob("*.nii.gz")
    }


def copied(source, target):
    """A folder anew."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
