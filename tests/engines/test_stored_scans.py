"""Calibration and evaluation take a scan's embeddings from the store of training."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import list_data_collate
from workflows import DEFAULTS, run_bundle

from monai_dpmm import PrepareEmbedded, StoredEmbeddings, numbered_scans
from monai_dpmm.app.workflows import PLANS, merged_config, planned

pytestmark = pytest.mark.slow  # a model of three directions is trained


def config_of(command, root, cohort, **values):
    values = {"bundle_root": str(root), "dataset_dir": str(cohort), **values}
    return merged_config(planned(PLANS[command][0], [], root / "models"), values)


def mapped(parser, make):
    """Maps of the first scan of a workflow, its label, and how often the backbone ran."""
    network, calls = parser.get_parsed_content("network"), []
    forward = network.backbone.forward
    network.backbone.forward = lambda x: calls.append(len(x)) or forward(x)
    item = parser.get_parsed_content("dataset")[0]
    prepare = PrepareEmbedded(parser.get_parsed_content("embeddings"), make=make)
    image, label, args, kwargs = prepare(list_data_collate([item]), "cpu")
    found = parser.get_parsed_content("inferer")(image, network, *args, **kwargs)
    network.backbone.forward = forward
    return found, label, len(calls)


def test_a_calibration_finds_the_embeddings_of_the_training(trained_by_default, cohort, tmp_path):
    parser = config_of("calibrate", trained_by_default, cohort)
    stored = parser.get_parsed_content("embeddings")
    assert len(stored) == 2
    assert all(stored.path(number).is_file() for number in range(2))
    found, label, calls = mapped(parser, make=False)
    assert label is None
    assert calls == 0
    elsewhere = config_of("calibrate", trained_by_default, cohort, embedding_dir=str(tmp_path))
    expected, _, calls = mapped(elsewhere, make=False)
    assert calls > 0
    assert list(tmp_path.iterdir()) == []  # nothing is kept that was not asked for
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_evaluation_keeps_what_it_embeds_where_it_is_asked_to(
    trained_by_default, cohort, tmp_path
):
    parser = config_of("evaluate", trained_by_default, cohort, embedding_dir=str(tmp_path))
    expected, label, calls = mapped(parser, make=False)
    assert label.any()
    assert calls > 0
    assert mapped(parser, make=True)[2] > 0
    found, _, calls = mapped(parser, make=True)
    assert calls == 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def trained_on_some(cohort, tmp_path_factory):
    """Root of a model whose slices are 10 mm apart, in scans of 5 mm cut to their body."""
    root = tmp_path_factory.mktemp("some")
    settings = DEFAULTS | {"slice_step": 1, "slice_spacing_mm": 10, "crop_to_body": "$True"}
    run_bundle("training", ["train"], bundle_root=root, dataset_dir=cohort, **settings)
    return root


def test_scans_that_are_left_out_are_not_embedded_again(trained_on_some):
    assert len(list((trained_on_some / "embeddings").glob("*.safetensors"))) == 5  # 3 + 2 scans
    model = json.loads((trained_on_some / "models/model.json").read_text())
    assert model["healthy_scans"]["left_out"] == 3
    assert (model["slice_spacing_mm"], model["crop_to_body"]) == (10, True)


def test_the_backbone_gets_every_second_slice_and_the_map_is_whole(
    trained_on_some, cohort, tmp_path
):
    half = config_of("evaluate", trained_on_some, cohort)
    whole = config_of("evaluate", trained_on_some, cohort, slice_spacing_mm=0)
    found, _, calls = mapped(half, make=False)
    every, _, all_calls = mapped(whole, make=False)
    assert calls < 0.6 * all_calls
    assert found.shape == every.shape
    there = (found[0, 1] > 0) & (every[0, 1] > 0)
    pair = torch.stack([found[0, 0][there], every[0, 0][there]])
    assert float(pair.corrcoef()[0, 1]) > 0.8
    expected, _, _ = mapped(
        config_of("evaluate", trained_on_some, cohort, embedding_dir=str(tmp_path)), make=True
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_results_of_a_cut_scan_lie_on_its_whole_grid(trained_on_some, cohort, tmp_path):
    scan = cohort / "test/images/test_000.nii.gz"
    run_bundle(
        "run",
        ["inference", str(trained_on_some / "models/model.json")],
        bundle_root=trained_on_some,
        dataset_dir=scan,
        output_dir=tmp_path,
    )
    anomaly, component = (
        nib.load(next(tmp_path.rglob(f"test_000_{kind}.nii.gz")))
        for kind in ("anomaly", "component")
    )
    assert anomaly.shape == nib.load(scan).shape
    np.testing.assert_allclose(anomaly.affine, nib.load(scan).affine)
    values, there = anomaly.get_fdata(), component.get_fdata() > 0
    assert 0.05 < there.mean() < 0.8
    assert values[~there].max() <= values[there].min() + 1e-5


def test_a_batch_without_a_number_is_embedded_by_the_inferer():
    stored = StoredEmbeddings([], [], "unused")
    batch = {"image": torch.rand(1, 1, 4, 4), "label": torch.ones(1, 1, 4, 4)}
    image, label, args, kwargs = PrepareEmbedded(stored)(batch, "cpu")
    assert torch.equal(image, batch["image"])
    assert torch.equal(label, batch["label"])
    assert (args, kwargs) == ((), {"embeddings": None})


def test_a_label_that_was_not_loaded_is_none():
    batch = {"image": torch.rand(1, 1, 4, 4), "label": ["a.nii.gz"]}  # as a calibration has it
    assert PrepareEmbedded(StoredEmbeddings([], [], "unused"))(batch, "cpu")[1] is None


def test_scans_are_numbered_in_their_order():
    items = [{"image": "a.nii"}, {"image": "b.nii", "label": "c.nii"}]
    assert numbered_scans(items) == [{**items[0], "scan": 0}, {**items[1], "scan": 1}]
