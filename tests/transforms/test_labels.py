"""Labelled patches are left out of training, and only they."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from monai_dpmm import IgnoreLabelledPatchesd
from monai_dpmm.engines.slices import collate_patches

CONFIG = Path(__file__).parents[2] / "configs/train.json"


def _item(label=None, slices=3):
    item = {"image": torch.rand(slices, 4, 6, 5) + 0.1}
    return item if label is None else {**item, "label": label}


@pytest.mark.parametrize("shape", [(40, 60), (4, 6), (37, 61), (3, 2)])
def test_exactly_the_patches_that_a_label_touches_become_zero(shape):
    label = torch.zeros(3, 1, *shape)
    row, column = shape[0] // 2, shape[1] - 1
    label[1, 0, row, column] = 2
    item = _item(label)
    result = IgnoreLabelledPatchesd()(item)
    zero = ~result["image"].any(dim=-1)
    for i in range(4):
        for j in range(6):
            # a patch covers [i, i + 1) / 4 of the rows: its pixels are those that it overlaps
            rows = i * shape[0] / 4 < row + 1 and row < (i + 1) * shape[0] / 4
            columns = j * shape[1] / 6 < column + 1 and column < (j + 1) * shape[1] / 6
            assert bool(zero[1, i, j]) == (rows and columns)
    assert not zero[[0, 2]].any()
    assert torch.equal(result["image"][~zero], item["image"][~zero])
    assert "label" not in result


def test_an_item_without_a_label_or_with_an_empty_one_stays_as_it_is():
    item = _item()
    assert torch.equal(IgnoreLabelledPatchesd()(item)["image"], item["image"])
    empty = {**item, "label": MetaTensor(torch.zeros(3, 1, 8, 8))}
    assert torch.equal(IgnoreLabelledPatchesd()(empty)["image"], item["image"])


def test_training_batches_hold_no_labelled_patch():
    label = torch.zeros(3, 1, 4, 6)
    label[0, 0, 0, :2] = 1
    result = IgnoreLabelledPatchesd()(_item(label))
    assert collate_patches([{"image": result["image"]}])["image"].shape == (3 * 24 - 2, 5)


def test_a_label_of_other_slices_is_refused():
    with pytest.raises(ValueError, match="label must have as many slices as its image, 3, got 2"):
        IgnoreLabelledPatchesd()(_item(torch.zeros(2, 1, 8, 8)))


@pytest.mark.parametrize("codes", ["RAS", "PSL"])
def test_the_training_config_ignores_a_labels_patches_where_they_lie(tmp_path, codes):
    """A lesion marked in a reoriented scan is left out at its place, whatever grid it came on."""
    volume = np.random.default_rng(0).random((30, 34, 12)).astype(np.float32)
    mask = np.zeros(volume.shape, np.uint8)
    mask[4:6, 20:22, 7] = 1
    affine = np.array([[-3, 0, 0, 20], [0, 3, 0, -9], [0, 0, 4, 5], [0, 0, 0, 1]], float)
    nib.save(nib.Nifti1Image(volume, affine), tmp_path / "a.nii.gz")
    ornt = nib.orientations.axcodes2ornt(tuple(codes))
    label = nib.Nifti1Image(mask, affine).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(affine), ornt)
    )
    nib.save(label, tmp_path / "label.nii.gz")
    parser = ConfigParser()
    parser.read_config(CONFIG)
    parser.update({"backbone_architecture": "efficientnet_lite0", "image_size": 64})
    parser.update({"slice_axis": 2, "device": "cpu"})
    parser.update({"mask_foreground": False, "ignore_background": False})
    embed = parser.get_parsed_content("train#preprocessing")
    paths = {"image": str(tmp_path / "a.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    labelled = embed(dict(paths))
    plain = embed({"image": paths["image"]})
    zero = ~labelled["image"].any(dim=-1)
    assert labelled.keys() == plain.keys()
    assert torch.equal(labelled["image"][~zero], plain["image"][~zero])
    # PLI: rows run to posterior, columns to left, slices to inferior
    placed = nib.Nifti1Image(mask, affine).as_reoriented(
        nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt("PLI")
        )
    )
    marked = torch.tensor(np.asarray(placed.dataobj).copy()).permute(2, 0, 1)
    (index,) = marked.any(dim=(1, 2)).nonzero()
    assert zero.any(dim=(1, 2)).nonzero().tolist() == [index.tolist()]
    expected = torch.nn.functional.adaptive_max_pool2d(marked[None].float(), zero.shape[1:])[0] > 0
    assert torch.equal(zero, expected)
