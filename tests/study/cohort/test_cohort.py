"""Laws of the demo cohort: seeded, exact masks, healthy where it must be, whole or not at all."""

import json
import os
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from monai_dpmm.study.cohort import cohort, lesions, phantom
from monai_dpmm.study.cohort.cohort import make_demo_cohort
from monai_dpmm.study.cohort.lesions import (
    KINDS,
    Lesion,
    mass_effect,
    smooth_noise,
    trilinear,
    with_lesions,
)

SMALL = {"train": 2, "val": 1, "test": 3, "spacing": 6, "seed": 3}
BOUNDS = np.array([[-60, -60, -60], [60, 60, 60]], np.float32)


@pytest.fixture(scope="module")
def template():
    return phantom.load_template()


@pytest.fixture
def loaded_once(template, monkeypatch):
    monkeypatch.setattr(cohort, "load_template", lambda: template)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_demo_cohort(tmp_path_factory.mktemp("cohort") / "small", **SMALL)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A cohort with one test subject of every kind, and a healthy one."""
    folder = tmp_path_factory.mktemp("cohort") / "kinds"
    return make_demo_cohort(folder, **{**SMALL, "train": 1, "test": 8})


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def snapshot(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob("*")
        if path.is_file()
    }


def manifest(folder):
    return json.loads((folder / "cohort.json").read_text())


@pytest.mark.slow
def test_layout(small):
    assert set(snapshot(small)) == {
        "cohort.json",
        "train/train_000.nii.gz",
        "train/train_001.nii.gz",
        "val/val_000.nii.gz",
        *(f"test/images/test_{i:03d}.nii.gz" for i in range(3)),
        *(f"test/labels/test_{i:03d}.nii.gz" for i in range(3)),
    }
    content = manifest(small)
    assert content["recipe"] == cohort.RECIPE
    assert content["parameters"] == SMALL
    assert len(content["subjects"]) == 6


def test_geometry(small):
    scans = [nib.load(path) for path in small.rglob("*.nii.gz")]
    assert len({scan.shape for scan in scans}) == 1
    for scan in scans:
        assert nib.aff2axcodes(scan.affine) == ("R", "A", "S")
        np.testing.assert_allclose(scan.header.get_zooms(), 6)
        assert scan.header.get_xyzt_units()[0] == "mm"
        label = "labels" in scan.get_filename()
        assert scan.get_data_dtype() == (np.uint8 if label else np.int16)
        # the origin of MNI space lies inside the brain of everyone, off no edge of the grid
        origin = nib.affines.apply_affine(np.linalg.inv(scan.affine), [0, 0, 0])
        assert np.all((origin > 5) & (origin < np.subtract(scan.shape, 5)))


@pytest.mark.slow
def test_same_seed_same_voxels_whatever_the_counts(small, kinds):
    for name in ("train/train_000", "val/val_000", "test/images/test_001", "test/labels/test_002"):
        np.testing.assert_array_equal(
            voxels(small / f"{name}.nii.gz"), voxels(kinds / f"{name}.nii.gz")
        )


@pytest.mark.slow
def test_subjects_and_seeds_differ(small, template):
    scans = [voxels(path).astype(float) for path in sorted(small.rglob("*.nii.gz"))]
    scans = [scan for scan in scans if scan.max() > 1]
    other, _, _ = phantom.simulated(template, {"spacing": 6.0, "seed": 4}, "train", 0)
    correlation = np.corrcoef([scan.ravel() for scan in [*scans, other]])
    assert correlation[~np.eye(len(correlation), dtype=bool)].max() < 0.97


def test_global_generators_untouched(template):
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    phantom.simulated(template, {"spacing": 8.0, "seed": 0}, "test", 0)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_labels_lie_in_the_brain_and_match_the_manifest(kinds):
    ml = 6**3 / 1000
    subjects = [s for s in manifest(kinds)["subjects"] if s["label"]]
    assert [s["lesions"][0]["kind"] if s["lesions"] else None for s in subjects] == [
        *("tumour", None, "infarct", None, "plaques", None, "haemorrhage", None)
    ]
    for subject in subjects:
        scan, label = voxels(kinds / subject["image"]), voxels(kinds / subject["label"])
        assert set(np.unique(label)) <= {0, 1}
        assert label.any() == bool(subject["lesions"])
        assert np.all(scan[label == 1] > 0)
        assert label.sum() * ml == pytest.approx(subject["lesion_ml"], abs=0.01)


def test_lesions_overlap_with_healthy_tissue_in_intensity(kinds):
    for index in (0, 2, 4):
        scan = voxels(kinds / f"test/images/test_{index:03d}.nii.gz")
        label = voxels(kinds / f"test/labels/test_{index:03d}.nii.gz")
        low, high = np.percentile(scan[(scan > 0) & (label == 0)], (1, 99))
        assert low < np.median(scan[label == 1]) < high


def test_healthy_sections_have_no_lesions(small, template, monkeypatch):
    healthy = [s for s in manifest(small)["subjects"] if not s["image"].startswith("test")]
    assert len(healthy) == 3
    assert all(s["lesions"] == [] and s["label"] is None for s in healthy)
    monkeypatch.setattr(phantom, "random_lesions", None)
    for split, index in (("train", 0), ("val", 0), ("test", 1)):
        _, label, known = phantom.simulated(template, {"spacing": 8.0, "seed": 0}, split, index)
        assert not label.any()
        assert known == []


def test_without_its_lesions_a_subject_is_the_same_elsewhere(template, monkeypatch):
    parameters = {"spacing": 5.0, "seed": 0}
    ill, label, _ = phantom.simulated(template, parameters, "test", 2)  # infarcts push nothing
    monkeypatch.setattr(phantom, "_lesions", lambda *_: [])
    healthy, _, _ = phantom.simulated(template, parameters, "test", 2)
    near = binary_dilation(label, iterations=3)
    np.testing.assert_array_equal(ill[~near], healthy[~near])
    assert np.abs(ill.astype(float) - healthy)[label == 1].mean() > 0.05 * healthy.max()


def test_cohort_is_made_once(small, monkeypatch):
    before = snapshot(small)
    monkeypatch.setattr(cohort, "load_template", None)
    assert make_demo_cohort(small, **SMALL) == small
    assert snapshot(small) == before


def test_interrupted_cohort_leaves_nothing_and_is_made_again(
    small, tmp_path, monkeypatch, loaded_once
):
    save, calls = cohort._save, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > 3:
            raise KeyboardInterrupt
        save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "_save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_demo_cohort(tmp_path / "sub" / "demo", **SMALL)
    assert list((tmp_path / "sub").iterdir()) == []
    again = make_demo_cohort(tmp_path / "sub" / "demo", **SMALL)
    assert set(snapshot(again)) == set(snapshot(small))


def test_missing_files_are_made_again(small, tmp_path, loaded_once):
    folder = shutil.copytree(small, tmp_path / "demo")
    (folder / "test/labels/test_001.nii.gz").unlink()
    shutil.rmtree(folder / "val")
    (folder / "notes.txt").write_text("mine")
    make_demo_cohort(folder, **SMALL)
    assert set(snapshot(folder)) == {*snapshot(small), "notes.txt"}
    for name in ("test/labels/test_001.nii.gz", "val/val_000.nii.gz"):
        np.testing.assert_array_equal(voxels(folder / name), voxels(small / name))


def test_another_process_was_faster(small, tmp_path, monkeypatch):
    made = shutil.copytree(small, tmp_path / "scratch")

    def too_late(source, target):
        shutil.copytree(source, target)
        raise OSError("directory not empty")

    monkeypatch.setattr(os, "rename", too_late)
    cohort._install(made, tmp_path / "demo", SMALL)
    assert set(snapshot(tmp_path / "demo")) == set(snapshot(small))


def test_rename_that_fails_is_an_error(small, tmp_path, monkeypatch):
    def refused(source, target):
        raise OSError("read-only")

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(OSError, match="read-only"):
        cohort._install(small, tmp_path / "demo", SMALL)


def test_empty_folder_is_filled(small, tmp_path, monkeypatch):
    monkeypatch.setattr(cohort, "load_template", lambda: None)
    monkeypatch.setattr(cohort, "_write_cohort", lambda made, *_: shutil.copytree(small, made))
    (tmp_path / "demo").mkdir()
    make_demo_cohort(tmp_path / "demo", **SMALL)
    assert set(snapshot(tmp_path / "demo")) == set(snapshot(small))


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"recipe": 1, "parameters": 2}'])
def test_foreign_folder_is_refused(tmp_path, content):
    name = "scan.nii.gz" if content is None else "cohort.json"
    (tmp_path / name).write_text(content or "")
    with pytest.raises(FileExistsError, match=r"new, empty or a demo cohort.*choose another"):
        make_demo_cohort(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="new, empty or a demo cohort"):
        make_demo_cohort(tmp_path / "file", **SMALL)


def test_cohort_of_other_parameters_is_refused(small):
    before = snapshot(small)
    with pytest.raises(FileExistsError, match="other parameters: seed is 3, asked for was 4"):
        make_demo_cohort(small, **{**SMALL, "seed": 4})
    assert snapshot(small) == before


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"train": 0}, "train must be an integer of at least 1, got 0"),
        ({"val": 1.5}, r"val must be an integer of at least 1, got 1\.5"),
        ({"test": True}, "test must be an integer of at least 1, got True"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"spacing": 0.5}, r"spacing must be 1 to 8 mm, got 0\.5"),
        ({"spacing": float("nan")}, "spacing must be 1 to 8 mm, got nan"),
        ({"spacing": "2"}, "spacing must be 1 to 8 mm, got '2'"),
    ],
)
def test_bad_arguments(tmp_path, argument, message):
    with pytest.raises(ValueError, match=message):
        make_demo_cohort(tmp_path / "demo", **argument)
    assert not (tmp_path / "demo").exists()


def test_missing_nilearn_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(ImportError, match=r"needs nilearn.*pip install monai-dpmm\[demo\]"):
        make_demo_cohort(tmp_path / "demo", **SMALL)
    assert not (tmp_path / "demo").exists()


def test_deformation_keeps_neighbours_in_order(template):
    for seed in range(5):
        points = phantom._deformed(np.random.default_rng(seed), template.bounds, 4.0)
        jacobian = np.stack([np.stack(np.gradient(p, 4.0)) for p in points])
        assert np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))).min() > 0.1


def test_noise_has_unit_variance_at_every_scale():
    for sigma in (3.0, 6.0):
        noise = smooth_noise(np.random.default_rng(0), sigma, BOUNDS)
        assert noise.std() == pytest.approx(1, abs=0.1)


def test_trilinear_reproduces_linear_functions():
    axes = np.linspace(-60, 60, 13, dtype=np.float32)
    grid = np.stack(np.meshgrid(axes, axes, axes, indexing="ij"))
    rng = np.random.default_rng(0)
    points = rng.uniform(-60, 60, (3, 4, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(trilinear(grid, points, BOUNDS), points, atol=1e-3)


def lesion(kind, centre=(30.0, 0.0, 0.0), volume=8.0, push=0.0):
    return Lesion(kind, centre, volume, push, np.random.default_rng(1))


def ball(spacing=4):
    """A brain of white matter, 110 mm across: image, tissues and points."""
    axes = np.arange(-60, 61, spacing, dtype=np.float32)
    points = np.stack(np.meshgrid(axes, axes, axes, indexing="ij"))
    white = (np.linalg.norm(points, axis=0) < 55).astype(np.float32)
    return 0.9 * white, np.stack([0 * white, 0 * white, white]), points


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_mask_has_the_volume_asked_for_and_nothing_else_changes(kind):
    image, tissues, points = ball()
    both = [lesion(kind), lesion(kind, centre=(-30.0, 0.0, 0.0))]
    levels = np.array([0.2, 0.6, 0.9], np.float32)
    painted, fraction, volumes = with_lesions(image, tissues, points, both, levels, 0.064)
    mask = fraction >= 0.5
    assert volumes == pytest.approx([8.0, 8.0], abs=0.07)
    assert mask.sum() * 0.064 == pytest.approx(sum(volumes))
    assert not fraction[np.abs(points[0]) <= lesions.FALX_MM].any()
    assert not mask[tissues.sum(0) == 0].any()
    np.testing.assert_array_equal(painted[fraction == 0], image[fraction == 0])
    assert np.abs(painted - image)[mask].mean() > 0.05
    assert ((fraction > 0.01) & (fraction < 0.99)).any()


def test_mass_effect_pushes_outwards_without_folding():
    _, _, points = ball()
    shown = mass_effect(points, [lesion(KINDS[0], centre=(0.0, 0.0, 0.0), push=0.45)])
    assert np.all(np.linalg.norm(shown, axis=0) <= np.linalg.norm(points, axis=0) + 1e-4)
    assert np.all(np.diff(shown[0], axis=0) > 0)
    np.testing.assert_array_equal(mass_effect(points, []), points)
