"""The best model of a training gets the weights of places and the scale of each direction."""

import logging

import pytest
import torch
from monai.data import Dataset, MetaTensor
from monai.transforms import Compose, DeleteItemsd
from torch import nn

from monai_dpmm.engines.completion import ModelCompletion
from monai_dpmm.engines.engines import EMTrainer, LikelihoodEvaluator
from monai_dpmm.engines.handlers import BestModelSaver, ThresholdCalibration, Validation
from monai_dpmm.engines.inferer import AnomalyInferer
from monai_dpmm.engines.slices import SliceDataLoader
from monai_dpmm.errors import InputError
from monai_dpmm.mixture.planes import create_mixture
from monai_dpmm.network.detector import AnomalyDetector
from monai_dpmm.transforms.dictionary import EmbedPatchesd, ExtractSlicesd, NormalizeSlicesd

SIZE = 12


class Backbone(nn.Module):
    """Patches of 2 x 2 pixels: their brightness, a constant, and what differs along one side."""

    patch_size = 2
    embedding_dim = 3

    def forward(self, images):
        patches = nn.functional.avg_pool2d(images[:, :1], 2)
        ramp = nn.functional.avg_pool2d(images[:, :1] * images[:, :1], 2)
        return torch.cat([patches, torch.ones_like(patches), ramp], dim=1)


def scan(seed, *, mirrored=False, spacing=(1, 1, 1)):
    """A body whose left half is dark and right half is bright, along the first axis, with noise."""
    generator = torch.Generator().manual_seed(seed)
    halves = torch.tensor([0.3] * (SIZE // 2) + [0.8] * (SIZE // 2))
    halves = halves.flip(0) if mirrored else halves
    volume = halves[:, None, None] + 0.02 * torch.rand(SIZE, SIZE, SIZE, generator=generator)
    return MetaTensor(volume[None], affine=torch.diag(torch.tensor([*spacing, 1.0])))


def embedded(scans, axes, *, places=True):
    steps = [
        ExtractSlicesd("image", axes),
        NormalizeSlicesd("image", SIZE, 2, percentiles=None),
        EmbedPatchesd("image", Backbone()),
    ]
    steps += [] if places else [DeleteItemsd("place")]
    return Dataset([{"image": one} for one in scans], Compose(steps))


def trained(folder, axes=(2, 0, 1), *, val=None, use_place=None, places=True, **options):
    """A detector, trained and completed in a folder."""
    options = {"place_grid": (6, 6, 6), "variance_floor": 1e-3, **options}
    mixture = create_mixture(len(axes), features=3, components=8, **options)
    detector = AnomalyDetector(Backbone(), mixture, image_size=SIZE)
    healthy = embedded([scan(i) for i in range(4)], axes, places=places)
    train = SliceDataLoader(healthy, 8, shuffle=True)
    val = SliceDataLoader(embedded(val or [scan(i) for i in (5, 6)], axes, places=places), 8)
    saver = BestModelSaver(folder / "model.pt", detector)
    handlers = [ThresholdCalibration(detector), saver]
    evaluator = LikelihoodEvaluator("cpu", val, detector, handlers)
    completion = ModelCompletion(folder / "model.pt", detector, train, val, use_place=use_place)
    EMTrainer("cpu", 3, train, mixture, [Validation(1, evaluator), completion]).run()
    return detector


def test_a_patch_that_exists_on_one_side_only_is_marked_on_the_other(tmp_path):
    detector = trained(tmp_path)
    assert all(bool(one.places.used) for one in detector.mixtures)
    inferer = AnomalyInferer((2, 0, 1))
    usual, other = inferer(scan(9)[None], detector), inferer(scan(9, mirrored=True)[None], detector)
    assert float(other.mean()) > float(usual.mean()) + 0.5
    without = trained(tmp_path / "without", use_place=False)
    assert not any(bool(one.places.used) for one in without.mixtures)
    usual = inferer(scan(9)[None], without)
    other = inferer(scan(9, mirrored=True)[None], without)
    assert float(other.mean()) == pytest.approx(float(usual.mean()), abs=0.2)


def test_scores_of_each_direction_are_standard_on_healthy_validation(tmp_path):
    detector = trained(tmp_path)
    assert detector.thresholds.isnan().all()  # which are those of finished maps
    for number, axis in enumerate((2, 0, 1)):
        alone = SliceDataLoader(embedded([scan(5), scan(6)], axis), 8)
        scores = [detector.patch_scores(batch["image"], number, batch["place"]) for batch in alone]
        assert float(torch.cat(scores).mean()) == pytest.approx(0, abs=0.02)
        assert float(torch.cat(scores).std()) == pytest.approx(1, abs=0.05)


def test_the_file_holds_the_completed_model(tmp_path):
    detector = trained(tmp_path)
    other = AnomalyDetector(
        Backbone(),
        create_mixture(3, features=3, components=8, place_grid=(6, 6, 6)),
        image_size=SIZE,
    )
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    volume = scan(9)[None]
    inferer = AnomalyInferer((2, 0, 1), component_map=True)
    assert torch.equal(inferer(volume, other), inferer(volume, detector))


def test_the_papers_model_is_complete_already(tmp_path):
    detector = trained(tmp_path, (2,), place_grid=None)
    assert detector.keeps_patch_scores
    assert detector.thresholds.isfinite().all()
    assert detector.score_moments.tolist() == [[0, 1]]


def test_counts_are_those_of_all_training_patches(tmp_path):
    detector = trained(tmp_path)
    for mixture in detector.mixtures:
        assert float(mixture.places.counts.sum()) == pytest.approx(4 * SIZE * (SIZE // 2) ** 2)


def test_a_direction_without_validation_slices_has_no_say(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        detector = trained(tmp_path, val=[scan(5, spacing=(1, 1, 5)), scan(6, spacing=(1, 1, 5))])
    assert [one.fitted for one in detector.mixtures] == [True, False, False]
    result = AnomalyInferer((2, 0, 1))(scan(9)[None], detector)
    assert torch.equal(result, AnomalyInferer(2)(scan(9)[None], detector))
    with pytest.raises(InputError, match="direction that suits the scan and the network was"):
        AnomalyInferer((0, 2, 1))(scan(9, spacing=(1, 1, 5))[None], detector)


def test_the_best_model_must_be_there(tmp_path):
    detector = AnomalyDetector(Backbone(), create_mixture(1, features=3), image_size=SIZE)
    with pytest.raises(InputError, match=r"model\.pt: must hold the best model of the training"):
        ModelCompletion(tmp_path / "model.pt", detector, [], [])(None)


def test_maps_of_stored_embeddings_are_those_of_the_backbone(tmp_path):
    detector, volume = trained(tmp_path), scan(9)
    inferer = AnomalyInferer((2, 0, 1), component_map=True)
    items = embedded([volume], (2, 0, 1))[0]
    expected = inferer(volume[None], detector)
    detector.backbone = nn.Identity()  # which nothing may call now
    assert torch.equal(inferer(volume[None], detector, embeddings=items), expected)


def test_a_data_set_without_places_has_none(tmp_path):
    """Its patches would all lie in the middle of the body, where those of a scan do not."""
    detector = trained(tmp_path, use_place=True, places=False)
    assert not any(bool(one.places.used) for one in detector.mixtures)
