"""Pictures are upright without a setting, volumes turned as by MONAI; both come back."""

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_files import write_series
from monai.transforms import Compose, Invertd, Orientationd
from PIL import Image

from monai_dpmm.engines.file_digests import FileDigests
from monai_dpmm.engines.fingerprint import fingerprint, scan_content
from monai_dpmm.transforms.dictionary import LoadVolumed
from monai_dpmm.transforms.orientation import OrientScand


def _there_and_back(path, axcodes):
    steps = Compose([LoadVolumed("image"), OrientScand("image", axcodes)])
    data = steps({"image": path})
    data["pred"] = data["image"] * 1
    inverted = Invertd("pred", steps, "image", to_tensor=True)
    return data["image"], inverted(dict(data))["pred"]


@pytest.mark.parametrize("axcodes", ["PLI", "ARS", "RAS", "SPR"])
@pytest.mark.parametrize(("suffix", "dpi"), [(".png", (72, 72)), (".tif", (204, 98))])
def test_a_picture_is_upright_and_comes_back(tmp_path, axcodes, suffix, dpi):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 17)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", dpi=dpi)
    upright, back = _there_and_back(tmp_path / f"a{suffix}", axcodes)
    assert np.array_equal(upright[0], pixels)
    assert np.array_equal(back[0], pixels.T)
    loaded = LoadVolumed("image")({"image": tmp_path / f"a{suffix}"})["image"]
    torch.testing.assert_close(back.affine, loaded.affine)


def test_a_plane_of_metaimage_is_not_mirrored(tmp_path):
    import SimpleITK

    pixels = np.random.default_rng(0).random((12, 17)).astype(np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels), str(tmp_path / "a.mha"))
    upright, back = _there_and_back(tmp_path / "a.mha", "PLI")
    assert np.array_equal(upright[0], pixels)
    assert np.array_equal(back[0], pixels.T)


@pytest.mark.parametrize("axcodes", ["PLI", "SPR"])
def test_volumes_are_turned_as_monai_turns_them(tmp_path, axcodes):
    array = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    affine = nib.affines.from_matvec(np.diag([-1.0, 2, 3]), [4, 5, 6])
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "a.nii")
    turned, back = _there_and_back(tmp_path / "a.nii", axcodes)
    loaded = LoadVolumed("image")({"image": tmp_path / "a.nii"})
    expected = Orientationd("image", axcodes=axcodes, labels=None)(loaded)["image"]
    assert torch.equal(turned.as_tensor(), expected.as_tensor())
    assert torch.equal(turned.affine, expected.affine)
    assert np.array_equal(back[0], array)


def test_what_was_turned_leaves_no_trace_in_the_transform(tmp_path):
    """Embeddings are kept by what a transform is made of."""
    pixels = np.random.default_rng(0).integers(0, 255, (12, 17)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    turn = OrientScand("image", "PLI")
    before = fingerprint(turn)
    turn(LoadVolumed("image")({"image": tmp_path / "a.png"}))
    assert fingerprint(turn) == before


def test_the_content_of_a_series_is_that_of_all_its_files(tmp_path):
    for name in ("one", "two"):
        write_series(tmp_path / name, np.random.default_rng(0).integers(1, 999, (8, 8, 4)))
        for file in sorted((tmp_path / name).iterdir()):
            file.rename(tmp_path / f"{name}_{file.name}")
    item = {"image": str(tmp_path / "one_003.dcm"), "patient": "one"}
    before = scan_content(item, FileDigests(tmp_path / "digests.json"))
    (tmp_path / "one_017.dcm").write_bytes((tmp_path / "one_010.dcm").read_bytes())
    after = scan_content(item, FileDigests(tmp_path / "digests.json"))
    assert before["image"] != after["image"]
    assert before["patient"] == after["patient"] == "one"
