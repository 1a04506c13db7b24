"""Settings of what a model is: scans and slices, backbone, mixture; the others are `settings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_dpmm.app import rules
from monai_dpmm.app.rules import NameIn, Rule, Setting, choice, either, list_of, number

__all__ = ["MODEL_SECTIONS"]


def _scan(name: str, default: Any, rule: Rule, help_: str) -> Setting:
    """A setting of what the backbone sees: remembered, and embeddings follow from it."""
    return Setting(name, default, rule, help_, remembered=True, embeds=True)


_CT = choice("brain", "liver", "lung")
_GRID = list_of("[h, w]", rules.BINS, 2)
_AXES = either(rules.AXIS, list_of("a list of them", rules.AXIS))
_STEP = number("a number above 0, 1 at most", lambda v: 0 < v <= 1)

MODEL_SECTIONS: Mapping[str, tuple[Setting, ...]] = {
    "Scans and slices": (
        _scan(
            "orientation",
            "PLI",
            rules.ORIENTATION,
            "axes that scans are turned to: towards Posterior, Left, Inferior; axis 2 is then"
            " axial. Pictures stay upright",
        ),
        _scan(
            "slice_axis",
            [2, 0, 1],
            _AXES,
            "axes that slices are perpendicular to, each with a mixture of its own; of several"
            " those are taken that suit the scan, one alone if it has thick slices",
        ),
        _scan(
            "slice_spacing_mm",
            0,
            rules.NONNEGATIVE,
            "embed slices at most so far apart, for maps that are interpolated between them; 0"
            " embeds all",
        ),
        Setting(
            "slice_step",
            1,
            rules.COUNT,
            "train on every n-th of these; inference takes all",
            embeds=True,
        ),
        _scan(
            "percentiles",
            "automatic",
            either(rules.PERCENTILES, choice("automatic"), rules.NONE),
            "of the foreground's intensities, which become 0 and 1; automatic ones make the median"
            " of a body with air around it 0.3, which hardly knows lesions, and are `[0.5,99.5]` of"
            " a picture without",
        ),
        _scan(
            "window",
            None,
            either(rules.ASCENDING, _CT, rules.NONE),
            "fixed intensities instead of percentiles, or the name of a CT window in HU",
        ),
        _scan(
            "margin",
            0,
            either(rules.NONNEGATIVE, list_of("[below, above] from 0 on", rules.NONNEGATIVE, 2)),
            "how much further than the percentiles the range reaches, as a multiple of the distance"
            " between them; `percentiles=[2,50]` with `margin=[0,2.333]` maps the median to 0.3",
        ),
        _scan(
            "mask_foreground",
            True,
            rules.FLAG,
            "find the body and set the air and padding around it to the minimum",
        ),
        _scan(
            "crop_to_body",
            False,
            rules.FLAG,
            "cut scans to the box around what is above 0: more pixels of the body at an image size",
        ),
        _scan("bias_correction", False, rules.FLAG, "divide by the bias field that N4 finds"),
        _scan(
            "image_size",
            448,
            rules.PIXELS,
            "pixels of a slice's shorter side as the backbone sees it, a multiple of its patch"
            " size",
        ),
        _scan(
            "ignore_background",
            True,
            rules.FLAG,
            "leave out patches without a voxel above 0; they score 0",
        ),
        _scan(
            "patch_grid",
            None,
            either(_GRID, rules.NONE),
            "what the features are brought to, whatever the slice's aspect ratio (RESC: `[32,32]`)",
        ),
        Setting(
            "val_fraction",
            0.2,
            rules.SHARE,
            "share of validation scans, where the data set has no such folder",
        ),
    ),
    "Backbone": (
        _scan(
            "backbone_architecture", "dinov2_vits14", rules.TEXT, "see [backbones](backbones.md)"
        ),
        _scan(
            "backbone_blocks",
            None,
            either(list_of("a list of numbers from 1 on", rules.COUNT), rules.NONE),
            "of DINOv2, the blocks whose tokens are taken; the last if null",
        ),
        _scan(
            "backbone_precision",
            "float32",
            choice("float32", "bfloat16", "float16"),
            "of the backbone's matrix products: `bfloat16` and `float16` are for GPUs that are"
            " faster so, see [large data sets](scale.md)",
        ),
        Setting(
            "backbone_weights",
            "@backbone_architecture",
            rules.TEXT,
            "a name, hub repository, folder or file",
            embeds=True,
            default_text="as the architecture",
        ),
        Setting(
            "embedding_batch_size",
            8,
            rules.COUNT,
            "slices that go through the backbone at a time: memory against speed",
        ),
    ),
    "Mixture": (
        Setting("components", 500, rules.COMPONENTS, "K, the truncation", remembered=True),
        Setting(
            "component_kind",
            "diagonal",
            NameIn("mixture.dpmm", "COMPONENT_KINDS"),
            "covariance of Gaussian components, or components on the sphere",
            remembered=True,
        ),
        Setting(
            "place_grid",
            [10, 8, 8],
            either(list_of("three numbers of bins", rules.BINS, 3), rules.NONE),
            "bins of the body's box in which components have weights of their own; null for none",
            remembered=True,
        ),
        Setting(
            "use_place",
            None,
            either(rules.FLAG, rules.NONE),
            "ask where a patch is; healthy validation patches decide if null",
        ),
        Setting(
            "variance_floor",
            None,
            either(rules.POSITIVE, rules.NONE),
            "ε; null is 1e-6, for `full` and the offline backbones 1e-3",
        ),
        Setting(
            "initialization",
            "random",
            NameIn("mixture.initialization", "INITIALIZATIONS"),
            "means at the start: patches drawn uniformly, or by k-means++",
        ),
        Setting(
            "initial_weights",
            "beta",
            NameIn("mixture.initialization", "INITIAL_STICKS"),
            "weights at the start: by sticks, or all the same",
        ),
        Setting("concentration", 2.0, rules.POSITIVE, "alpha at the start; it is learnt"),
        Setting(
            "schedule",
            "ema",
            NameIn("mixture.em", "STEP_SIZES"),
            "of the step size: `ema` is `step_size`, `exp` is t^(-`step_size`), `none` is 1",
        ),
        Setting("step_size", 0.2, _STEP, "how fast the moments forget"),
        Setting(
            "score",
            "cosine",
            NameIn("mixture.scores", "SCORES"),
            "what the map shows, see [the method](method.md)",
            remembered=True,
        ),
        Setting(
            "smoothing_mm",
            3,
            rules.NONNEGATIVE,
            "sigma of a Gaussian over the map, within the foreground; pixels for pictures",
            remembered=True,
        ),
        Setting(
            "subtract_baseline",
            True,
            rules.FLAG,
            "take the map's median over the foreground off, and bring the slices of a volume to"
            " one median",
            remembered=True,
        ),
    ),
}
