import json
import math
import os
import re
import sys
from functools import partial
from html.parser import HTMLParser

import matplotlib
import nibabel as nib
import numpy as np
import pytest
import torch
from nilearn.datasets import load_mni152_template

from monai_dpmm.report import report as report_module
from monai_dpmm.report.display import (
    colored_components,
    displayed_slice,
    fullest_slice,
    grey_range,
    heat_range,
    peak_slices,
    peak_voxel,
    scale_bar,
)
from monai_dpmm.report.report import metrics_table, subject_figure, training_figure

write_report = partial(report_module.write_report, viewers=False)  # theirs is test_viewer.py
HISTORY = {
    "epoch": [1, 2, 3, 4],
    "train_log_likelihood": [10.0, 12.0, 13.0, 14.0],
    "val_log_likelihood": [9.0, 11.0, 12.5, 12.0],
    "concentration": [2.0, 3.0, 4.0, 5.0],
    "components": [100, 80, 60, 50],
}


@pytest.fixture(scope="module")
def brain():
    """A template brain with a lesion right, anterior and superior; scores, mask, label, map."""
    image = load_mni152_template(resolution=4).get_fdata().astype(np.float32)
    center = (np.array(image.shape) * (0.68, 0.62, 0.66)).astype(int)
    grid = np.indices(image.shape) - center[:, None, None, None]
    distance = np.sqrt((grid**2).sum(0)) * 4
    anomaly = (0.2 + 0.05 * (image > 0) + 0.4 * np.exp(-((distance / 16) ** 2))).astype(np.float32)
    volumes = {"image": image, "anomaly": anomaly, "mask": anomaly > 0.4, "label": distance < 12}
    volumes["components"] = (np.indices(image.shape).sum(0) // 6).astype(np.uint16)
    return volumes, tuple(int(c) for c in center)


def _subjects(brain, count=2):
    volumes, _ = brain
    names = [f"subject_{n}.nii.gz" for n in range(count)]
    return [
        {**volumes, "name": name, "score": 0.5 + n / 10, "threshold": 0.4, "metrics": {"aupr": 0.7}}
        for n, name in enumerate(names)
    ]


def _panels(figure):
    return {axes.get_label().split()[0]: axes for axes in figure.axes}


def _texts(figure):
    inside = [text for axes in figure.axes for text in axes.texts]
    return [text.get_text() for text in (*figure.texts, *inside)]


def _pixels(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(float)


def _marked_place(figure, panel):
    """Centre (x, y) of the bright pixels of a panel, as fractions from its upper left corner."""
    pixels = _pixels(figure)
    box = panel.get_window_extent()
    top, left = round(len(pixels) - box.y1), round(box.x0)
    part = pixels[top : top + round(box.height), left : left + round(box.width)]
    y, x = np.nonzero(part.min(axis=2) > 200)
    return x.mean() / part.shape[1], y.mean() / part.shape[0]


# figures of a subject


def test_panels_contours_and_color_bar(brain):
    volumes, _ = brain
    figure = subject_figure(**volumes, threshold=0.4, spacing=(4, 4, 4), title="name")
    panels = _panels(figure)
    assert list(panels) == ["slice", "anomaly", "mask", "components", "color"]
    contours = {c.get_label(): c for c in panels["mask"].collections}
    assert set(contours) == {"mask", "label"}
    assert contours["mask"].get_linestyle() != contours["label"].get_linestyle()
    assert [line.get_label() for line in panels["color"].lines] == ["threshold"]
    assert panels["color"].lines[0].get_xdata()[0] == 0.4
    shown = fullest_slice(volumes["mask"], 2)
    expected = {"name", "mask threshold 0.4", "50 mm", f"axial slice {shown} (0 to 47)"}
    assert expected <= set(_texts(figure))


def test_panels_of_what_is_absent_are_left_out(brain):
    volumes, _ = brain
    figure = subject_figure(volumes["image"], volumes["anomaly"], label=volumes["label"])
    assert list(_panels(figure)) == ["slice", "anomaly", "mask", "color"]
    assert "Lesion of the label" in _texts(figure)


def test_overlay_is_opaque_from_the_threshold_on_and_clear_at_the_low_end(brain):
    volumes, _ = brain
    figure = subject_figure(volumes["image"], volumes["anomaly"], threshold=0.4)
    overlay = _panels(figure)["anomaly"].images[1]
    scores, alpha = np.asarray(overlay.get_array()), np.asarray(overlay.get_alpha())
    assert np.ptp(alpha[scores >= 0.4]) == 0
    assert alpha[scores >= 0.4][0] == alpha.max()
    assert alpha[scores <= heat_range(volumes["anomaly"], 0.4)[0]].max() == 0


def test_a_map_below_the_threshold_is_drawn_clear(brain):
    volumes, _ = brain
    figure = subject_figure(volumes["image"], volumes["anomaly"], threshold=5.0)
    assert np.asarray(_panels(figure)["anomaly"].images[1].get_alpha()).max() == 0
    assert "mask threshold 5" in _texts(figure)
    _pixels(figure)


def test_a_map_above_the_threshold_as_a_whole_is_still_readable(brain):
    """Its scale goes from the threshold to the top, not from the threshold to itself."""
    scores = np.linspace(3, 9, 1000).reshape(10, 10, 10)
    low, high = heat_range(scores, 1.0)
    assert low == 1.0
    assert 8.9 < high <= 9
    figure = subject_figure(scores, scores, threshold=1.0)
    colors = _panels(figure)["anomaly"].images[1]
    shown = colors.cmap(colors.norm(np.array([3.0, 6.0, 9.0])))
    assert np.abs(np.diff(shown[:, :3], axis=0)).sum(axis=1).min() > 0.3
    _pixels(figure)


def test_a_slice_of_the_largest_lesion_follows_where_the_first_does_not_show_it(brain):
    volumes, center = brain
    label = np.roll(volumes["label"], -14, axis=2)
    rows = _texts(subject_figure(**{**volumes, "label": label}, threshold=0.4))
    assert f"axial slice {center[2] - 14} (0 to 47)" in rows
    assert sum(text.startswith("axial slice") for text in rows) == 2
    alone = _texts(subject_figure(**volumes, threshold=0.4))
    assert sum(text.startswith("axial slice") for text in alone) == 1


@pytest.mark.parametrize(
    ("axis", "letters", "place"),
    [(0, "APSI", (0.3, 0.2)), (1, "RLSI", (0.1, 0.2)), (2, "RLAP", (0.1, 0.3))],
)
def test_radiological_convention_whatever_the_rcparams(axis, letters, place):
    image = np.zeros((20, 20, 20))
    image[17:19, 13:15, 15:17] = 1  # far right, a little anterior, superior
    with matplotlib.rc_context({"image.origin": "lower", "image.aspect": "auto"}):
        figure = subject_figure(image, image, axis=axis)
    panel = _panels(figure)["slice"]
    found = {t.get_text(): t.get_position() for t in panel.texts}
    left, right, top, bottom = letters
    assert found[left][0] < 0.1 < 0.9 < found[right][0]
    assert found[bottom][1] < 0.1 < 0.9 < found[top][1]
    for artist in (*panel.texts, *panel.lines):
        artist.set_visible(False)
    assert _marked_place(figure, panel) == pytest.approx(place, abs=0.02)


def test_contour_lies_around_the_marked_voxels():
    mask = np.zeros((20, 30, 5))
    mask[16:18, 24:27, 2] = 1
    figure = subject_figure(mask, mask, mask=mask, spacing=(2, 1, 1))
    (contour,) = _panels(figure)["mask"].collections
    low, high = contour.get_paths()[0].get_extents().get_points()
    np.testing.assert_allclose((low, high), [(3, 2.5), (9, 6.5)], atol=1)


def test_spacing_sets_aspect_and_scale_bar():
    volume = np.random.default_rng(0).random((50, 40, 6))
    figure = subject_figure(volume, volume, axis=0, spacing=(1, 2, 5))
    panel = _panels(figure)["slice"]
    assert (panel.get_xlim(), panel.get_ylim()) == ((0, 80), (30, 0))
    (bar,) = panel.lines
    assert np.ptp(bar.get_xdata()) == 20
    assert "20 mm" in _texts(figure)


def test_picture_is_shown_as_it_is_without_letters_or_millimetres():
    picture = np.zeros((60, 40))
    picture[45:48, 4:6] = 1  # to the right, near the top
    figure = subject_figure(picture, picture, mask=picture)
    panel = _panels(figure)["slice"]
    assert not panel.texts
    assert not panel.lines
    assert _marked_place(figure, panel) == pytest.approx((46.5 / 60, 5 / 40), abs=0.02)


def test_single_slice_volume_has_directions():
    volume = np.random.default_rng(0).random((30, 20, 1))
    figure = subject_figure(volume, volume, title="costs $5_$")
    assert {"R", "L", "A", "P", "axial slice 0", "costs $5_$"} <= set(_texts(figure))


def test_missing_contour_says_where_the_lesion_is(brain):
    volumes, center = brain
    figure = subject_figure(**volumes, threshold=0.4, index=2)
    assert any(f"label: none here, largest in slice {center[2]}" in t for t in _texts(figure))
    empty = subject_figure(volumes["image"], volumes["anomaly"], mask=volumes["mask"] * 0)
    assert "mask: none here, empty in the volume" in _texts(empty)


def test_nan_is_transparent_and_not_an_error(brain):
    volumes, center = brain
    anomaly, image = volumes["anomaly"].copy(), volumes["image"].copy()
    anomaly[:5], image[0] = np.nan, np.inf
    figure = subject_figure(image, anomaly, threshold=0.4)
    alpha = np.asarray(_panels(figure)["anomaly"].images[1].get_alpha())
    assert alpha[:, -5:].max() == 0  # the first voxels along X are on the right of the screen
    assert peak_slices(anomaly, 2) == [center[2]]
    _pixels(figure)


def test_no_global_state_and_no_pyplot(brain, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    before = matplotlib.rcParams.copy()
    write_report(tmp_path / "report", subjects=_subjects(brain, 1), history=HISTORY)
    assert matplotlib.rcParams.copy() == before


# what is shown


def test_default_slice_has_the_highest_top_percent():
    anomaly = np.full((20, 20, 9), 0.1)
    anomaly[..., 3] = 0.3  # the higher mean
    anomaly[:2, :2, 6] = 0.9  # the higher 1 %
    assert peak_slices(anomaly, 2) == [6]
    assert peak_slices(anomaly, 2, 2) == [6, 3]
    assert peak_slices(anomaly, 2, 2, first=0) == [0, 6]
    assert peak_slices(np.ones((4, 4, 9)), 2) == [4]


def test_further_slices_lie_apart(brain):
    rows = peak_slices(brain[0]["anomaly"], 2, 3)
    assert len(rows) == 3
    assert min(np.diff(sorted(rows))) >= brain[0]["anomaly"].shape[2] // 6


def test_displayed_slice_is_a_view_of_the_named_voxels():
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    assert displayed_slice(volume, 2, 1)[0, 0] == volume[1, 2, 1]
    assert displayed_slice(volume, 1, 1)[0, 0] == volume[1, 1, 3]
    assert displayed_slice(volume, 0, 1)[-1, -1] == volume[1, 0, 0]
    assert np.shares_memory(displayed_slice(volume, 0, 1), volume)


def test_the_default_slice_is_where_the_mask_is_largest():
    mask = np.zeros((6, 7, 8), np.uint8)
    assert fullest_slice(None, 2) is None
    assert fullest_slice(mask, 2) is None
    mask[:3, 2, 5] = 1
    mask[4, :, 1] = 1
    assert fullest_slice(mask, 2) == 1
    assert fullest_slice(mask, 0) == 4


def test_the_peak_voxel_lies_in_the_slice_of_the_largest_mask():
    anomaly, mask = np.zeros((6, 7, 8)), np.zeros((6, 7, 8))
    assert peak_voxel(anomaly) in ((2, 3, 3), (2, 3, 4), (3, 3, 3), (3, 3, 4))
    anomaly[1, 1, 1], anomaly[4, 5, 6], anomaly[0, 0, 0] = 0.9, 0.5, np.nan
    assert peak_voxel(anomaly) == (1, 1, 1)
    mask[:, 3, 6] = 1
    assert peak_voxel(anomaly, mask) == (4, 5, 6)
    mask[:, 5, :3] = 1
    assert peak_voxel(anomaly, mask, axis=1) == (4, 5, 6)
    assert peak_voxel(anomaly, mask) == (2, 3, 0) or anomaly[..., 0].max() == 0


def test_component_colors_depend_on_the_index_alone():
    colors = colored_components(np.arange(1, 501)[None])
    assert len(np.unique(colors[0], axis=0)) == 500
    other = colored_components(np.array([[7, 499], [0, 7]], float))
    np.testing.assert_array_equal(other[0], colors[0, [6, 498]])
    assert other[1, 0, 3] == 0


def test_components_have_the_colours_that_are_given():
    table = np.random.default_rng(0).random((9, 3))
    colors = colored_components(np.array([[7, 9], [0, 1]]), table)
    np.testing.assert_array_equal(colors[0, :, :3], table[[6, 8]])
    assert colors[1, 0, 3] == 0
    with pytest.raises(ValueError, match="components must be at most 9, got 10"):
        colored_components(np.array([[10]]), table)


def test_a_figure_says_what_its_colours_mean(brain):
    volumes, _ = brain
    plain, similar = (
        _texts(subject_figure(**volumes, component_colors=colors))
        for colors in (None, np.zeros((999, 3)))
    )
    assert "one colour per prototype," in plain
    assert "similar colours: similar prototypes," in similar


def test_ranges_bear_constants_and_outliers():
    scores = np.linspace(0, 1, 1000).reshape(10, 10, 10)
    assert heat_range(scores, 0.8) == pytest.approx((0.5, 1))
    scores[0, 0, 0] = 1e6
    assert heat_range(scores, 0.8)[1] == pytest.approx(1.4, abs=0.01)
    assert heat_range(np.zeros((3, 3)), 0.2) == (0, 0.2)
    low, high = heat_range(np.full((3, 3), -5.0))
    assert low < high
    assert grey_range(np.full((3, 3), 7.0)) == (7, 8)
    assert [scale_bar(w) for w in (3, 7, 200, 240)] == pytest.approx([1, 2, 50, 50])


# training curves


def test_training_curves_have_units_and_the_best_epoch():
    figure = training_figure(HISTORY)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Log-likelihood", "Concentration α", "Surviving components"]  # noqa: RUF001
    assert figure.axes[0].get_ylabel() == "nats per patch"
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == ["training", "validation", "best epoch 3"]


def test_training_curves_may_have_gaps_or_one_quantity():
    history = {"epoch": [1, 2], "val_log_likelihood": [None, math.nan], "components": [5, 4]}
    with pytest.raises(ValueError, match="history must have a finite value"):
        training_figure(history)
    history["val_log_likelihood"] = [None, 3.0]
    assert len(training_figure(history).axes) == 2


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({"train_log_likelihood": [1.0]}, "must have the key 'epoch'"),
        ({"epoch": [1]}, r"and one of .*got \['epoch'\]"),
        ({"epoch": [1], "components": [5, 4]}, "lists of one length"),
        ({"epoch": [], "components": []}, "at least 1"),
    ],
)
def test_history_errors(history, message):
    with pytest.raises(ValueError, match=message):
        training_figure(history)


# table, JSON and page


def test_table_is_aligned_and_sorted_by_score():
    subjects = [
        {"name": "low", "score": 0.1, "metrics": {"auroc": math.nan}},
        {"name": "a\nname\x1b[31m", "score": 12.5, "metrics": {"auroc": 0.91}},
        {"name": "x" * 80, "score": None},
    ]
    pooled, lines = metrics_table({"pixel_auroc": 0.96214}, subjects).split("\n\n")
    assert pooled.splitlines()[-1] == "pixel_auroc   0.9621"
    lines = lines.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["a", "low"]
    assert lines[4].startswith("...x")
    assert len({len(line) for line in lines}) == 1
    assert lines[3].endswith("-")
    assert "\x1b" not in "".join(lines)


def test_report_is_complete(brain, tmp_path):
    page = write_report(
        tmp_path / "deep" / "report",
        subjects=_subjects(brain),
        history=HISTORY,
        metrics={"pixel_auroc": 0.9},
        settings={"data": {"folder": "x"}},
    )
    assert page == tmp_path / "deep" / "report" / "report.html"
    assert sorted(os.listdir(page.parent)) == ["figures", "metrics.json", "report.html"]
    text = page.read_text()
    for address in re.findall(r'(?:src|href)="([^"#]+)"', text):
        assert (page.parent / address).is_file()
        assert (page.parent / address).stat().st_size < 400_000
    assert text.index("002-subject_0") > text.index("001-subject_1")  # the highest score first
    for word in ("Research use only", "Pixel AUROC", "Data.folder", "training.png", "torch"):
        assert word in text
    assert not re.search(r"https?:|//|@import|url\(", text)
    assert json.loads((page.parent / "metrics.json").read_text())["training"]


class _Tags(HTMLParser):
    """Collects the tags and the attributes that a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.names = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}


def test_page_escapes_what_comes_from_outside(brain, tmp_path):
    evil = "<script>alert(1)</script>\"' onload=x & <img src=y>/../ü"
    subject = {**_subjects(brain, 1)[0], "name": evil, "metrics": {evil: evil}}
    page = write_report(
        tmp_path, subjects=[subject], metrics={evil: 1.0}, settings={evil: {evil: evil}}
    )
    seen = _Tags(page.read_text())
    assert seen.tags.count("script") == 1  # the page's own
    assert seen.tags.count("img") == 2  # on the first screen, and among the others
    assert "onload" not in seen.names
    (figure,) = os.listdir(tmp_path / "figures")
    assert re.fullmatch(r"001-[\w.-]+\.png", figure, re.ASCII)


def test_json_is_strict(brain, tmp_path):
    subject = {**_subjects(brain, 1)[0], "metrics": {"auroc": math.nan, "n": np.int64(3)}}
    metrics = {"pixel_auroc": torch.tensor(math.inf), "interval": (np.float32(0.5), math.nan)}
    write_report(
        tmp_path, subjects=[subject], metrics=metrics, settings={"device": torch.device("cpu")}
    )

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert found["metrics"] == {"pixel_auroc": None, "interval": [0.5, None]}
    assert found["subjects"][0]["metrics"] == {"auroc": None, "n": 3}
    assert found["settings"] == {"device": "cpu"}


def test_earlier_report_is_replaced_and_other_files_are_kept(brain, tmp_path):
    write_report(tmp_path, subjects=_subjects(brain, 2), history=HISTORY)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "figures" / "mine.png").write_text("mine")
    write_report(tmp_path, subjects=_subjects(brain, 1))
    assert sorted(os.listdir(tmp_path)) == ["figures", "metrics.json", "notes.txt", "report.html"]
    figures = sorted(os.listdir(tmp_path / "figures"))
    assert figures == ["001-subject_0.nii.gz.png", "mine.png"]


def test_interrupted_report_leaves_the_earlier_one_or_nothing(brain, tmp_path, monkeypatch):
    old = write_report(tmp_path / "old", subjects=_subjects(brain, 1)).read_text()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report_module, "report_page", interrupt)
    for folder in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            write_report(tmp_path / folder, subjects=_subjects(brain, 1))
    assert os.listdir(tmp_path) == ["old"]
    assert sorted(os.listdir(tmp_path / "old")) == ["figures", "metrics.json", "report.html"]
    assert (tmp_path / "old" / "report.html").read_text() == old


def test_page_is_put_in_place_last(brain, tmp_path, monkeypatch):
    write_report(tmp_path, subjects=_subjects(brain, 1))
    move, moved = os.replace, []

    def interrupted_before_the_page(source, target):
        assert not (tmp_path / "report.html").exists()
        if str(target).endswith(".html"):
            raise KeyboardInterrupt
        moved.append(target.name)
        move(source, target)

    monkeypatch.setattr(os, "replace", interrupted_before_the_page)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, subjects=_subjects(brain, 1))
    assert moved == ["001-subject_0.nii.gz.png", "metrics.json"]
    assert not (tmp_path / "report.html").exists()


# volumes from files


def _save(folder, brain, affine, flipped=False):
    subject = _subjects(brain, 1)[0]
    for key, array in brain[0].items():
        stored = array[::-1] if flipped else array
        subject[key] = folder / f"{key}.nii.gz"
        nib.save(nib.Nifti1Image(stored.astype(np.float32), affine), subject[key])
    return subject


def test_files_of_any_orientation_give_the_same_figure(brain, tmp_path):
    ras = np.diag([4.0, 4, 4, 1])
    las = ras.copy()
    las[0, 0], las[0, 3] = -4, 4 * (brain[0]["image"].shape[0] - 1)
    pictures = []
    for name, affine in (("ras", ras), ("las", las)):
        (tmp_path / name).mkdir()
        subject = _save(tmp_path / name, brain, affine, flipped=name == "las")
        write_report(tmp_path / name, subjects=[subject])
        pictures.append((tmp_path / name / "figures" / "001-subject_0.nii.gz.png").read_bytes())
    arrays = {**_subjects(brain, 1)[0], "spacing": (4, 4, 4)}
    write_report(tmp_path / "arrays", subjects=[arrays])
    (array_picture,) = (tmp_path / "arrays" / "figures").iterdir()
    assert pictures == [array_picture.read_bytes()] * 2


def test_volumes_on_other_grids_are_refused(brain, tmp_path):
    subject = _save(tmp_path, brain, np.eye(4))
    nib.save(nib.Nifti1Image(brain[0]["mask"].astype(np.uint8), np.eye(4) * 2), subject["mask"])
    with pytest.raises(ValueError, match=r"subject_0.nii.gz: mask must lie on the image's grid"):
        write_report(tmp_path / "report", subjects=[subject])
    assert not (tmp_path / "report").exists()


def test_flat_file_is_one_slice_and_4d_or_broken_files_are_refused(brain, tmp_path):
    path = tmp_path / "x.nii"
    nib.save(nib.Nifti1Image(np.eye(16, dtype=np.float32), np.eye(4)), path)
    write_report(tmp_path / "flat", subjects=[{"name": "x", "image": path, "anomaly": str(path)}])
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), np.eye(4)), path)
    subject = {**_subjects(brain, 1)[0], "anomaly": path}
    with pytest.raises(ValueError, match=r"anomaly must be .*x.nii: must have one channel, got 2"):
        write_report(tmp_path, subjects=[subject])
    for name in ("short.nii", "short.nii.gz"):
        subject["anomaly"] = tmp_path / name
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), subject["anomaly"])
        os.truncate(subject["anomaly"], subject["anomaly"].stat().st_size * 2 // 3)
        with pytest.raises(ValueError, match=f"anomaly must be a readable volume, got .*{name}"):
            write_report(tmp_path, subjects=[subject])
        subject["anomaly"].unlink()
    with pytest.raises(ValueError, match=r"label must be a readable volume, got .*nowhere.nii"):
        write_report(tmp_path, subjects=[{**_subjects(brain, 1)[0], "label": "nowhere.nii"}])
    assert sorted(os.listdir(tmp_path)) == ["flat", "x.nii"]


# refused input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": np.zeros((4, 4, 3))}, r"mask must have the image's shape \(4, 4, 4\)"),
        ({"anomaly": np.zeros((4, 4, 4, 1))}, r"anomaly must be a volume .*\(4, 4, 4, 1\)"),
        ({"image": np.zeros((4, 0, 4))}, r"image must be a volume .*\(4, 0, 4\)"),
        ({"anomaly": np.full((4, 4, 4), np.nan)}, "anomaly must have finite values"),
        ({"image": np.full((4, 4, 4), np.inf)}, "image must have finite values"),
        ({"label": np.full((4, 4, 4), "x")}, "label must hold real numbers, got dtype <U1"),
        ({"axis": 3}, "axis must be 0, 1 or 2, got 3"),
        ({"index": 4}, r"index must be in 0..3 along axis 2, got 4"),
        ({"slices": 0}, "slices must be at least 1, got 0"),
        ({"spacing": (1, 0, 1)}, r"spacing must be 3 positive numbers in mm, got \(1, 0, 1\)"),
        ({"spacing": (1, 1)}, "spacing must be 3"),
        ({"heat": (1.0, 1.0)}, r"heat must be \(low, high\) with low < high"),
        ({"threshold": math.nan}, "threshold must be finite, got nan"),
    ],
)
def test_figure_errors(arguments, message):
    volume = np.random.default_rng(0).random((4, 4, 4))
    with pytest.raises(ValueError, match=message):
        subject_figure(**{"image": volume, "anomaly": volume, **arguments})


def test_report_errors(brain, tmp_path):
    with pytest.raises(ValueError, match="subjects must not be empty"):
        write_report(tmp_path / "report", subjects=[])
    with pytest.raises(ValueError, match=r"subjects\[0\] must have the key 'name', got \['x'\]"):
        write_report(tmp_path / "report", subjects=[{"x": 1}])
    with pytest.raises(ValueError, match="subject a: anomaly must be an array or a file"):
        write_report(tmp_path / "report", subjects=[{"name": "a", "image": np.eye(3)}])
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"folder must be a folder, got the file .*file"):
        write_report(tmp_path / "file", subjects=_subjects(brain, 1))
    assert os.listdir(tmp_path) == ["file"]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="need matplotlib: pip install matplotlib"):
        training_figure(HISTORY)


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["image", "anomaly", "mask", "label"])
@pytest.mark.parametrize("how", ["missing", "damaged", "moved", "size", "complex"])
def test_a_scan_that_cannot_be_shown_leaves_out_itself_only(tmp_path, broken, how):
    voxels = np.random.default_rng(0).random((12, 10, 8)).astype(np.float32)
    subjects = []
    for name in ("a", "b", "c"):
        files = {key: tmp_path / f"{name}_{key}.nii.gz" for key in ("image", "anomaly")}
        files |= {key: tmp_path / f"{name}_{key}.nii.gz" for key in ("mask", "label")}
        for key, file in files.items():
            array = voxels if key in ("image", "anomaly") else (voxels > 0.8).astype(np.uint8)
            nib.save(nib.Nifti1Image(array, np.eye(4)), file)
        subjects.append({"name": name, "score": 1.0, **files})
    file = tmp_path / f"b_{broken}.nii.gz"
    affine = np.diag([1, 1, -1, 1]) if how == "moved" else np.eye(4)
    if how == "missing":
        file.unlink()
    elif how == "damaged":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        array = voxels[:6] if how == "size" else voxels
        array = array.astype(np.complex64) if how == "complex" else array
        nib.save(nib.Nifti1Image(array, affine), file)
    left_out: list[str] = []
    page = write_report(tmp_path / "report", subjects=subjects, viewers=False, left_out=left_out)
    assert len(left_out) == 1
    assert left_out[0].startswith("subject b: ")
    found = json.loads((page.parent / "metrics.json").read_text())
    assert [subject["name"] for subject in found["subjects"]] == ["a", "c"]
    assert all((page.parent / subject["figure"]).is_file() for subject in found["subjects"])
    assert len(list((page.parent / "figures").iterdir())) == 2
    with pytest.raises(ValueError, match="subject b: "):
        write_report(tmp_path / "strict", subjects=subjects, viewers=False)
