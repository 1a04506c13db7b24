from types import SimpleNamespace

import numpy as np
import pytest

from monai_dpmm.report.display import Scan
from monai_dpmm.study.figures import atlas
from monai_dpmm.study.figures.atlas import Atlas, atlas_figure


def _scan(scores, components, label=None):
    """A scan of axial slices (S, X, Y) of 4 patches of 2 x 2 mm in a row, of one in the other."""
    scores, components = (
        np.repeat(np.array(x, float), 2, axis=1)[..., None] for x in (scores, components)
    )
    arrays = [np.moveaxis(np.repeat(x, 2, axis=2), 0, 2) for x in (scores, components)]
    image = np.arange(arrays[0].size).reshape(arrays[0].shape) / 100
    return Scan.of(image, arrays[0], None, arrays[1], label)


@pytest.fixture
def atlas_of(monkeypatch):
    """An atlas of so many examples, whose pictures are 7 x 7 mm of scans 2 mm wide."""
    network = SimpleNamespace(patch_size=8, image_size=16)

    def make(components, count, scans):
        monkeypatch.setattr(atlas, "_EXAMPLES", count)
        return Atlas(components, network, scans)

    return make


def test_the_nearest_places_are_kept_each_from_another_slice(atlas_of):
    scan = _scan([[0.3, 0.1, 0.2, 0.9], [0.4, 0.8, 0.05, 0.7]], [[6, 6, 6, 8], [6, 8, 0, 8]])
    filled = atlas_of([5, 7, 9], count=2, scans=1)
    filled.add(scan)
    assert [e.score for e in filled.examples[5]] == pytest.approx([0.1, 0.4])
    assert [e.score for e in filled.examples[7]] == pytest.approx([0.7, 0.9])
    assert filled.examples[9] == []


def test_a_scan_gives_its_share_and_the_best_of_all_stay(atlas_of):
    filled = atlas_of([1], count=2, scans=2)
    for score in (0.5, 0.3):
        filled.add(_scan([[score, score + 0.1], [0.9, 0.9]], [[2, 2], [2, 2]]))
    assert [e.score for e in filled.examples[1]] == pytest.approx([0.3, 0.5])


def test_places_in_lesions_are_left_out(atlas_of):
    label = np.zeros((4, 2, 1))
    label[:2] = 1
    filled = atlas_of([1], count=2, scans=1)
    filled.add(_scan([[0.1, 0.7]], [[2, 2]], label))
    assert [e.score for e in filled.examples[1]] == pytest.approx([0.7])


def test_the_place_is_in_the_middle_of_its_surroundings_and_its_area_is_outlined(atlas_of):
    """On the screen the first axis runs to the left: the patch at 6 and 7 mm is the first one."""
    scan = _scan([[0.9, 0.9, 0.9, 0.1]], [[2, 2, 2, 4]])
    filled = atlas_of([3], count=1, scans=1)
    filled.add(scan)
    (example,) = filled.examples[3]
    middle = tuple((n - 1) // 2 for n in example.picture.shape)
    assert example.picture.shape == example.area.shape
    assert example.picture[middle] in scan.image[6:]
    assert example.area[middle]
    assert example.area.sum() == 4
    seen = set(example.picture.ravel()) - {0}
    assert seen <= set(scan.image.ravel())
    assert (example.picture == 0).mean() > 0.4


def test_the_figure_has_a_row_for_each_prototype_that_was_found(atlas_of):
    filled = atlas_of([5, 7, 9], count=3, scans=1)
    filled.add(_scan([[0.3, 0.1], [0.4, 0.2]], [[6, 8], [6, 8]]))
    weights, colors = np.linspace(0, 0.1, 10), np.random.default_rng(0).random((10, 3))
    figure = atlas_figure(filled, weights, colors)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == ["no. 6", "5.6 %", "no. 8", "7.8 %"]
    assert sum(len(axes.images) for axes in figure.axes) == 4
    swatches = [axes.patches[0] for axes in figure.axes if axes.texts]
    np.testing.assert_allclose(swatches[0].get_facecolor()[:3], colors[5])


def test_an_empty_atlas_is_refused(atlas_of):
    with pytest.raises(ValueError, match="atlas must hold places, got none"):
        atlas_figure(atlas_of([1], count=3, scans=1), np.ones(3), np.ones((3, 3)))
