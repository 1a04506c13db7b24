"""Inputs as people's files and folders are, made here, by kind; docs/inputs.md counts them."""

import json
import os
import re
import struct
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from dicom_files import headers, write_series
from PIL import Image

from monai_dpmm.errors import InputError
from monai_dpmm.io.datalist import data_root, datalist, healthy_scans
from monai_dpmm.io.loading import LoadVolume
from monai_dpmm.io.names import is_ill, is_mask
from monai_dpmm.io.result_files import result_files
from monai_dpmm.io.survey import survey
from monai_dpmm.transforms.dictionary import ExtractSlicesd, NormalizeSlicesd

ROOT = Path(__file__).parents[2]
CASES = []


def case(kind, *arguments):
    """Register a function of a folder, and of each of the arguments, as inputs of a kind."""

    def register(function):
        for number, argument in enumerate(arguments or ((),)):
            given = argument if isinstance(argument, tuple) else (argument,)
            name = f"{function.__name__}-{number}-{'-'.join(map(str, given))}"[:70]
            CASES.append((kind, name, function, given))
        return function

    return register


def _refused(path, message, load=None):
    with pytest.raises(InputError, match=message) as caught:
        (load or LoadVolume())(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def _noise(shape, seed=0):
    return np.random.default_rng(seed).integers(1, 1000, shape).astype(np.int16)


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def _train(root, **options):
    return sorted(os.path.relpath(i["image"], root) for i in datalist(root, "train", **options))


# Pixels that are not square

RATIOS = (1.0, 1.005, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def _ball(folder, spacing, name="ball.nii.gz"):
    """A ball of 60 mm, noise outside, in voxels of a spacing."""
    shape = [max(3, round(96 / mm)) for mm in spacing]
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * spacing
    inside = np.linalg.norm(grid - (np.array(shape) - 1) * spacing / 2, axis=-1) < 30
    rng = np.random.default_rng(0)
    array = (1000 * inside + rng.uniform(0, 20, shape)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1])), folder / name)
    return folder / name


def _images(path, axis=2):
    data = LoadVolume()(path)
    sliced = ExtractSlicesd("image", axis=axis)({"image": data})
    return NormalizeSlicesd("image", size=112, patch_size=14)(sliced)["image"]


@case("pixels that are not square", *((r, first) for r in RATIOS for first in (True, False)))
def _round_heads_stay_round(folder, ratio, first):
    spacing = (1.5 * ratio, 1.5, 6.0) if first else (1.5, 1.5 * ratio, 6.0)
    images = _images(_ball(folder, spacing)).as_tensor()[:, 0]
    middle = images[len(images) // 2]
    lit = middle > (middle.max() + middle.min()) / 2
    height, width = (int(lit.any(dim).sum()) for dim in (1, 0))
    sides = middle.shape
    assert height / sides[0] * sides[0] / width == pytest.approx(1, abs=0.25 if ratio > 4 else 0.1)


@case("pixels that are not square", *((r, a) for r in (8.5, 12.0, 30.0) for a in (0, 1)))
def _much_longer_than_wide_is_refused(folder, ratio, axis):
    spacing = (ratio, 4.0, 1.0) if axis == 1 else (4.0, ratio, 1.0)
    path = _ball(folder, spacing)
    message = rf"{path.name}: .*at most 8 times as long as wide"
    with pytest.raises(InputError, match=message):
        _images(path, axis)


# Values


@case("values", *((kind, seed) for kind in ("slopes", "intercepts", "both") for seed in range(3)))
def _dicom_slices_that_scale_differently(folder, kind, seed):
    volume, rng = _noise((10, 9, 6), seed), np.random.default_rng(seed)
    write_series(folder / "pet", volume)
    expected = np.zeros(volume.shape)
    for file, dataset in headers(folder / "pet"):
        slope = float(f"{rng.uniform(1e-5, 2):.6g}") if kind != "intercepts" else 1
        intercept = float(f"{rng.uniform(-50, 50):.6g}") if kind != "slopes" else 0
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.6g}", f"{intercept:.6g}"
        dataset.save_as(file)
        number = dataset.InstanceNumber - 1
        expected[..., number] = slope * volume[..., number] + intercept
    assert torch.equal(LoadVolume()(folder / "pet")[0], torch.from_numpy(expected).float())


