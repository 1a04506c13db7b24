"""What benchmarks measure: an EM step, scoring, a whole volume, and what cannot be avoided."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from timing import STATM, Clock, in_turn, median_ratio, peak, return_freed_blocks
from torch import Tensor
from torch.nn import functional as F

from monai_dpmm.mixture.dpmm import DPMM, ComponentKind
from monai_dpmm.mixture.planes import create_mixture
from monai_dpmm.mixture.precision import full_float32
from monai_dpmm.network.backbones.registry import create_backbone
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.network.geometry import prepare_slices, upsample_scores

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

SURVIVING = 140  # components of 500, as in the paper
_STAGES = {
    "resizing and normalisation": "embed",
    "backbone": "embed",
    "mixture": "score",
    "upsampling and stacking": "put back on the grid",
    "SplitDimd": "put back on the grid",
    "Invertd": "put back on the grid",
    "RefineAnomalyd": "smooth, less baseline",
    "ReadRequestd": "threshold and findings",
    "CheckScand": "threshold and findings",
    "CheckBaselined": "threshold and findings",
    "ThresholdAnomalyd": "threshold and findings",
    "ImageScored": "threshold and findings",
    "AnomalyFindingsd": "threshold and findings",
    "SaveImageResultsd": "save",
    "AnswerRequestd": "save",
}

__all__ = [
    *("StepSize", "clustered", "fresh_step_memory", "make_stand_in", "products", "scoring_cost"),
    *("stand_in_detector", "started", "step_cost", "volume_clock", "volume_cost"),
]


class StepSize(NamedTuple):
    """Of an EM step: N patches of D features, K components; the paper's by default."""

    patches: int = 12_288
    features: int = 384
    components: int = 500
    covariance: ComponentKind = "diagonal"


