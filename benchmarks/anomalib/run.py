"""Anomaly maps of anomalib's models, on the lists of images that this package uses.

Run it in anomalib's own environment, which has this package too (see docs/evaluation.md), and
score what it writes with this package's metrics:

    python benchmarks/anomalib/run.py bmad --model padim --out maps
    python -m monai_dpmm score maps/test bmad --healthy maps/healthy

The model is fitted to the "train" images of `monai_dpmm.scans.datalist`. OUT/test holds the maps of
the test images, OUT/healthy those of the healthy validation images: NAME.npy, float32, (row,
column) at the image's own size, in the images' subfolders where there are several. Scores are the
model's own, not normalised; higher is more anomalous.

Settings are anomalib's defaults, input size included. PaDiM, PatchCore and AnomalyDINO take one
pass; the others are trained for --max-epochs, which has no default. Pictures are read as anomalib
reads them, as 8-bit RGB.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from monai_dpmm.errors import InputError
from monai_dpmm.io.datalist import datalist
from monai_dpmm.io.suffixes import stem

MODELS = {
    "anomalydino": "AnomalyDINO",
    "cfa": "Cfa",
    "cflow": "Cflow",
    "draem": "Draem",
    "padim": "Padim",
    "patchcore": "Patchcore",
    "rd4ad": "ReverseDistillation",
    "stfpm": "Stfpm",
}
ONE_PASS = ("anomalydino", "padim", "patchcore")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", type=Path, help="data set, as the commands of monai_dpmm take")
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the maps, new or empty")
    parser.add_argument("--backbone", help="another feature extractor than anomalib's default")
    parser.add_argument("--no-pretrained", action="store_true", help="random weights: for tests")
    parser.add_argument("--max-epochs", type=int, help="for models that are trained")
    parser.add_argument("--textures", type=Path, help="folder of pictures that DRAEM pastes in")
    parser.add_argument("--batch-size", type=int, default=32, help="of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    trained = args.model not in ONE_PASS
    if trained and (args.max_epochs is None or args.max_epochs < 1):
        parser.error(f"--max-epochs must be at least 1 for {args.model}, got {args.max_epochs}")
    if not trained and args.max_epochs is not None:
        parser.error(f"--max-epochs must not be given for {args.model}, it takes one pass")
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.model != "draem" and args.textures:
        parser.error(f"--textures must not be given for {args.model}, only draem pastes them in")
    if args.model == "draem" and args.backbone:
        parser.error("--backbone must not be given for draem, it has none")
    if args.model == "draem" and not (args.textures and args.textures.is_dir()):
        parser.error(
            "--textures must be a folder of pictures for draem, as dtd/images of"
            " https://www.robots.ox.ac.uk/~vgg/data/dtd (dtd-r1.0.1.tar.gz), got"
            f" {args.textures}"
        )
    return args


def image_lists(dataset: Path) -> dict[str, list[Path]]:
    """Images to fit to ("train") and to map ("healthy", "test"), as this package lists them.

    Raises:
        InputError: see `datalist`, and where an image is no picture.
    """
    sections = {"train": "train", "healthy": "val", "test": "test"}
    lists = {
        name: [Path(str(item["image"])) for item in datalist(dataset, section)]
        for name, section in sections.items()
    }
    for path in (path for paths in lists.values() for path in paths):
        if not path.name.lower().endswith(PICTURES):
            raise InputError(f"{path}: must be a picture ({', '.join(PICTURES)})")
    return lists


def map_paths(images: Sequence[Path], folder: Path) -> list[Path]:
    """Where the map of each image goes: its path below the images' common folder, as .npy."""
    top = Path(os.path.commonpath([path.parent for path in images]))
    return [folder / path.parent.relative_to(top) / f"{stem(path)}.npy" for path in images]


def native_map(anomaly_map: Tensor, shape: tuple[int, int]) -> np.ndarray:
    """A map at an image's size, bilinear, float32: (..., h, w) of one image -> (row, column)."""
    scores = anomaly_map.detach().float().reshape(1, 1, *anomaly_map.shape[-2:])
    resized = interpolate(scores, size=shape, mode="bilinear", align_corners=False)
    return resized[0, 0].cpu().numpy()


def mend_torchvision() -> None:
    """Make torchvision usable where its compiled libraries cannot load.

    So it is with a torchvision that was built for another torch than the one at hand, as CUDA's
    beside a CPU-only one. The operators that its import asks for are declared, nothing here calls
    them (calling them stays an error), and Pillow reads its pictures.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise InputError("torchvision: must be installed, see benchmarks/anomalib/requirements.txt")
    try:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
        import torchvision

        torchvision.io.read_image = _rgb


def _rgb(path: str, mode: object = None) -> Tensor:
    """Picture as torchvision reads it in RGB, uint8: (3, rows, columns)."""
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


_DECLARED: list[torch.library.Library] = []  # operators live as long as their library


@contextlib.contextmanager
def random_weights(backbone: str) -> Iterator[None]:
    """Context in which no model asks for pretrained weights, whatever anomalib's defaults."""
    import timm
    import torchvision

    create, builder = timm.create_model, getattr(torchvision.models, backbone, None)

    def untrained(*args: Any, **kwargs: Any) -> torch.nn.Module:
        return create(*args, **{**kwargs, "pretrained": False})

    def built(weights: object) -> torch.nn.Module:
        return builder(weights=None)

    with mock.patch.object(timm, "create_model", untrained):
        if builder is None:
            yield
        else:
            with mock.patch.object(torchvision.models, backbone, built):
                yield