@case("values", ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], ["DERIVED", "PRIMARY", "MOSAIC"])
def _mosaics_are_refused(folder, words):
    write_series(folder / "scan", _noise((12, 12, 1)))
    ((file, dataset),) = headers(folder / "scan")
    dataset.ImageType = words
    dataset.save_as(file)
    _refused(folder / "scan", "is a mosaic")


@case("values", *((n, dtype) for n in (1, 3, 12) for dtype in (np.uint8, np.int16, np.float32)))
def _maps_of_labels_are_refused(folder, labels, dtype):
    array = np.zeros((24, 24, 12), dtype)
    for label in range(labels):
        array[2 * label : 2 * label + 2, 3:20, 2:10] = label + 1
    nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "scan.nii.gz")
    _refused(folder / "scan.nii.gz", f"got {labels + 1} values in flat regions, as a mask")
    assert LoadVolume(allow_constant=True)(folder / "scan.nii.gz").max() == labels


@case("values", 3, 8, 40)
def _noisy_scans_of_few_values_are_read(folder, levels):
    array = np.random.default_rng(0).integers(0, levels, (20, 20, 10)).astype(np.uint8)
    nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "scan.nii.gz")
    assert np.array_equal(LoadVolume()(folder / "scan.nii.gz")[0], array)


@case("values", np.complex64, np.complex128)
def _complex_voxels_are_refused(folder, dtype):
    nib.save(nib.Nifti1Image(np.ones((5, 5, 5), dtype), np.eye(4)), folder / "scan.nii")
    _refused(folder / "scan.nii", "complex numbers")


@case("values", 1e39, -1e200)
def _values_beyond_float32_are_told(folder, value):
    array = _noise((6, 6, 6)).astype(np.float64)
    array[2, 2, 2] = value
    nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "scan.nii")
    _refused(folder / "scan.nii", "must lie within .* got finite ones to")


# Names and folders

MASKS = (
    *("x_seg", "sub-01_dseg", "x-mask", "BrainMask", "lesion_mask", "x_label", "aseg", "x_roi"),
    *("sub-1_label-GM_probseg", "T1_segmentation", "x.gt", "groundTruth", "labels_01", "xLabel"),
)
SCANS = ("masked_T1", "segovia_01", "relabelled", "sub-01_T1w", "unmasked", "IXI012-HH-1211-T1")
ILL = ("abnormal_3", "x_tumor", "Tumour7", "strokeT1", "x-lesion", "Ungood", "glioma.01")
HEALTHY = ("normal_3", "no_tumor", "tumor_free_2", "non-lesion", "without-stroke", "IXI_001")


@case("names", *MASKS)
def _masks_are_not_trained_on(folder, name):
    _touch(folder, *(f"s{i}.nii.gz" for i in range(4)), f"{name}.nii.gz")
    assert is_mask(name)
    assert f"{name}.nii.gz" not in [p.name for p in healthy_scans(folder).images]
    assert len(healthy_scans(folder, "*").images) == 5


@case("names", *ILL)
def _ill_scans_are_not_trained_on(folder, name):
    _touch(folder, *(f"s{i}.nii.gz" for i in range(4)), f"{name}.nii.gz")
    found = healthy_scans(folder)
    assert [p.name for p in found.left_out["scans not healthy by name"]] == [f"{name}.nii.gz"]


@case("names", *SCANS, *HEALTHY)
def _other_names_are_scans(folder, name):
    _touch(folder, "s0.nii.gz", f"{name}.nii.gz")
    assert not is_mask(name)
    assert not is_ill(name)
    assert len(healthy_scans(folder).images) == 2


@case("names", "masks", "labelsTr", "abnormal", "Tumor", "ground_truth", "test", "my_labels", "seg")
def _folders_that_hold_no_healthy_scans_are_refused(folder, name):
    _touch(folder, "a/s0.nii.gz", "a/s1.nii.gz", f"a/deep/{name}/x.nii.gz")
    with pytest.raises(InputError, match=f"must hold healthy scans only.*named {name}$"):
        healthy_scans(folder / "a")
    kept = healthy_scans(folder / "a", pattern="s*.nii.gz")
    assert [path.name for path in kept.images] == ["s0.nii.gz", "s1.nii.gz"]


LABELS = (
    *(("a.nii.gz", f"a{end}.nii.gz") for end in ("", "_seg", "_mask", "_label", "-mask", "_gt")),
    *(("a.nii.gz", "a.nii"), ("a.nii", "a.nii.gz"), ("a.mha", "a_seg.nii.gz"), ("b.png", "b.tif")),
    *(("c_0000.nii.gz", "c.nii.gz"), ("d_flair.nii.gz", "d_seg.nii.gz"), ("e.jpg", "e_mask.png")),
)


