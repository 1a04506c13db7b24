import numpy as np
import pytest

from monai_dpmm.study.figures.atlas import Atlas, atlas_figure
from monai_dpmm.study.figures.scenes import Frame, SlicePatches

FRAME = Frame(np.diag([1.0, -1, 1, 1]), 3, 2)


def _slice(scores, components, shape=(40, 20)):
    """A slice whose pixels tell their own place: the row in tens, the column in units."""
    rows, columns = np.indices(shape)
    pixels = (rows * 100 + columns).astype(np.float32)
    return SlicePatches(pixels, np.array(scores, np.float32), np.array(components))


def test_the_nearest_patches_are_kept_each_from_another_slice():
    slices = [
        _slice([[0.3, 0.1], [0.2, 0.9]], [[5, 5], [5, 7]]),
        _slice([[0.4, 0.8], [0.05, 0.7]], [[5, 7], [-1, 7]]),
    ]
    atlas = Atlas([5, 7, 9], examples=2, scans=1)
    atlas.add(FRAME, slices)
    assert [e.score for e in atlas.examples[5]] == pytest.approx([0.1, 0.4])
    assert [e.score for e in atlas.examples[7]] == pytest.approx([0.7, 0.9])
    assert atlas.examples[9] == []


def test_a_scan_gives_its_share_and_the_best_of_all_stay():
    atlas = Atlas([1], examples=2, scans=2)
    for score in (0.5, 0.3):
        atlas.add(FRAME, [_slice([[score, score + 0.1]], [[1, 1]]), _slice([[0.9, 0.9]], [[1, 1]])])
    assert [e.score for e in atlas.examples[1]] == pytest.approx([0.3, 0.5])


def test_the_patch_is_in_the_middle_of_its_surroundings_upright():
    """Patch (0, 1) of a 4 x 2 grid: its centre is the pixel (5, 15); beyond the slice is black."""
    scores = np.full((4, 2), 0.9)
    scores[0, 1] = 0.1
    atlas = Atlas([3], examples=1, scans=1)
    atlas.add(FRAME, [_slice(scores, np.full((4, 2), 3))])
    (example,) = atlas.examples[3]
    assert example.picture.shape == (70, 70)
    assert example.patch == (10, 10)
    pixels = FRAME.upright(_slice(scores, scores).pixels)
    ours = np.argwhere(example.picture == 515)  # row 5, column 15
    assert abs(ours - 34.5).max() <= 1
    seen = set(example.picture.ravel()) - {0}
    assert seen <= set(pixels.ravel())
    assert (example.picture == 0).mean() > 0.4


def test_oblong_patches_turn_with_the_picture():
    turned = Frame(np.array([[0, 1.0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), 3, 2)
    patches = _slice([[0.1, 0.2]], [[0, 0]], shape=(40, 20))
    sizes = []
    for frame in (FRAME, turned):
        atlas = Atlas([0], examples=1, scans=1)
        atlas.add(frame, [patches])
        sizes.append(atlas.examples[0][0].patch)
    assert sorted(sizes) == [(10, 40), (40, 10)]


def test_the_figure_has_a_row_for_each_prototype_that_was_found():
    atlas = Atlas([5, 7, 9], examples=3, scans=1)
    atlas.add(FRAME, [_slice([[0.3, 0.1]], [[5, 7]]), _slice([[0.4, 0.2]], [[5, 7]])])
    weights, colors = np.linspace(0, 0.1, 10), np.random.default_rng(0).random((10, 3))
    figure = atlas_figure(atlas, weights, colors)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == ["no. 6", "5.6 %", "no. 8", "7.8 %"]
    assert sum(len(axes.images) for axes in figure.axes) == 4
    swatches = [axes.patches[0] for axes in figure.axes if axes.texts]
    np.testing.assert_allclose(swatches[0].get_facecolor()[:3], colors[5])


def test_an_empty_atlas_is_refused():
    with pytest.raises(ValueError, match="atlas must hold patches, got none"):
        atlas_figure(Atlas([1], examples=3, scans=1), np.ones(3), np.ones((3, 3)))
