"""The network of the bundle: slices in, anomaly maps out, the frozen backbone inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_dpmm.errors import InputError
from monai_dpmm.mixture.checks import plain_tensor
from monai_dpmm.mixture.dpmm import DPMM
from monai_dpmm.mixture.planes import PlaneMixtures, mixture_of, mixtures
from monai_dpmm.mixture.precision import is_traced
from monai_dpmm.mixture.scores import ScoreKind
from monai_dpmm.network.exports import warn_of_what_is_left_out
from monai_dpmm.network.geometry import (
    foreground_patches,
    like_input,
    prepare_slices,
    upsample_components,
    upsample_scores,
)
from monai_dpmm.network.thresholds import DEFAULT_RATES, threshold_of, thresholds_at

__all__ = ["AnomalyDetector", "embed_patches"]


@torch.no_grad()
def embed_patches(
    backbone: nn.Module,
    images: Tensor,
    *,
    ignore_background: bool = False,
    unit_norm: bool = True,
    patch_grid: Sequence[int] | None = None,
) -> Tensor:
    """Patch embeddings: (S, 3, H', W') on ImageNet's scale -> (S, h, w, D), float32.

    Args:
        backbone: module (S, 3, H', W') -> (S, D, h, w).
        images: of `prepare_slices`.
        ignore_background: patches without a voxel above 0 get the zero vector, which training
            leaves out and scoring takes as no anomaly.
        unit_norm: scale each embedding to unit norm, as the paper does.
        patch_grid: (h, w) that the backbone's features are brought to bilinearly first, whatever
            their own; None keeps these.

    Raises:
        ValueError: for features that are no (S, D, h, w), or a grid of no positive whole numbers.
    """
    grid = _grid(patch_grid)
    features = backbone(images)
    if features.ndim != 4 or features.shape[0] != images.shape[0]:
        raise InputError(
            "backbone must map (S, 3, H, W) to (S, D, h, w), got shape "
            f"{tuple(features.shape)} for images of shape {tuple(images.shape)}"
        )
    features = features.float()
    if grid is not None:
        features = F.interpolate(features, size=grid, mode="bilinear", align_corners=False)
    embeddings = features.movedim(1, -1)
    if unit_norm:
        embeddings = F.normalize(embeddings, dim=-1)
    if ignore_background:
        there = foreground_patches(images, (int(features.shape[2]), int(features.shape[3])))
        embeddings = embeddings * there.unsqueeze(-1)
    return embeddings


class AnomalyDetector(nn.Module):
    """Anomaly maps of slices: (S, C, H, W) in [0, 1] -> (S, 1, H, W), larger = more anomalous.

    Slices are resized to the backbone's input, embedded, scored against the mixture's prototypes
    (paper, Eq. 11) and the patch scores brought bilinearly to the slice's own pixels (Sec. 2.2).
    The backbone, the mixture and the calibrated thresholds are one state dict, so a saved model
    needs no download.

    Beyond the paper, slices of several directions have mixtures of their own, whose scores are
    standardised by those of healthy validation patches, and a mixture with a `place_grid` may ask
    where in the body a patch is; `monai_dpmm.AnomalyInferer` gives direction and places.

    Args:
        backbone: frozen module (S, 3, H', W') -> (S, D, h, w); its attribute `patch_size`, where
            it has one, is what H' and W' are multiples of.
        mixture: the model of normality, over the backbone's D features; `PlaneMixtures` for
            several directions.
        image_size: pixels of a slice's shorter side as the backbone sees it.
        score: anomaly score of a patch, see `DPMM.nearest`.
        ignore_background: patches without a voxel above 0 get the lowest score (0 for distances);
            train with the same choice.
        mask_foreground: voxels of 0 are air, whose map is lowest, see `MaskForeground`; train with
            the same choice.
        patch_grid: (h, w) of the patches, see `embed_patches`; train with the same choice.
        refined: maps are smoothed or lose their baseline afterwards, see `RefineAnomalyd`.
        level_slices: bring the slices of a volume to one median, see `levelled`.
        false_positive_rates: rates at which thresholds are kept, fractions of healthy patches, or
            of healthy foreground voxels of finished maps.

    Attributes:
        thresholds: buffer (R,), score above which a patch or voxel is anomalous, one for each rate;
            NaN until calibrated.
        score_moments: buffer (P, 2), mean and standard deviation of healthy patches' scores in each
            of P directions; a single direction is not standardised.
    """

    thresholds: Tensor
    false_positive_rates: Tensor
    score_moments: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        mixture: DPMM | PlaneMixtures,
        *,
        image_size: int = 448,
        score: ScoreKind = "cosine",
        ignore_background: bool = False,
        mask_foreground: bool = False,
        patch_grid: Sequence[int] | None = None,
        refined: bool = False,
        level_slices: bool = False,
        false_positive_rates: Sequence[float] = DEFAULT_RATES,
    ) -> None:
        super().__init__()
        features = mixture_of(mixture, 0).features
        dim = getattr(backbone, "embedding_dim", features)
        if dim != features:
            raise InputError(
                f"mixture must have the backbone's {dim} features, got features={features}"
            )
        rates = torch.tensor(sorted(false_positive_rates), dtype=torch.float64)
        if rates.numel() == 0 or rates[0] <= 0 or rates[-1] >= 1:
            raise InputError(
                f"false_positive_rates must lie in (0, 1), got {list(false_positive_rates)}"
            )
        self.backbone = backbone
        self.mixture = mixture
        self.image_size = image_size
        self.score: ScoreKind = score
        self.ignore_background = ignore_background
        self.mask_foreground = mask_foreground
        self.patch_grid = _grid(patch_grid)
        self.refined = refined
        self.level_slices = level_slices
        self.register_buffer("false_positive_rates", rates)
        self.register_buffer("thresholds", torch.full(rates.shape, float("nan")))
        moments = torch.tensor([[0.0, 1.0]]).repeat(len(self.mixtures), 1)
        self.register_buffer("score_moments", moments)
        self.register_load_state_dict_pre_hook(_earlier)

    @property
    def patch_size(self) -> int:
        """What the sides of the backbone's input must be multiples of, pixels."""
        return int(getattr(self.backbone, "patch_size", 1))

    @property
    def mixtures(self) -> tuple[DPMM, ...]:
        """The mixtures of all directions."""
        return mixtures(self.mixture)

    @property
    def keeps_patch_scores(self) -> bool:
        """Whether finished maps are those of patches, as the paper's are.

        Then thresholds hold that were taken on patches (Table 2). Otherwise they are taken on the
        finished maps of healthy scans.
        """
        (first, *others) = self.mixtures
        placed = getattr(first, "places", None) is not None
        return not (self.refined or self.level_slices or others or placed)

    def forward(self, slices: Tensor, direction: int = 0, places: Tensor | None = None) -> Tensor:
        """Anomaly maps of slices in one direction: (S, C, H, W) in [0, 1] -> (S, 1, H, W), float32.

        Args:
            slices: of one direction; the maps of a MetaTensor are one, with its metadata.
            direction: its number. An export has the first, and no places.
            places: of patches (S, h, w, 3), see `patch_places`.
        """
        if torch.jit.is_tracing():
            warn_of_what_is_left_out(self.mixtures, places)
        scores = self.patch_scores(self.embed(slices), direction, places)
        return like_input(upsample_scores(scores, slices.shape[-2:]), slices)

    def maps(self, slices: Tensor, direction: int = 0, places: Tensor | None = None) -> Tensor:
        """Anomaly map and component map: (S, C, H, W) in [0, 1] -> (S, 2, H, W), float32.

        Channel 1 is the index of the prototype nearest to each pixel's patch plus 1 (0 is left
        for "no patch here", which viewers take as background).
        """
        maps = self.maps_of(self.embed(slices), slices.shape[-2:], direction, places)
        return like_input(maps, slices)

    def maps_of(
        self, embeddings: Tensor, shape: Any, direction: int = 0, places: Tensor | None = None
    ) -> Tensor:
        """The `maps` of embedded slices of a shape (H, W): (S, h, w, D) -> (S, 2, H, W)."""
        scores, components = self.nearest(embeddings, direction, places)
        return torch.cat(
            [upsample_scores(scores, shape), upsample_components(components + 1, shape)], dim=1
        )

    def embed(self, slices: Tensor) -> Tensor:
        """Unit-norm patch embeddings: (S, C, H, W) in [0, 1] -> (S, h, w, D)."""
        x = prepare_slices(plain_tensor("slices", slices), self.image_size, self.patch_size)
        return embed_patches(
            self.backbone, x, ignore_background=self.ignore_background, patch_grid=self.patch_grid
        )

    def nearest(
        self, embeddings: Tensor, direction: int = 0, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score of each patch and the component that gives it: (..., D) -> (...), (...) int64.

        The zero vector (background) gets the score that none is below, 0 unless scores are
        log-likelihoods or standardised, and the component -1.
        """
        patches, grid = embeddings.flatten(0, -2), embeddings.shape[:-1]
        there = patches.any(dim=-1)
        mixture = mixture_of(self.mixture, direction)
        u: tuple[Tensor, ...] = ()
        if places is not None and _asks_where(mixture):
            u = (places.to(patches).flatten(0, -2),)
        lowest = mixture.lowest_score(self.score)
        if is_traced():  # whose graph must not depend on which patches are background
            scores, components = mixture.nearest(patches, self.score, *u)
            scores, components = scores.where(there, lowest), components.where(there, -1)
        else:
            scores = lowest.expand(len(patches)).clone()
            components = scores.new_full(scores.shape, -1, dtype=torch.int64)
            own = (one[there] for one in u)
            scores[there], components[there] = mixture.nearest(patches[there], self.score, *own)
        if len(self.mixtures) > 1:
            mean, deviation = self.score_moments[direction]
            scores = (scores - mean) / deviation
        return scores.view(grid), components.view(grid)

    def patch_scores(
        self, embeddings: Tensor, direction: int = 0, places: Tensor | None = None
    ) -> Tensor:
        """Anomaly score of each patch, see `nearest`: (..., D) -> (...)."""
        return self.nearest(embeddings, direction, places)[0]

    @torch.no_grad()
    def calibrate(self, patch_scores: Tensor) -> None:
        """Set the thresholds from the scores of healthy validation patches, any shape.

        Thresholds are taken on patches, before upsampling, as the paper does (Table 2).
        """
        self.thresholds.copy_(thresholds_at(patch_scores, self.false_positive_rates))

    @property
    def thresholds_by_rate(self) -> dict[str, float]:
        """Thresholds by false-positive rate, as text ("0.01"); NaN before `calibrate`."""
        rates = [f"{rate:g}" for rate in self.false_positive_rates.tolist()]
        return dict(zip(rates, self.thresholds.tolist(), strict=True))

    def threshold(self, false_positive_rate: float) -> Tensor:
        """Score above which a patch is anomalous at a calibrated rate: a 0-d tensor.

        Raises:
            ValueError: where no threshold is kept for the rate.
            RuntimeError: before `calibrate`.
        """
        value = threshold_of(self.thresholds_by_rate, false_positive_rate)
        return self.thresholds.new_tensor(value)


def _asks_where(mixture: nn.Module) -> bool:
    """Whether scores depend on place; those of what stands in for a mixture never do."""
    places = getattr(mixture, "places", None)
    return places is not None and bool(places.used)


def _earlier(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Complete a state dict of before there were directions and places.

    Its thresholds are of patches, and hold for no other maps.
    """
    if f"{prefix}score_moments" in state:
        return
    detector = cast(AnomalyDetector, module)
    for name, value in detector.state_dict().items():
        if name == "score_moments" or ".places." in name:
            state.setdefault(prefix + name, value)
    if not detector.keeps_patch_scores and f"{prefix}thresholds" in state:
        state[f"{prefix}thresholds"] = torch.full_like(state[f"{prefix}thresholds"], float("nan"))


def _grid(patch_grid: Sequence[int] | None) -> tuple[int, int] | None:
    """The grid, checked."""
    if patch_grid is None:
        return None
    sides = [side for side in patch_grid if isinstance(side, int) and side > 0]
    if len(patch_grid) != 2 or len(sides) != 2:
        raise InputError(f"patch_grid must be two positive whole numbers, got {patch_grid}")
    return sides[0], sides[1]
