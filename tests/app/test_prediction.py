"""One scan in memory gives what a run of the bundle gives for its file."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from workflows import run_bundle, with_reference

from monai_dpmm.app.prediction import predict
from monai_dpmm.app.release import write_bundle
from monai_dpmm.io.loading import LoadVolume


@pytest.fixture(scope="module")
def bundle(trained_by_default, tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundles") / "heads", trained_by_default)


@pytest.fixture(scope="module")
def scan(cohort, tmp_path_factory):
    """File of a head whose axes are stored in another order."""
    turned = nib.load(cohort / "test/images/test_002.nii.gz")
    turned = turned.as_reoriented(nib.orientations.axcodes2ornt(("A", "R", "I")))
    path = tmp_path_factory.mktemp("scan") / "turned.nii.gz"
    nib.save(turned, path)
    return path


@pytest.fixture(scope="module")
def written(bundle, scan, tmp_path_factory):
    """Folder of what a run writes of the scan."""
    output = tmp_path_factory.mktemp("output")
    config = [str(bundle / "configs/inference.json")]
    run_bundle("run", config, bundle_root=bundle, dataset_dir=scan, output_dir=output)
    return output / "turned"


@pytest.mark.parametrize("kind", ["array", "tensor", "integers", "metatensor", "path"])
def test_whatever_holds_the_voxels_the_results_are_those_of_a_run(kind, bundle, scan, written):
    image = nib.load(scan)
    voxels = np.asarray(image.dataobj)
    given = {
        "array": voxels,
        "tensor": torch.tensor(voxels)[None],
        "integers": np.asarray(voxels).astype(np.int16),
        "metatensor": MetaTensor(torch.tensor(voxels), affine=torch.tensor(image.affine)),
        "path": scan,
    }[kind]
    affine = None if kind in ("metatensor", "path") else image.affine
    found = predict(given, bundle, affine=affine)
    exact = np.array_equal(voxels, np.asarray(given if kind == "integers" else voxels))
    for end, volume in (("anomaly", found.anomaly), ("mask", found.mask)):
        expected = nib.load(written / f"turned_{end}.nii.gz")
        assert np.allclose(volume.affine, expected.affine, atol=1e-4)
        assert volume.shape == expected.shape
        if exact:
            assert np.allclose(volume.numpy(), expected.get_fdata(), atol=1e-5)
    assert found.mask.dtype == torch.uint8
    assert found.component.max() <= 40
    findings = json.loads((written / "turned_findings.json").read_text())
    assert found.findings.keys() == findings.keys()
    if exact:
        assert found.score == pytest.approx(findings["score"], rel=1e-5)
        assert len(found.findings["lesions"]) == len(findings["lesions"])


def test_a_bundle_carries_its_scan_reference(trained_by_default, scan, tmp_path):
    root = with_reference(trained_by_default, tmp_path / "root")
    bundle = write_bundle(tmp_path / "b", root)
    found = predict(scan, bundle).findings["scan_check"]
    assert found["suspicious"]
    assert found["scans"] == 20
    assert not (bundle / "output").exists()


@pytest.mark.parametrize(
    ("scan", "message"),
    [
        (np.full((8, 8, 8), np.nan), "scan in memory: voxels must be finite"),
        (np.ones((8, 8, 8)), "scan in memory: must not be constant"),
        (np.ones((8, 8, 8), np.complex64), "scan in memory: must be a scalar image, got complex"),
        (torch.ones((8, 8, 8), dtype=torch.complex64), "must be a scalar image, got complex"),
        (np.full((8, 8), "a"), "scan in memory: must be a scalar image, got values of type"),
        (np.random.default_rng(0).random((2, 9, 9, 9)), "scan in memory: must have one channel"),
        (np.random.default_rng(0).random(9), r"scan in memory: must be \(X, Y, Z\)"),
        (
            np.random.default_rng(0).random((1, 1, 9, 9, 9)),
            r"must be \(X, Y, Z\).*\(1, 1, 9, 9, 9\)",
        ),
        ("", "a scan must have a path, got an empty one"),
    ],
)
def test_what_is_no_scan_is_refused(scan, message):
    with pytest.raises(ValueError, match=message):
        LoadVolume()(scan)


@pytest.mark.parametrize(
    "kind", ["f8", "f2", ">i2", ">f4", "u2", "u4", "u1", "?", torch.int64, torch.uint16]
)
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        *(((9, 8, 7), (1, 9, 8, 7)), ((1, 9, 8, 7), (1, 9, 8, 7)), ((9, 8), (1, 9, 8))),
        *(((1, 9, 8), (1, 9, 8)), ((9, 8, 1), (1, 9, 8, 1))),
    ],
)
def test_shapes_and_types_in_memory(kind, shape, expected):
    voxels = np.random.default_rng(0).integers(0, 2, shape)
    voxels.flat[:2] = 0, 1
    plain = isinstance(kind, str)
    given = voxels.astype(kind) if plain else torch.tensor(voxels).to(kind)
    image = LoadVolume()(given)
    assert image.shape == expected
    assert image.dtype == torch.float32
    assert torch.equal(image.affine, torch.eye(4, dtype=torch.float64))
    assert np.array_equal(image.numpy().reshape(shape), voxels)
    assert np.array_equal(LoadVolume()(np.flip(voxels)).numpy().reshape(shape), np.flip(voxels))
    image += 1
    assert np.array_equal(np.asarray(given), voxels)  # which stays as it is


def test_a_bare_volume_of_one_slice_is_told_by_its_metadata():
    voxels = torch.rand(1, 9, 8)
    image = LoadVolume()(MetaTensor(voxels, meta={"original_channel_dim": "no_channel"}))
    assert image.shape == (1, 1, 9, 8)


def test_a_folder_that_is_no_bundle(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"inference\.json: must exist"):
        predict(torch.rand(9, 9, 9), tmp_path)


def test_a_path_has_its_own_affine(bundle, scan):
    with pytest.raises(ValueError, match="affine must be None for the path of a scan"):
        predict(scan, bundle, affine=np.eye(4))
