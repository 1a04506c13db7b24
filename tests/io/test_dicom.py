"""A DICOM folder is one whole series in its own geometry, or one clear line."""

import shutil

import numpy as np
import pytest
from dicom_files import OBLIQUE, headers, write_series

from monai_dpmm.errors import InputError
from monai_dpmm.io.dicom import check_series
from monai_dpmm.io.loading import LoadVolume

pytestmark = pytest.mark.filterwarnings("ignore:.*nvImageCodec")


def _volume(seed=0):
    return np.random.default_rng(seed).integers(1, 1000, (12, 9, 8))


@pytest.mark.parametrize("directions", [OBLIQUE, (1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1)])
def test_a_series_lies_where_its_headers_say(tmp_path, directions):
    volume = _volume()
    to_lps = write_series(tmp_path / "scan", volume, directions=directions, spacing=(1.5, 0.8, 3))
    image = LoadVolume()(tmp_path / "scan")
    to_ras = np.diag([-1, -1, 1, 1]) @ to_lps
    indices = np.argwhere(volume == volume.max())
    world = np.c_[indices, np.ones(len(indices))] @ to_ras.T
    array = image[0].numpy()
    found = np.argwhere(array == array.max())
    where = np.c_[found, np.ones(len(found))] @ image.affine.numpy().T
    assert array.max() == volume.max()
    np.testing.assert_allclose(where[np.lexsort(where.T)], world[np.lexsort(world.T)], atol=1e-3)


@pytest.mark.parametrize("degrees", [-20, 20])
def test_a_tilted_gantry_is_not_straightened(tmp_path, degrees):
    """The table moves along z, the slices are turned about x: ITK alone is 12 mm off here."""
    turn = np.deg2rad(degrees)
    directions = (1, 0, 0, 0, np.cos(turn), -np.sin(turn))
    to_lps = write_series(tmp_path / "scan", _volume(), directions=directions)
    to_lps[:3, 2] = (0, 0, 5)
    for file, dataset in headers(tmp_path / "scan"):
        number = dataset.InstanceNumber - 1
        dataset.ImagePositionPatient = list(to_lps[:3] @ (0, 0, number, 1))
        dataset.save_as(file)
    image = LoadVolume()(tmp_path / "scan")
    assert np.array_equal(image[0].numpy(), _volume())
    np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ to_lps, atol=1e-6)


def _missing(folder):
    headers(folder)[3][0].unlink()


def _twice(folder):
    shutil.copy(headers(folder)[2][0], folder / "copy.dcm")


def _mixed(folder):
    write_series(folder / "other", _volume(1)[:, :, :3])
    for file, _ in headers(folder / "other"):
        shutil.copy(file, folder / f"other_{file.name}")


def _localizer(folder):
    file, dataset = headers(folder)[0]
    dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
    dataset.save_as(file)


def _cut(folder):
    file = headers(folder)[0][0]
    file.write_bytes(file.read_bytes()[:100])


def _nowhere(folder):
    file, dataset = headers(folder)[0]
    del dataset.ImagePositionPatient
    dataset.save_as(file)


def _without_pixels(folder):
    file = headers(folder)[4][0]
    file.write_bytes(file.read_bytes()[:-30])


def _empty(folder):
    for file, _ in headers(folder):
        file.rename(file.with_suffix(""))
    (folder / "003").write_bytes(b"")


def _edited(folder, **values):
    file, dataset = headers(folder)[5]
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.save_as(file)


def _smaller(folder):
    _edited(folder, Rows=5, PixelData=bytes(12 * 5 * 2))


def _stretched(folder):
    _edited(folder, PixelSpacing=[3, 3])


def _flat(folder):
    for file, dataset in headers(folder):
        dataset.PixelSpacing = [1, 0]
        dataset.save_as(file)


def _shifted(folder):
    position = headers(folder)[5][1].ImagePositionPatient
    row = np.array(OBLIQUE[:3])
    _edited(folder, ImagePositionPatient=[f"{x:.6f}" for x in np.array(position, float) + 4 * row])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_missing, "slices are missing: neighbours are 2 mm apart, but some 4 mm"),
        (_twice, "1 of 9 slices lie where another one lies"),
        (_mixed, "2 series lie in the folder, of 8, 3 files"),
        (_localizer, "slices have different directions"),
        (_cut, "is no readable DICOM file"),
        (_nowhere, "slices must have a position and an orientation"),
        (_without_pixels, r"031\.dcm cannot be read"),
        (_empty, "003 is no readable DICOM file"),
        (_smaller, "slices have different sizes: 12 x 5, 12 x 9"),
        (_stretched, "pixels must have one size above 0, got 1 to 3 mm"),
        (_flat, "pixels must have one size above 0, got 0 to 1 mm"),
        (_shifted, "slices are shifted against each other, by 4 mm"),
    ],
)
def test_a_spoilt_series_is_refused(tmp_path, spoil, message):
    write_series(tmp_path / "scan", _volume())
    spoil(tmp_path / "scan")
    with pytest.raises(InputError, match=f"scan: must be one DICOM series: .*{message}"):
        LoadVolume()(tmp_path / "scan")


def test_other_files_beside_a_series_do_not_matter(tmp_path):
    write_series(tmp_path / "scan", _volume())
    (tmp_path / "scan/readme.txt").write_text("scanned on Monday")
    assert check_series(tmp_path / "scan").positions.shape == (8, 3)


def test_a_folder_without_dicom_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no DICOM file of an image in the folder"):
        check_series(tmp_path)