def create(args: argparse.Namespace) -> torch.nn.Module:
    """Model of anomalib, whose maps are its own scores.

    Raises:
        InputError: where the pretrained weights of its backbone cannot be had.
    """
    import anomalib.models

    kind = getattr(anomalib.models, MODELS[args.model])
    settings = {"post_processor": False, "evaluator": False, "visualizer": False}
    if args.model == "draem":
        return kind(dtd_dir=args.textures.resolve(), **settings)
    name = "encoder_name" if args.model == "anomalydino" else "backbone"
    backbone = args.backbone or inspect.signature(kind).parameters[name].default
    with random_weights(backbone) if args.no_pretrained else contextlib.nullcontext():
        try:
            return kind(**{name: backbone}, **settings)
        except Exception as error:  # the hubs raise whatever their clients raise
            if args.no_pretrained:
                raise
            raise InputError(
                f"{args.model}: needs the pretrained weights of {backbone}, put"
                f" {source(args.model, backbone)}, or give --no-pretrained for a test with random"
                f" ones; got {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            ) from error


def source(model: str, backbone: str) -> str:
    """Where the weights of a backbone are published, and where they are looked for."""
    if model == "cfa":
        import torchvision

        weights = torchvision.models.get_model_weights(backbone).DEFAULT
        return f"{weights.url} into {Path(torch.hub.get_dir()) / 'checkpoints'}"
    import timm
    from huggingface_hub.constants import HF_HUB_CACHE

    config = timm.get_pretrained_cfg(backbone)
    if config is None:
        return f"a backbone that timm has weights of in the place of {backbone}"
    return (
        f"https://huggingface.co/{config.hf_hub_id} into {HF_HUB_CACHE}"
        f" (hf download {config.hf_hub_id}, where there is a network)"
    )


class Pictures(Dataset):
    """Pictures as anomalib reads them, resized; its items."""

    def __init__(self, paths: Sequence[Path], resize: torch.nn.Module) -> None:
        self.paths = list(paths)
        self.resize = resize

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        from anomalib.data import ImageItem
        from anomalib.data.utils import read_image

        path = str(self.paths[index])
        return ImageItem(image=self.resize(read_image(path, as_tensor=True)), image_path=path)


def fit(model: Any, images: Sequence[Path], args: argparse.Namespace, folder: Path) -> None:
    """Fit a model by anomalib's engine, whose own files go into the folder."""
    from anomalib.data import ImageBatch
    from anomalib.engine import Engine
    from lightning import LightningDataModule, seed_everything

    seed_everything(args.seed)
    pictures = Pictures(images, model.pre_processor.transform.transforms[0])
    epochs = {} if args.max_epochs is None else {"max_epochs": args.max_epochs}
    engine = Engine(
        default_root_dir=folder,
        accelerator=args.device.partition(":")[0],
        devices=1,
        enable_progress_bar=False,
        **epochs,
    )
    loader = DataLoader(
        pictures, args.batch_size, shuffle=True, collate_fn=ImageBatch.collate, num_workers=0
    )
    data = LightningDataModule()  # CFA asks for one, the engine for its name
    data.name, data.category = "pictures", None
    data.train_dataloader = lambda: loader
    engine.fit(model, datamodule=data)


def save_maps(model: Any, images: Sequence[Path], folder: Path, device: str) -> None:
    """Write the map of each image, one image in memory at a time."""
    from anomalib.data.utils import read_image

    model.to(device).eval()
    for image, path in zip(images, map_paths(images, folder), strict=True):
        picture = read_image(image, as_tensor=True)
        with torch.inference_mode():
            scores = model(picture[None].to(device)).anomaly_map
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, native_map(scores, tuple(picture.shape[-2:])))


def run(args: argparse.Namespace) -> None:
    """Fit the model and write its maps; OUT appears when they are complete.

    Raises:
        InputError: for a folder that is not empty; see `image_lists` and `create`.
    """
    out = args.out.expanduser().resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{args.out}: must be a new or empty folder")
    lists = image_lists(args.dataset)
    mend_torchvision()
    model = create(args)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".anomalib-", dir=out.parent) as name:
        fit(model, lists["train"], args, Path(name) / "engine")
        for section in ("healthy", "test"):
            save_maps(model, lists[section], Path(name) / "maps" / section, args.device)
        (Path(name) / "maps").replace(out)
    print(f"wrote {len(lists['test'])} maps to {args.out / 'test'}", end=", ")
    print(f"{len(lists['healthy'])} to {args.out / 'healthy'}")


if __name__ == "__main__":
    try:
        run(arguments())
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
