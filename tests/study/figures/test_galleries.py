import numpy as np
import pytest

from monai_dpmm.report.display import Scan
from monai_dpmm.study.figures.cases import Case, Cases, single_slice
from monai_dpmm.study.figures.galleries import case_figure, component_figure


def _scan(seed=0, label=True):
    rng = np.random.default_rng(seed)
    image = rng.random((12, 14, 10))
    lesion = np.zeros(image.shape, bool)
    lesion[3:7, 4:8, 3:6] = label
    components = rng.integers(1, 5, image.shape)
    components[..., :2] = 0
    return Scan.of(image, image * 0.5 + lesion, None, components, lesion)


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


def test_slices_are_taken_where_there_are_patches_and_lesions_are_outlined():
    figure = component_figure([("a", _scan())], np.ones((4, 3)))
    outlined = [bool(ax.collections) for ax in figure.axes]
    assert outlined == [True, True, False, False, False, False]  # slices 4, 6 and 7 of 2 to 9


def test_cases_run_from_the_best_to_the_worst():
    cases = Cases(3)
    for number, aupr in enumerate((0.2, 0.9, 0.5, 0.4)):
        cases.add(Case(f"scan{number}", aupr, aupr / 2, single_slice(_scan(number))))
    figure = case_figure(cases, threshold=0.6)
    titles = [t.get_text() for ax in figure.axes for t in ax.texts if " of 4" in t.get_text()]
    assert titles == ["1 of 4: scan1", "3 of 4: scan3", "4 of 4: scan0"]
    bar = figure.axes[-1]
    assert [t.get_text() for t in bar.get_xticklabels()][1] == "threshold 0.6"


def test_masks_are_those_of_the_threshold():
    cases = Cases(1)
    cases.add(Case("x", 0.5, 0.5, single_slice(_scan())))
    counts = []
    for threshold in (0.6, 9.0):
        axes = case_figure(cases, threshold).axes[2]
        counts.append(sum(c.get_label() == "predicted" for c in axes.collections))
    assert counts == [1, 0]


def test_pictures_have_one_slice():
    picture = np.random.default_rng(0).random((20, 30))
    scan = Scan.of(picture, picture, None, np.ones((20, 30)), picture > 0.9)
    figure = component_figure([(name, scan) for name in "abcd"], np.ones((1, 3)))
    assert len(figure.axes) == 8
    tops = {round(axes.get_position().y0, 6) for axes in figure.axes}
    assert len(tops) == 2  # three in a row
    cases = Cases(2)
    cases.add(Case("x", 0.5, 0.5, single_slice(scan)))
    assert len(case_figure(cases, 0.5).axes) == 4


def test_nothing_to_show_is_refused():
    with pytest.raises(ValueError, match="scans must not be empty"):
        component_figure([], np.ones((1, 3)))
    with pytest.raises(ValueError, match="cases must not be empty"):
        case_figure(Cases(2), 0.5)