@case(
    "labels", *((i, m, f) for n, (i, m) in enumerate(LABELS) for f in ("labels", "masks")[n % 2 :])
)
def _labels_by_the_names_that_they_have(folder, image, label, name):
    _touch(folder, f"test/images/{image}", f"test/{name}/{label}")
    (item,) = datalist(folder, "test", labels=True)
    assert os.path.relpath(item["label"], folder) == f"test/{name}/{label}"


@case("labels", "_other", "2", "seg")
def _other_names_are_told(folder, end):
    _touch(folder, "test/images/a.nii", f"test/labels/a{end}.nii")
    with pytest.raises(InputError, match="under the image's name or that with _seg, _mask or"):
        datalist(folder, "test", labels=True)


# Layouts


@case("layouts", *((s, k) for s in (0, 2) for k in ("T1w", "FLAIR")))
def _bids(folder, sessions, kind):
    """Subjects with sessions and two contrasts, and derivatives."""
    (folder / "dataset_description.json").write_text("{}")
    middle = [f"ses-{n}/" for n in range(sessions)] or [""]
    for number in range(5):
        for part in middle:
            stem = f"sub-{number:02}_{part.replace('/', '_')}"
            for contrast in ("T1w", "FLAIR"):
                _touch(folder, f"sub-{number:02}/{part}anat/{stem}{contrast}.nii.gz")
            _touch(folder, f"derivatives/x/sub-{number:02}/{part}{stem}desc-brain_mask.nii.gz")
            _touch(folder, f"derivatives/x/sub-{number:02}/{part}{stem}desc-preproc_T1w.nii.gz")
    with pytest.raises(
        InputError, match=r"one contrast, got flair \(\d+\), t1w .* choose with pat"
    ):
        datalist(folder, "train")
    train = _train(folder, pattern=f"*_{kind}.nii.gz")
    val = [i["image"] for i in datalist(folder, "val", pattern=f"*_{kind}.nii.gz")]
    assert len(train) == 4 * max(1, sessions)
    assert all("derivatives" not in name and kind in name for name in train)
    assert {n[:6] for n in train}.isdisjoint({os.path.relpath(n, folder)[:6] for n in val})


@case("layouts", "flair", "t1", "t1ce", "t2")
def _brats(folder, kind):
    """A folder for each patient, with four contrasts and a segmentation."""
    for number in range(4):
        case_ = f"BraTS20_{number:03}"
        for end in ("flair", "t1", "t1ce", "t2", "seg"):
            _touch(folder, f"test/{case_}/{case_}_{end}.nii.gz")
            _touch(folder, f"train/{case_}/{case_}_{end}.nii.gz")
    with pytest.raises(InputError, match="must hold scans of one contrast, got flair"):
        datalist(folder, "train")
    with pytest.raises(InputError, match="must hold scans of one contrast, got flair"):
        datalist(folder, "test", labels=True)
    assert len(_train(folder, pattern=f"*_{kind}.nii.gz")) == 3
    test = datalist(folder, "test", labels=True, pattern=f"*_{kind}.nii.gz")
    assert [os.path.basename(i["image"]) for i in test] == [
        f"BraTS20_{n:03}_{kind}.nii.gz" for n in range(4)
    ]
    assert all(i["label"] == i["image"].replace(f"_{kind}.", "_seg.") for i in test)


@case("layouts", *((v, c) for v in (1, 2) for c in (1, 2)))
def _nnunet(folder, version, channels):
    names = [f"case_{n:02}" for n in range(5)]
    for name in names:
        for channel in range(channels):
            _touch(folder, f"imagesTr/{name}_{channel:04}.nii.gz")
            _touch(folder, f"imagesTs/{name}_{channel:04}.nii.gz")
        _touch(folder, f"labelsTr/{name}.nii.gz", f"labelsTs/{name}.nii.gz")
    lists = {"channel_names": {"0": "T1"}, "labels": {"background": 0}, "numTraining": 5}
    if version == 1:
        training = [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names
        ]
        lists = {"training": training, "test": [f"./imagesTs/{n}.nii.gz" for n in names]}
    (folder / "dataset.json").write_text(json.dumps(lists))
    pattern = None
    if channels > 1:
        with pytest.raises(InputError, match="several channels of one scan"):
            datalist(folder, "train")
        pattern = "*_0001.nii.gz"
    train = datalist(folder, "train", pattern=pattern)
    assert len(train) == 4
    assert all(Path(item["image"]).name.endswith(f"_{channels - 1:04}.nii.gz") for item in train)
    assert all(Path(item["label"]).parent.name == "labelsTr" for item in train)
    test = datalist(folder, "test", pattern=pattern, labels=True)
    assert [Path(item["label"]).name for item in test] == [f"{name}.nii.gz" for name in names]


