import numpy as np
import pytest

from monai_dpmm.report.display import Scan
from monai_dpmm.study.figures.galleries import Case, case_figure, component_figure
from monai_dpmm.study.figures.results import single_slice


def _scan(seed=0, label=True, mask=True):
    rng = np.random.default_rng(seed)
    image = rng.random((12, 14, 10))
    lesion = np.zeros(image.shape, bool)
    lesion[3:7, 4:8, 3:6] = label
    components = rng.integers(1, 5, image.shape)
    components[..., :2] = 0
    return Scan.of(image, image * 0.5 + lesion, lesion & mask, components, lesion)


def test_a_colour_is_one_prototype_in_every_panel():
    colors = np.eye(4, 3) * 0.8 + 0.1
    scans = [("a", _scan(0)), ("b", _scan(1, label=False))]
    figure = component_figure(scans, colors)
    maps = [im for ax in figure.axes for im in ax.images if np.ndim(im.get_array()) == 3]
    assert len(maps) == 6
    for image in maps:
        found = np.unique(np.asarray(image.get_array()).reshape(-1, 3), axis=0)
        assert all(np.isclose(colors, color).all(1).any() for color in found)
    assert {"a", "b"} <= {text.get_text() for ax in figure.axes for text in ax.texts}


@pytest.mark.slow
def test_slices_are_taken_where_there_are_patches_and_lesions_are_outlined():
    figure = component_figure([("a", _scan())], np.ones((4, 3)))
    outlined = [bool(ax.collections) for ax in figure.axes]
    assert outlined == [True, True, False, False, False, False]  # slices 4, 6 and 7 of 2 to 9


def test_cases_stand_in_columns_under_their_titles():
    cases = [Case(f"{n} of 4", "AUPR", single_slice(_scan(n))) for n in (1, 3, 4)]
    figure = case_figure(cases, threshold=0.6)
    titles = [t.get_text() for ax in figure.axes for t in ax.texts if " of 4" in t.get_text()]
    assert titles == ["1 of 4", "3 of 4", "4 of 4"]
    bar = figure.axes[-1]
    assert next(t.get_text() for t in bar.get_xticklabels()) == "mask threshold 0.6"
    assert bar.get_xlim()[0] == 0.6  # as in the panels: nothing below the threshold has a colour


@pytest.mark.parametrize(("mask", "count"), [(True, 1), (False, 0)])
def test_masks_are_those_of_the_scan(mask, count):
    axes = case_figure([Case("x", "", single_slice(_scan(mask=mask)))], 0.6).axes[2]
    assert sum(c.get_label() == "mask" for c in axes.collections) == count


def test_pictures_have_one_slice():
    picture = np.random.default_rng(0).random((20, 30))
    scan = Scan.of(picture, picture, None, np.ones((20, 30)), picture > 0.9)
    figure = component_figure([(name, scan) for name in "abcd"], np.ones((1, 3)))
    assert len(figure.axes) == 8
    tops = {round(axes.get_position().y0, 6) for axes in figure.axes}
    assert len(tops) == 2  # three in a row
    assert len(case_figure([Case("x", "", single_slice(scan))], 0.5).axes) == 4


def test_nothing_to_show_is_refused():
    with pytest.raises(ValueError, match="scans must not be empty"):
        component_figure([], np.ones((1, 3)))
    with pytest.raises(ValueError, match="cases must not be empty"):
        case_figure([], 0.5)
