"""Maps of every kind lie over their images the right way round, or are refused by name."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage
from PIL import Image

from monai_dpmm.errors import InputError
from monai_dpmm.study.external_maps import find_maps, laid_over, load_map, matched_maps

SUFFIXES = (".npy", ".npz", ".tif", ".tiff")


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, scores=array)
    elif path.suffix.startswith(".tif"):
        Image.fromarray(array).save(path)
    else:
        nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def marked(shape, place, dtype=np.float32):
    array = np.zeros(shape, dtype)
    array[place] = 1
    return array


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [".png", ".tif", ".bmp"])
def test_a_marked_pixel_of_a_picture_lies_on_that_pixel(tmp_path, kind, suffix):
    """Row 2 and column 5 of a 4 x 7 picture, whatever axes MONAI's reader of pictures has."""
    file = tmp_path / f"image{kind}"
    Image.fromarray(marked((4, 7), (2, 5), np.uint8)).save(file)
    label = LoadImage(image_only=True, ensure_channel_first=True)(file)
    path = save(tmp_path / f"maps/image{suffix}", marked((4, 7), (2, 5)) + 1)
    anomaly = laid_over(path, file, label)
    assert anomaly.dtype == torch.float32
    assert torch.equal(anomaly, label.as_tensor() + 1)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 1), (6, 4)])
def test_a_marked_voxel_lies_on_that_voxel(tmp_path, shape, suffix):
    place = tuple(n - 2 for n in shape)
    file = save(tmp_path / "image.nii.gz", marked(shape, place))
    label = LoadImage(image_only=True, ensure_channel_first=True)(file)
    path = save(tmp_path / f"maps/image{suffix}", marked(shape, place))
    assert torch.equal(laid_over(path, file, label), label.as_tensor())


def test_what_monai_saves_is_read_back(tmp_path):
    from monai.transforms import SaveImage

    affine = torch.tensor([[0, 2.0, 0, 5], [-1, 0, 0, 3], [0, 0, 3, -7], [0, 0, 0, 1]])
    label = MetaTensor(torch.rand(1, 4, 5, 6), affine=affine, meta={"filename_or_obj": "scan.nii"})
    SaveImage(tmp_path, "anomaly", separate_folder=False, resample=False, print_log=False)(label)
    (path,) = find_maps(tmp_path, "_anomaly")
    assert torch.equal(laid_over(path, "scan.nii", label), label.as_tensor())


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.uint16, bool])
def test_numbers_of_any_type_become_float32(tmp_path, dtype):
    array, affine = load_map(save(tmp_path / "a.npy", marked((2, 3), (1, 2), dtype)))
    assert array.dtype == np.float32
    assert array[1, 2] == 1
    assert affine is None


def test_axes_of_length_one_do_not_matter(tmp_path):
    label = torch.zeros(1, 7, 4)  # as MONAI has a picture of 4 rows
    expected = torch.from_numpy(marked((7, 4), (5, 2)))[None]
    for shape in ((1, 4, 7), (4, 7, 1), (1, 1, 4, 7)):
        path = save(tmp_path / "image.npy", marked((4, 7), (2, 5)).reshape(shape))
        assert torch.equal(laid_over(path, "image.png", label), expected)


def test_maps_are_matched_by_name_wherever_they_lie(tmp_path):
    images = [f"/data/test/images/{name}.nii.gz" for name in ("b", "a", "c.1")]
    for name in ("a.npy", "deep/er/b.tiff", "c.1.nii.gz", ".hidden.npy", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [path.name for path in matched_maps(images, tmp_path)]
    assert found == ["b.tiff", "a.npy", "c.1.nii.gz"]


def test_a_postfix_tells_maps_from_other_files(tmp_path):
    for name in ("a_anomaly.nii.gz", "a_mask.nii.gz", "a_component.nii.gz"):
        (tmp_path / name).touch()
    (path,) = matched_maps(["x/a.nii.gz"], tmp_path, "_anomaly")
    assert path.name == "a_anomaly.nii.gz"


def test_where_names_repeat_the_path_counts(tmp_path):
    images = [f"/data/test/{kind}/img/1.png" for kind in ("good", "Ungood")]
    for kind in ("good", "Ungood"):
        save(tmp_path / f"{kind}/img/1.npy", np.zeros((2, 2)))
    found = [path.relative_to(tmp_path).parts[0] for path in matched_maps(images, tmp_path)]
    assert found == ["good", "Ungood"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("a.npy",), r"must hold a map for each image, none is there for b, c \(2 in all\)"),
        (("a.npy", "b.npy", "c.npy", "d.npy"), r"no map without an image, got d \(1 in all\)"),
        (("a.npy", "b.npy", "c.npy", "c.tif"), r"one map an image, several are there for c \(1"),
        (("a.txt",), r"must hold anomaly maps \(NAME and one of .npy, .npz, .*\), got none"),
    ],
)
def test_maps_that_are_missing_or_extra(tmp_path, files, message):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        matched_maps([f"images/{name}.png" for name in "abc"], tmp_path)
    with pytest.raises(InputError, match="must be a folder of anomaly maps, there is no such"):
        find_maps(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((7, 4), r"a.npy: must have the label's shape \(7, 4\) \(width, height\), got \(4, 7\)"),
        ((4, 7, 3), r"got \(3, 7, 4\)"),
        ((8, 8), r"got \(8, 8\)"),
    ],
)
def test_a_map_of_another_shape_is_refused(tmp_path, shape, message):
    path = save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    with pytest.raises(InputError, match=message):
        laid_over(path, "a.png", torch.zeros(1, 7, 4))


def test_a_map_on_another_grid_is_refused(tmp_path):
    label = MetaTensor(torch.zeros(1, 3, 4, 5))
    path = save(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.float32), np.diag([2, 1, 1, 1]))
    with pytest.raises(InputError, match="must lie on the label's grid, got another affine"):
        laid_over(path, "a.nii.gz", label)


def _several(path):
    np.savez(path, a=np.zeros(2), b=np.zeros(2))


def _text(path):
    path.write_text("no map")


def _objects(path):
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


def _complex(path):
    np.save(path, np.zeros((2, 2), complex))


def _pages(path):
    page = Image.fromarray(np.zeros((2, 2), np.uint8))
    page.save(path, save_all=True, append_images=[page])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npz", _several, "arrays a, b where one is needed"),
        ("a.npy", _text, "must be a readable anomaly map, got ValueError"),
        ("a.npy", _objects, "must be a readable anomaly map, got ValueError"),
        ("a.npy", _complex, "numbers of type complex128"),
        ("a.npz", _text, "must be a readable anomaly map"),
        ("a.nii.gz", _text, "must be a readable anomaly map"),
        ("a.tif", _text, "must be a readable anomaly map, got UnidentifiedImageError"),
        ("a.tiff", _pages, "2 pages where one is needed"),
    ],
)
def test_a_file_that_is_no_map_is_refused(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as refused:
        load_map(tmp_path / name)
    assert str(refused.value).startswith(f"{tmp_path / name}: ")