@case("layouts", True, False)
def _datalad(folder, fetched):
    """Links into a hidden store, one of them not fetched, and a linked folder that is a loop."""
    store = folder / "data/.git/annex/objects"
    _touch(store, *(f"k{n}" for n in range(4)))
    for number in range(4):
        (folder / f"data/s{number}.nii.gz").symlink_to(f".git/annex/objects/k{number}")
    _touch(folder, "elsewhere/s9.nii.gz")
    (folder / "data/more").symlink_to("../elsewhere")
    (folder / "data/loop").symlink_to(".")
    (folder / "data/twice.nii.gz").symlink_to(".git/annex/objects/k0")
    _touch(folder, "data/.hidden/x.nii.gz")
    if not fetched:
        (store / "k3").unlink()
    found = survey(folder / "data")
    names = [path.relative_to(folder / "data").as_posix() for path in found.images]
    assert names == ["more/s9.nii.gz", *(f"s{n}.nii.gz" for n in range(4 if fetched else 3))]
    told = {len(files): reason for reason, files in found.left_out.items()}
    assert any("there already" in reason for reason in found.left_out)
    assert any("datalad get" in reason for reason in found.left_out) is not fetched
    assert set(told) == {1}


@case("layouts", ".img", ".nii.bz2", ".mnc", ".gipl", ".zip", ".npy", ".webp")
def _formats_that_are_not_read_are_counted(folder, suffix):
    _touch(folder, "a.nii.gz", "b.nii.gz", f"c{suffix}", "notes.txt")
    found = survey(folder)
    assert [p.name for p in found.left_out["files of formats that are not read"]] == [f"c{suffix}"]


# DICOM


@case("DICOM", "", ".IMA", ".ima", ".dcm", ".DCM", ".dicom", ".0001", ".MR")
def _series_by_content(folder, suffix):
    volume = _noise((10, 9, 6))
    write_series(folder / "d/scan", volume)
    for number, file in enumerate(sorted((folder / "d/scan").iterdir())):
        file.rename(file.with_name(f"IM{number:04}{suffix}"))
    assert survey(folder / "d").images == [folder / "d/scan"]
    assert LoadVolume()(folder / "d/scan").max() == volume.max()
    assert data_root(folder / "d/scan") == str(folder / "d")


@case("DICOM", 2, 3, 5)
def _several_series_of_a_folder_are_a_scan_each(folder, count):
    volumes = [_noise((10, 9, 4 + n), n) for n in range(count)]
    for number, volume in enumerate(volumes):
        write_series(folder / f"s{number}", volume)
        for file in sorted((folder / f"s{number}").iterdir()):
            (folder / "all").mkdir(exist_ok=True)
            file.rename(folder / f"all/{'abcde'[number]}{file.stem}")
    items = datalist(folder / "all", "test")
    loaded = [LoadVolume()(item["image"]) for item in items]
    assert [tuple(one.shape[1:]) for one in loaded] == [volume.shape for volume in volumes]
    assert [one.max() for one in loaded] == [volume.max() for volume in volumes]
    files = [result_files(i["image"], folder / "out", data_root(folder / "all")) for i in items]
    assert len({one["findings"] for one in files}) == count


MODALITIES = ("SR", "KO", "PR", "SEG", "RTSTRUCT", "RTDOSE", "REG", "DOC")


@case("DICOM", *MODALITIES)
def _other_objects_are_counted(folder, modality):
    write_series(folder / "scan", _noise((10, 9, 6)))
    _, dataset = headers(folder / "scan")[0]
    dataset.SeriesInstanceUID, dataset.Modality = pydicom.uid.generate_uid(), modality
    if modality not in ("SEG", "RTDOSE"):
        del dataset.Rows, dataset.Columns, dataset.PixelData
    dataset.save_as(folder / "scan/object.dcm", enforce_file_format=True)
    found = survey(folder)
    assert found.images == [folder / "scan"]
    assert found.left_out == {"DICOM objects that are no scan": [folder / "scan/object.dcm"]}
    assert LoadVolume()(folder / "scan").shape == (1, 10, 9, 6)