def clustered(patches: int, features: int, clusters: int = 150, seed: int = 0) -> Tensor:
    """Unit-norm patches around `clusters` unit prototypes: (N, D)."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(clusters, features, generator=generator), dim=1)
    label = torch.randint(clusters, (patches,), generator=generator)
    noise = torch.randn(patches, features, generator=generator)
    return F.normalize(centres[label] + 0.5 * noise / features**0.5, dim=1)


def started(
    x: Tensor, components: int, covariance: ComponentKind = "diagonal", steps: int = 0
) -> DPMM:
    """A mixture started from patches (N, D) and fitted for a few steps, on their device."""
    model = DPMM(x.shape[1], components, component_kind=covariance).to(x.device)
    model.initialize(x)
    for _ in range(steps):
        model.step(x)
    return model


def products(x: Tensor, components: int) -> Callable[[], None]:
    """The four matrix products of a step on patches (N, D), to call.

    (N, D) @ (D, K) twice, for the log-densities, and (K, N) @ (N, D) twice, for the moments, in
    full float32 and into storage that is there already.
    """
    generator = torch.Generator().manual_seed(1)
    slope = torch.randn(x.shape[1], components, generator=generator).to(x.device)
    r = torch.softmax(torch.randn(len(x), components, generator=generator), dim=1).to(x.device)
    joint = x.new_empty(len(x), components)
    moment = x.new_empty(components, x.shape[1])

    def run() -> None:
        with full_float32():
            for _ in range(2):
                torch.mm(x, slope, out=joint)
                torch.mm(r.T, x, out=moment)

    return run


def step_cost(size: StepSize, device: torch.device, repeats: int) -> dict[str, Any]:
    """Time of one EM step over that of its four matrix products, and its memory.

    "ratio", "memory_mb" (see `fresh_step_memory`), "input_mb", and on CUDA "step_ms" too.
    """
    x = clustered(size.patches, size.features).to(device)
    model = started(x, size.components, size.covariance, steps=3)
    runs = {"products": products(x, size.components), "step": lambda: model.step(x)}
    times = in_turn(runs, device, repeats)
    return {
        **size._asdict(),
        "ratio": median_ratio(times, "step", "products"),
        "memory_mb": fresh_step_memory(size, device, torch.get_num_threads()),
        "input_mb": size.patches * size.features * 4 / 1e6,
        **_milliseconds(times, "step", device),
    }


def fresh_step_memory(size: StepSize, device: torch.device, threads: int) -> float | None:
    """Highest memory during a step above that before it, MB, in a process of its own.

    Input and mixture are there before, and a tiny step has loaded the libraries. On the CPU it is
    the resident set (None where the system does not tell), with freed blocks given back at once
    (where the C library can, see `return_freed_blocks`), on CUDA what PyTorch's allocator held.
    """
    if device.type == "cpu" and not STATM.exists():
        return None
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_step_memory, size, device.type, threads).result()


def _step_memory(size: StepSize, device: str, threads: int) -> float:
    return_freed_blocks()
    torch.set_num_threads(threads)
    x = clustered(size.patches, size.features).to(device)
    model = started(x, size.components, size.covariance)
    model.step(x[:64])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model.step(x)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    return peak(lambda: [model.step(x) for _ in range(3)])


def stand_in_detector(
    architecture: str,
    components: int,
    image_size: int,
    place_grid: Sequence[int] | None = None,
    planes: int = 1,
) -> AnomalyDetector:
    """Detector of the real sizes with random weights, which take the time that trained ones do.

    With a `place_grid` it asks where patches are; of several planes each has a mixture.
    """
    backbone = create_backbone(architecture)
    generator = torch.Generator().manual_seed(0)
    state = backbone.state_dict()
    for name, weight in state.items():
        if weight.ndim > 1:  # activations neither vanish nor grow
            torch.nn.init.normal_(weight, 0, weight[0].numel() ** -0.5, generator)
        elif weight.is_floating_point():
            weight.fill_(0.0 if name.endswith(("bias", "mean")) else 1.0)
    backbone.load_state_dict(state)
    detector = AnomalyDetector(
        backbone,
        create_mixture(
            planes, features=backbone.embedding_dim, components=components, place_grid=place_grid
        ),
        image_size=image_size,
    )
    make_stand_in(detector)
    for mixture in detector.mixtures:
        if (places := mixture.places) is not None:
            places.counts.copy_(torch.rand(places.counts.shape, generator=generator))
            places.used.fill_(True)
    return detector


def make_stand_in(detector: AnomalyDetector) -> None:
    """Give a detector mixtures of random prototypes, 140 at most surviving, and thresholds."""
    first = detector.mixtures[0]
    generator = torch.Generator().manual_seed(0)
    count = (max(4 * first.components, 1000), first.features)
    patches = F.normalize(torch.randn(count, generator=generator), dim=1)
    left = min(SURVIVING, first.components)
    for mixture in detector.mixtures:
        mixture.initialize(patches)
        mixture.log_weights[:left] = -torch.log(torch.tensor(float(left)))
        mixture.log_weights[left:] = -torch.inf
    detector.calibrate(detector.patch_scores(patches))


def scoring_cost(
    detector: AnomalyDetector, slices: Tensor, device: torch.device, repeats: int
) -> dict[str, Any]:
    """Time of scoring and upsampling slices (S, C, H, W) over that of the backbone's forward pass.

    "share", and on CUDA "forward_ms" of all slices too.
    """
    detector, slices = detector.to(device), slices.to(device)
    images = prepare_slices(slices, detector.image_size, detector.patch_size)
    embeddings = detector.embed(slices)
    places = torch.rand(*embeddings.shape[:-1], 3, device=device)  # no cost where nobody asks

    def scored() -> Tensor:
        scores = detector.patch_scores(embeddings, 0, places)
        return upsample_scores(scores, slices.shape[-2:])

    runs = {"forward": lambda: detector.backbone(images), "scoring": scored}
    times = in_turn(runs, device, repeats)
    share = median_ratio(times, "scoring", "forward")
    return {"share": share, **_milliseconds(times, "forward", device)}


@torch.no_grad()
def volume_clock(
    parser: ConfigParser, scan: str, device: torch.device, memory: Callable[[], int] | None = None
) -> Clock:
    """Clock after every stage of the inference of one scan, once each, in their order.

    Args:
        parser: of the config inference.json with the model's settings, on that device.
        scan: file or folder.
        device: of the network.
        memory: see `Clock`.
    """
    clock, network = Clock(device, memory), parser.get_parsed_content("network")
    if device.type == "cuda":  # what the first call there waits for is none of the scan's
        network.maps(torch.zeros(1, 1, 64, 64, device=device))
    item: Any = {"image": scan}
    for transform in parser.get_parsed_content("preprocessing").transforms:
        item = clock(type(transform).__name__, transform)(item)
    network.backbone.forward = clock("backbone", network.backbone.forward)
    network.embed = clock("resizing and normalisation", network.embed)
    network.nearest = clock("mixture", network.nearest)
    infer = clock("upsampling and stacking", parser.get_parsed_content("inferer"))
    item["pred"] = infer(item["image"][None].to(device), network)[0]
    for transform in parser.get_parsed_content("postprocessing").flatten().transforms:
        item = clock(type(transform).__name__, transform)(item)
    return clock


def volume_cost(parser: ConfigParser, scan: str, device: torch.device) -> dict[str, Any]:
    """Share of each stage of one scan's inference, and what all take over the embedding alone.

    "shares" by stage, "to_embedding", and on CUDA "total_ms" too.
    """
    seconds = volume_clock(parser, scan, device).seconds
    total = sum(seconds.values())
    shares = dict.fromkeys(["load", *_STAGES.values()], 0.0)
    for name, spent in seconds.items():
        shares[_STAGES.get(name, "load")] += spent / total
    times = {"total": [total]}
    return {
        "scan": str(scan),
        "shares": shares,
        "to_embedding": 1 / shares["embed"],
        **_milliseconds(times, "total", device),
    }


def _milliseconds(
    times: dict[str, list[float]], name: str, device: torch.device
) -> dict[str, float]:
    """Median time; of a GPU only, since other work on a CPU has too great a say in it."""
    return {f"{name}_ms": 1e3 * statistics.median(times[name])} if device.type == "cuda" else {}