@case("DICOM", "localizer", "capture")
def _pictures_beside_a_series_are_counted(folder, kind):
    write_series(folder / "scan", _noise((10, 9, 6)))
    _, dataset = headers(folder / "scan")[0]
    dataset.SeriesInstanceUID = pydicom.uid.generate_uid()
    if kind == "localizer":
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    else:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = (
            "1.2.840.10008.5.1.4.1.1.7"
        )
        del dataset.ImagePositionPatient
    dataset.save_as(folder / "scan/extra.dcm", enforce_file_format=True)
    (reason,) = survey(folder).left_out
    assert reason == "localizers and secondary captures"
    assert LoadVolume()(folder / "scan").shape == (1, 10, 9, 6)


@case("DICOM", 1, 4)
def _a_cd(folder, patients):
    """A DICOMDIR beside folders of files without suffixes."""
    for number in range(patients):
        write_series(folder / f"cd/DICOM/PA{number}/SE0", _noise((10, 9, 5), number))
        for file in (folder / f"cd/DICOM/PA{number}/SE0").iterdir():
            file.rename(file.with_suffix(""))
    meta = (folder / "cd/DICOM/PA0/SE0/003").read_bytes()[:200]
    (folder / "cd/DICOMDIR").write_bytes(meta)
    _touch(folder, "cd/AUTORUN.INF", "cd/viewer.exe", "cd/README")
    names = [path.parent.name for path in survey(folder / "cd").images]
    assert names == [f"PA{number}" for number in range(patients)]


@case("DICOM", 2, 6)
def _radiographs_are_a_scan_each(folder, count):
    write_series(folder / "xrays", _noise((30, 20, count)))
    for file, dataset in headers(folder / "xrays"):
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
        dataset.save_as(file)
    items = datalist(folder / "xrays", "test")
    assert len(items) == count
    assert {tuple(LoadVolume()(item["image"]).shape) for item in items} == {(1, 30, 20, 1)}


@case("DICOM", 3, 7)
def _frames_are_one_scan(folder, frames):
    write_series(folder / "nm", _noise((10, 9, 2)))
    (file, dataset), (other, _) = headers(folder / "nm")
    other.unlink()
    pixels = _noise((frames, 9, 10))
    dataset.NumberOfFrames, dataset.PixelData = frames, pixels.astype(np.uint16).tobytes()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.20"
    dataset.save_as(file)
    image = LoadVolume()(folder / "nm")
    assert image.shape == (1, 10, 9, frames)
    assert np.array_equal(image[0].numpy(), pixels.T)


# Pictures


def _pixels(seed=0, shape=(20, 31)):
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


@case("pictures", *((s, m) for s in (".png", ".tif", ".bmp") for m in ("L", "RGB", "RGBA")))
def _the_same_pixels_in_any_file(folder, suffix, mode):
    Image.fromarray(_pixels()).convert(mode).save(folder / f"a{suffix}")
    image = LoadVolume()(folder / f"a{suffix}")
    assert np.array_equal(image[0].numpy(), _pixels().T)
    assert np.array_equal(image.affine, np.eye(3))
    assert image.shape[0] == 1


@case(
    "pictures", (".png", np.uint16), (".tif", np.uint16), (".tif", np.float32), (".tif", np.int32)
)
def _pictures_of_more_bits(folder, suffix, dtype):
    pixels = (_pixels().astype(np.float64) * 200).astype(dtype)
    Image.fromarray(pixels).save(folder / f"a{suffix}")
    assert np.array_equal(LoadVolume()(folder / f"a{suffix}")[0].numpy(), pixels.T)


@case("pictures", "RGB", "RGBA", "P", "CMYK")
def _colours_are_three_channels(folder, mode):
    colours = np.stack([_pixels(n) // 86 * 85 for n in range(3)], -1)
    name = "a.tif" if mode == "CMYK" else "a.png"
    Image.fromarray(colours).convert(mode).save(folder / name)
    assert LoadVolume()(folder / name).shape == (3, 31, 20)


@case("pictures", *range(2, 9))
def _a_camera_that_was_turned(folder, turn):
    """JPEG's orientation, by which viewers turn a picture."""
    upright = Image.fromarray(np.add.outer(5 * np.arange(32), np.arange(48)).astype(np.uint8))
    exif = upright.getexif()
    exif[0x0112] = turn
    upright.save(folder / "a.jpg", quality=95, exif=exif)
    upright.save(folder / "b.jpg", quality=95)
    turned, plain = (LoadVolume()(folder / name)[0].numpy().T for name in ("a.jpg", "b.jpg"))
    ways = {2: np.fliplr, 3: lambda a: a[::-1, ::-1], 4: np.flipud, 5: np.transpose}
    ways |= {6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].T, 8: np.rot90}
    assert np.array_equal(turned, ways[turn](plain))


@case("pictures", ((300, 300), (1, 1)), ((204, 98), (1, 204 / 98)), ((72, 144), (2, 1)))
def _resolutions(folder, dpi, pixel):
    for suffix in (".png", ".tif"):
        Image.fromarray(_pixels()).save(folder / f"a{suffix}", dpi=dpi)
        affine = LoadVolume()(folder / f"a{suffix}").affine
        np.testing.assert_allclose(affine, np.diag([*pixel, 1]), rtol=1e-2)


@case("pictures", 2, 5)
def _pages_are_refused(folder, pages):
    first, *others = (Image.fromarray(_pixels(n)) for n in range(pages))
    first.save(folder / "a.tif", save_all=True, append_images=others)
    _refused(folder / "a.tif", f"must be one picture, got {pages} pages")


@case("pictures", "LA", "RGBA")
def _transparent_pixels_are_refused(folder, mode):
    picture = Image.fromarray(_pixels()).convert(mode)
    picture.putalpha(Image.fromarray(_pixels(1)))
    picture.save(folder / "a.png")
    _refused(folder / "a.png", "must be opaque")


# Headers

MHA = {"NDims": 3, "DimSize": "4 4 4", "ElementSpacing": "1 1 1", "ElementType": "MET_SHORT"}


@case(
    "headers",
    *({"NDims": n} for n in (-1, 0, 5, 10, 4096, "x", "")),
    *({"DimSize": d} for d in ("4 4", "4 4 4 4", "4 " * 1000)),
)
def _metaimage_axes(folder, fields):
    lines = [f"{key} = {value}" for key, value in (MHA | fields).items()]
    content = "\n".join(["ObjectType = Image", *lines, "ElementDataFile = LOCAL\n"]).encode()
    (folder / "a.mha").write_bytes(content + bytes(128))
    _refused(folder / "a.mha", "must be a scalar image")


@case("headers", *((f, n) for f in ("kinds", "centers", "spacings", "sizes") for n in (1, 1000)))
def _nrrd_fields(folder, field, count):
    fields = {"type": "short", "dimension": 3, "sizes": "4 4 4", "encoding": "raw"}
    fields |= {
        "endian": "little",
        field: " ".join(["1" if field[-4:] != "nds" else "domain"] * count),
    }
    lines = [f"{key}: {value}" for key, value in fields.items()]
    (folder / "a.nrrd").write_bytes("\n".join(["NRRD0004", *lines]).encode() + b"\n\n" + bytes(128))
    _refused(folder / "a.nrrd", f"with 3 values for its field {field}, got {count}")


@case(
    "headers", *((s, side) for s in (".mha", ".nrrd", ".nii", ".png") for side in (30_000, 32_767))
)
def _gigabytes_for_a_few_bytes(folder, suffix, side):
    size = f"{side} {side} {side}"
    file = folder / f"a{suffix}"
    if suffix == ".mha":
        lines = [f"{key} = {value}" for key, value in (MHA | {"DimSize": size}).items()]
        lines = ["ObjectType = Image", *lines, "ElementDataFile = LOCAL\n"]
        file.write_bytes("\n".join(lines).encode())
    elif suffix == ".nrrd":
        lines = ["NRRD0004", "type: short", "dimension: 3", f"sizes: {size}", "encoding: raw"]
        file.write_bytes("\n".join([*lines, "endian: little"]).encode() + b"\n\n")
    elif suffix == ".nii":
        header = nib.Nifti1Header()
        header.set_data_shape((side,) * 3)
        file.write_bytes(header.binaryblock + bytes(4))
    else:
        Image.fromarray(_pixels()).save(file)
        content = bytearray(file.read_bytes())
        content[16:24] = struct.pack(">II", side, side)
        file.write_bytes(content)
    _refused(file, "must be a scalar image|must be readable")


@case("headers", 200, 5000)
def _sequences_in_sequences(folder, depth):
    write_series(folder / "scan", _noise((8, 8, 3)))
    for file, _ in headers(folder / "scan"):
        start = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        ends = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        content = file.read_bytes()
        at = content.index(struct.pack("<HH2s", 0x0008, 0x0060, b"CS"))
        nested = (start + item) * depth + ends * depth
        rest = content[at:]
        following = rest.index(struct.pack("<HH2s", 0x0010, 0x0010, b"PN"))
        file.write_bytes(content[:at] + rest[:following] + nested + rest[following:])
    _refused(folder / "scan", "DICOM")


@case("headers", "PALETTE COLOR", "RGB", "YBR_FULL")
def _dicom_colours(folder, kind):
    write_series(folder / "scan", _noise((8, 8, 3)))
    for file, dataset in headers(folder / "scan"):
        dataset.PhotometricInterpretation = kind
        dataset.save_as(file)
    _refused(folder / "scan", f"must be grey, got {kind}")


@case("headers", 30_000, 65_535)
def _dicom_rows(folder, rows):
    write_series(folder / "scan", _noise((8, 8, 3)))
    for file, dataset in headers(folder / "scan"):
        dataset.Rows = rows
        dataset.save_as(file)
    _refused(folder / "scan", "must hold the .* bytes that its header asks for")


@case("headers", 0, 1)
def _tiff_directories_in_a_circle(folder, page):
    pictures = [Image.fromarray(_pixels(n)) for n in range(1 + page)]
    pictures[0].save(folder / "a.tif", save_all=True, append_images=pictures[1:])
    content = bytearray(folder.joinpath("a.tif").read_bytes())
    first = at = struct.unpack("<I", content[4:8])[0]
    while True:
        count = struct.unpack("<H", content[at : at + 2])[0]
        end = at + 2 + 12 * count
        following = struct.unpack("<I", content[end : end + 4])[0]
        if not following:
            break
        at = following
    content[end : end + 4] = struct.pack("<I", first)
    (folder / "a.tif").write_bytes(content)
    _refused(folder / "a.tif", "pages")


def _written(folder, suffix):
    if suffix in (".png", ".tif", ".jpg", ".bmp"):
        Image.fromarray(_pixels()).save(folder / f"a{suffix}")
    elif suffix == ".dcm":
        write_series(folder, _noise((8, 8, 1)))
        (folder / "003.dcm").rename(folder / "a.dcm")
    else:
        image = SimpleITK.GetImageFromArray(_noise((6, 7, 8)))
        SimpleITK.WriteImage(image, str(folder / f"a{suffix}"))
    return folder / f"a{suffix}"


FUZZED = (".mha", ".nrrd", ".nii", ".nii.gz", ".png", ".tif", ".jpg", ".bmp", ".dcm")


@case("headers", *((suffix, seed) for suffix in FUZZED for seed in range(3)))
def _random_bytes_in_a_header_end_nothing(folder, suffix, seed):
    """Eight files, with some bytes of their first 400 replaced: an image, or one line."""
    file, rng = _written(folder, suffix), np.random.default_rng(seed)
    content = file.read_bytes()
    for _ in range(8):
        broken = bytearray(content)
        for at in rng.integers(0, min(400, len(content)), rng.integers(1, 6)):
            broken[at] = rng.integers(0, 256)
        file.write_bytes(broken)
        said = _said(file)
        assert said is None or (said.startswith(str(file)) and len(said.splitlines()) == 1)


def _said(file):
    """Why a file is refused, None where it is read; any other error is a bug."""
    try:
        LoadVolume()(file)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("function", "given"), [c[2:] for c in CASES], ids=[f"{c[0]}-{c[1]}" for c in CASES]
)
@pytest.mark.filterwarnings("ignore:.*nvImageCodec", "ignore:::pydicom")
def test_an_input(tmp_path, function, given):
    function(tmp_path, *given)


def test_the_page_counts_the_inputs():
    page = (ROOT / "docs/inputs.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+?) \| (\d+) \|", page, re.MULTILINE))
    counts = Counter(kind for kind, *_ in CASES)
    assert {kind: int(n) for kind, n in rows.items()} == {**counts, "together": len(CASES)}
    assert len(CASES) >= 150
