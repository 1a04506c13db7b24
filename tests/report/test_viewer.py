"""The viewer page, as Chromium draws it: what is marked is where the letters say it is."""

import base64
import gzip
import io
import json
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from chromium import Browser
from nibabel.affines import apply_affine
from PIL import Image

from monai_dpmm.report import viewer as viewer_module
from monai_dpmm.report.report import write_report
from monai_dpmm.report.viewer import can_view, library, viewer_page

READY = "document.body?.dataset.ready === 'yes'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium for all tests here."""
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def _opened(browser, page, folder, **options):
    """The page opened, with the script beside it, when its scan is there."""
    (folder / "niivue.js").write_text(library(), encoding="utf-8")
    (folder / "scans.js").write_text("")
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    browser.open(file, (900, 600), **options)
    browser.wait(READY)


def _value(browser):
    return browser.run("document.getElementById('value').textContent")


def _mm(browser):
    """Where the cross is, as the page says it: towards right, anterior, superior."""
    sides = {"right": 1, "left": -1, "anterior": 1, "posterior": -1, "superior": 1, "inferior": -1}
    found = re.findall(r"(\d+) mm (\w+)", _value(browser))
    return [int(number) * sides[side] for number, side in found]


def _heat(browser):
    """Places (x, y) of the window where the heat map is seen."""
    pixels = np.asarray(Image.open(io.BytesIO(browser.picture())).convert("RGB")).astype(int)
    left, top, right, bottom = browser.run(
        "(() => { const b = document.getElementById('canvas').getBoundingClientRect();"
        " return [b.left, b.top, b.right, b.bottom]; })()"
    )
    red, _, blue = np.moveaxis(pixels, -1, 0)
    inside = np.zeros(red.shape, bool)
    inside[int(top) : int(bottom), int(left) : int(right)] = True
    y, x = np.nonzero(inside & (red - blue > 60))
    return np.stack([x, y], axis=1)


def _seen(browser, condition, seconds=30):
    """The heat that is seen as soon as a condition on how much there is of it holds."""
    end = time.monotonic() + seconds
    while not condition(len(heat := _heat(browser))) and time.monotonic() < end:
        time.sleep(0.2)  # the next frame, which software draws slowly
    assert condition(len(heat))
    return heat


def _marked(affine, shape=(40, 48, 36)):
    """A ball of 45 mm, and a peak 20, 15 and 10 mm to the right, anterior and superior in it."""
    places = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    center = apply_affine(affine, (np.array(shape) - 1) / 2)
    image = 100.0 * (np.linalg.norm(places - center, axis=-1) < 45)
    mark = center + np.array([20, 15, 10])
    anomaly = 0.1 + 0.5 * np.exp(-((np.linalg.norm(places - mark, axis=-1) / 7) ** 2))
    return image, anomaly, mark


AFFINES = {
    "RAS": np.diag([3.0, 3, 3, 1]),
    "LPS, anisotropic": np.array([[-3.0, 0, 0, 5], [0, -2.5, 0, 9], [0, 0, 4, -7], [0, 0, 0, 1]]),
    "SLA": np.array([[0, -3.0, 0, 80], [0, 0, 3.5, -20], [3, 0, 0, -30], [0, 0, 0, 1]]),
    "oblique": np.array([[2.9, 0.6, 0, 0], [-0.6, 2.9, 0.5, 0], [0, -0.5, 3, 0], [0, 0, 0, 1]]),
    "sheared": np.array([[3.0, 0, 0, 9], [0, 3, 0, 9], [0, 1.2, 3, 9], [0, 0, 0, 1]]),
}


def _page(affine, image, anomaly, mark, **options):
    """A page with two findings, the first at the mark."""
    other = np.array(mark) - (30, 0, 0)
    findings = [
        {"rank": rank, "volume_ml": 3.0, "peak_score": 0.6, "peak_mm": list(map(float, place))}
        for rank, place in enumerate((mark, other), 1)
    ]
    given = {"threshold": 0.4, "findings": findings, "script": "niivue.js", **options}
    return viewer_page(image, anomaly, affine, **given)


@pytest.mark.parametrize("name", AFFINES)
def test_the_mark_is_drawn_where_words_and_a_click_say(name, browser, tmp_path):
    """It opens at the finding; of the axial slice, the heat's middle is clicked."""
    image, anomaly, mark = _marked(AFFINES[name])
    _opened(browser, _page(AFFINES[name], image, anomaly, mark), tmp_path)
    np.testing.assert_allclose(_mm(browser), mark, atol=3.1)
    browser.run("nv.setSliceType(nv.sliceTypeAxial)")
    time.sleep(1)
    heat = _seen(browser, lambda count: count > 200)
    middle = browser.run("document.getElementById('canvas').clientWidth") / 2
    x, y = heat.mean(axis=0)
    right = mark[0] - apply_affine(AFFINES[name], (np.array(image.shape) - 1) / 2)[0]
    assert right > 0
    assert x < middle  # radiological: the patient's right is on the left
    browser.run("nv.scene.crosshairPos = [0.5, 0.5, nv.scene.crosshairPos[2]]")
    browser.click(x, y)
    np.testing.assert_allclose(_mm(browser), mark, atol=5.1)
    assert browser.problems() == []


def test_layers_threshold_keys_and_findings_do_what_they_say(browser, tmp_path):
    affine = AFFINES["RAS"]
    image, anomaly, mark = _marked(affine)
    components = np.where(image > 0, 7, 0)
    layers = {"mask": anomaly > 0.4, "label": anomaly > 0.5, "components": components}
    _opened(browser, _page(affine, image, anomaly, mark, **layers), tmp_path)
    assert "prototype 7" in _value(browser)
    assert _value(browser).endswith("in the mask · in the label")
    browser.run("nv.setSliceType(nv.sliceTypeAxial)")
    browser.click_on("[data-layer=label]")
    wide = len(_seen(browser, lambda count: count > 200))
    browser.run(
        "(() => { const s = document.getElementById('threshold'); s.value = 0.5;"
        " s.dispatchEvent(new Event('input')); })()"
    )
    _seen(browser, lambda count: 0 < count < 0.7 * wide)
    browser.click_on("[data-layer=anomaly]")
    _seen(browser, lambda count: count == 0)
    browser.press("h")
    _seen(browser, lambda count: count > 0)
    browser.press("n")
    np.testing.assert_allclose(_mm(browser), mark - (30, 0, 0), atol=3.1)
    browser.click_on("[data-finding='1'] button")
    np.testing.assert_allclose(_mm(browser), mark, atol=3.1)
    assert browser.run("document.querySelector('[aria-current=true]').dataset.finding") == "1"
    assert browser.problems() == []


@pytest.mark.parametrize("last", [5, 600, 2000])
def test_no_prototype_is_drawn_where_there_is_none(browser, tmp_path, last):
    image, anomaly, mark = _marked(AFFINES["RAS"])
    numbers = np.arange(image.size).reshape(image.shape) % last + 1
    components = np.where(image > 0, numbers, 0)
    colors = np.tile([[1.0, 0.0, 0.0]], (last, 1))
    layers = {"components": components, "component_colors": colors}
    _opened(browser, _page(AFFINES["RAS"], image, anomaly, mark, **layers), tmp_path)
    browser.run("nv.opts.crosshairWidth = 0; nv.setSliceType(nv.sliceTypeAxial)")
    browser.click_on("[data-layer=anomaly]")

    def tinted():
        picture = Image.open(io.BytesIO(browser.picture())).convert("RGB").crop((10, 120, 500, 500))
        pixels = np.asarray(picture).astype(int)
        return pixels[..., 0] > pixels[..., 2] + 15, pixels.max(-1) > 30

    seen = tinted()
    assert not seen[0].any()
    browser.click_on("[data-layer=components]")
    for _ in range(50):
        red, _ = tinted()
        if red.any():
            break
        time.sleep(0.1)
    assert red.sum() > 0.5 * seen[1].sum()  # the body
    assert red.sum() < 1.3 * seen[1].sum()  # and nothing else


def test_an_address_names_the_finding(browser, tmp_path):
    image, anomaly, mark = _marked(AFFINES["RAS"])
    _opened(browser, _page(AFFINES["RAS"], image, anomaly, mark), tmp_path)
    browser.run("location.hash = '#finding-2'")
    browser.wait("document.querySelector('[aria-current=true]').dataset.finding === '2'")
    np.testing.assert_allclose(_mm(browser), mark - (30, 0, 0), atol=3.1)


def test_a_browser_without_webgl_says_so(browser, tmp_path):
    image, anomaly, mark = _marked(AFFINES["RAS"])
    page = _page(AFFINES["RAS"], image, anomaly, mark)
    none = "<body><script>HTMLCanvasElement.prototype.getContext = () => null;</script>"
    (tmp_path / "niivue.js").write_text(library(), encoding="utf-8")
    (tmp_path / "scans.js").write_text("")
    (tmp_path / "page.html").write_text(page.replace("<body>", none))
    browser.open(tmp_path / "page.html")
    browser.wait("document.getElementById('value').textContent.includes('no WebGL 2')")


class _Addresses(HTMLParser):
    """What a page loads or links to, as a browser would see it."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "data", "action")]


def test_a_page_holds_all_it_needs_and_may_fetch_nothing(browser, tmp_path):
    """Alone, with the script in it; what it is told to fetch, the browser refuses."""
    image, anomaly, _ = _marked(AFFINES["oblique"])
    title = "<script>alert(1)</script>\"' & <img src=y>"
    page = viewer_page(image, anomaly, AFFINES["oblique"], title=title, back='../x"y.html#s')
    own = page.replace(library(), "")
    assert len(own) < len(page) - 2_000_000
    assert {*_Addresses(own).found} == {'../x"y.html#s'}
    assert not re.search(r"https?:|@import|url\(", own)
    assert "default-src 'none'; img-src data:" in own
    assert own.count("<h1>&lt;script&gt;") == 1
    assert "<img src=y>" not in own
    blocked = page.replace("</body>", '<img src="https://example.invalid/x.png"></body>')
    (tmp_path / "page.html").write_text(blocked)
    browser.open(tmp_path / "page.html")
    browser.wait(READY)
    assert any("Content Security Policy" in line for line in browser.problems())


def _volume(page, name):
    """A volume that lies in a page."""
    scan = json.loads(re.search(r'<script id="scan"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
    data = gzip.decompress(base64.b64decode(scan["volumes"][name]))
    return nib.Nifti1Image.from_bytes(data)


def test_volumes_keep_their_grid_and_values():
    affine = AFFINES["oblique"]
    image, anomaly, _ = _marked(affine)
    page = viewer_page(image, anomaly, affine, components=image, script="niivue.js")
    np.testing.assert_array_equal(_volume(page, "image").get_fdata(), image)
    read = _volume(page, "anomaly")
    np.testing.assert_allclose(read.affine, affine, atol=1e-5)
    np.testing.assert_allclose(read.get_fdata(), anomaly, atol=np.ptp(anomaly) / 4000)
    assert _volume(page, "components").get_data_dtype() == np.uint16
    assert len(page) < 300_000
    assert "Voxels of 2.96" in page


def test_a_large_volume_is_joined_and_a_finding_of_one_voxel_stays(monkeypatch):
    monkeypatch.setattr(viewer_module, "MAX_VOXELS", 20_000)
    affine = np.diag([0.5, 1, 1, 1])
    anomaly = np.zeros((60, 40, 31), np.float32)
    anomaly[31, 20, 30] = 1
    page = viewer_page(anomaly + 1, anomaly, affine, script="niivue.js")
    read = _volume(page, "anomaly")
    assert np.prod(read.shape) <= 20_000
    assert read.get_fdata().max() == pytest.approx(1, abs=1e-3)
    place = apply_affine(read.affine, np.argwhere(read.get_fdata() > 0.5)[0])
    np.testing.assert_allclose(place, (15.5, 20, 30), atol=read.header.get_zooms()[0] * 2)
    assert "joined to" in page


def test_scores_below_zero_nan_and_constants_are_drawn(browser, tmp_path):
    image, anomaly, _ = _marked(AFFINES["RAS"])
    negative = anomaly * 100 - 300
    negative[0], image[:, 0] = np.nan, np.inf
    page = viewer_page(image, negative, AFFINES["RAS"], threshold=-260, script="niivue.js")
    assert "clear below -260 (the threshold of the mask)" in page
    _opened(browser, page, tmp_path)
    _seen(browser, lambda count: count > 200)
    flat = viewer_page(np.zeros_like(image), anomaly * 0, AFFINES["RAS"], script="niivue.js")
    _opened(browser, flat, tmp_path)
    assert browser.problems() == []
    _seen(browser, lambda count: count == 0)


def test_what_can_be_viewed():
    assert can_view(np.zeros((3, 4, 2)))
    assert not can_view(np.zeros((30, 40, 1)))
    assert not can_view(np.zeros((30, 40)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": np.zeros((4, 4))}, r"image must be a volume of several slices, .* \(4, 4\)"),
        ({"image": np.zeros((4, 4, 1))}, r"several slices, got shape \(4, 4, 1\)"),
        ({"anomaly": np.zeros((4, 4, 3))}, r"anomaly must have the image's shape \(4, 4, 4\)"),
        ({"affine": np.diag([1.0, 1, 0, 1])}, "affine must be invertible"),
        ({"affine": np.eye(3)}, r"affine must be invertible, \(4, 4\)"),
        ({"affine": np.diag([1.0, 1, np.nan, 1])}, "affine must be invertible"),
        ({"heat": (1.0, 1.0)}, r"heat must be \(low, high\)"),
    ],
)
def test_viewer_errors(arguments, message):
    volume = np.random.default_rng(0).random((4, 4, 4))
    given = {"image": volume, "anomaly": volume, "affine": np.eye(4), **arguments}
    with pytest.raises(ValueError, match=message):
        viewer_page(**given)


# in the report


def _subjects(folder, names=("low", "high")):
    image, anomaly, _ = _marked(AFFINES["sheared"])
    subjects = []
    for score, name in enumerate(names):
        subject = {"name": name, "score": float(score), "threshold": 0.4}
        for key, array in (("image", image), ("anomaly", anomaly)):
            subject[key] = folder / f"{name}_{key}.nii.gz"
            nib.save(nib.Nifti1Image(array.astype(np.float32), AFFINES["sheared"]), subject[key])
        subjects.append(subject)
    return subjects


def test_each_volume_of_a_report_has_a_viewer_and_a_link_to_it(browser, tmp_path):
    """All share one script; a click leads from the report to a finding, and on to the next scan."""
    subjects = _subjects(tmp_path)
    lesion = {"rank": 1, "volume_ml": 3.0, "peak_score": 0.6, "peak_mm": [60.0, 60.0, 60.0]}
    subjects[1]["findings"] = {"mask_volume_ml": 3.0, "lesions": [lesion]}
    subjects.append({"name": "flat", "image": np.eye(8), "anomaly": np.eye(8), "score": -1.0})
    page = write_report(tmp_path / "report", subjects=subjects)
    viewers = tmp_path / "report" / "viewers"
    names = ["001-high.html", "002-low.html", "niivue.js", "scans.js"]
    assert sorted(os.listdir(viewers)) == names
    assert all((viewers / name).stat().st_size < 200_000 for name in names[:2])
    records = json.loads((tmp_path / "report" / "metrics.json").read_text())["subjects"]
    assert records[2]["viewer"] is None
    browser.open(page)
    browser.run("document.getElementById('subject-1').open = true")
    browser.click_on("#subject-1 .findings a")
    browser.wait(f"location.href.endsWith('001-high.html#finding-1') && {READY}")
    np.testing.assert_allclose(_mm(browser), (60, 60, 60), atol=3.1)
    assert browser.run("document.getElementById('previous').hidden")
    browser.press("PageDown")
    browser.wait(f"location.href.endsWith('002-low.html') && {READY}")
    browser.click_on("#previous")
    browser.wait(f"location.href.endsWith('001-high.html') && {READY}")
    browser.click_on("header a")
    browser.wait("location.href.endsWith('report.html#subject-1')")
    assert browser.run("document.getElementById('subject-1').open")
    assert browser.problems() == []


def _scale(page):
    return re.search("Heat map: clear .*", page.read_text())[0]


def test_viewers_share_the_colours_of_the_report_but_for_scans_that_do_not_fit(tmp_path):
    subjects = _subjects(tmp_path, ["low", "high", "odd"])
    for number, factor in ((0, 2), (2, 50)):
        image = nib.load(subjects[number]["anomaly"])
        nib.save(
            nib.Nifti1Image(image.get_fdata() * factor, image.affine), subjects[number]["anomaly"]
        )
    check = {"suspicious": True, "reason": "it is a picture of a cat"}
    subjects[2]["findings"] = {"mask_volume_ml": 900.0, "lesions": [], "scan_check": check}
    page = write_report(tmp_path / "report", subjects=subjects)
    odd, high, low = sorted((tmp_path / "report" / "viewers").glob("*.html"))
    assert _scale(high) == _scale(low) != _scale(odd)
    for text in (page.read_text(), odd.read_text()):
        assert "not like the training data: it is a picture of a cat" in text
    assert "Unlike the training data" in page.read_text()


def test_an_earlier_report_s_viewers_go_with_it(tmp_path):
    folder = tmp_path / "report"
    write_report(folder, subjects=_subjects(tmp_path))
    (folder / "viewers" / "mine.html").write_text("mine")
    write_report(folder, subjects=_subjects(tmp_path, ["other"]))
    own = ["001-other.html", "mine.html", "niivue.js", "scans.js"]
    assert sorted(os.listdir(folder / "viewers")) == own
    write_report(folder, subjects=_subjects(tmp_path), viewers=False)
    assert os.listdir(folder / "viewers") == ["mine.html"]
    assert "viewers/" not in (folder / "report.html").read_text()


def test_the_licence_of_the_script_is_carried():
    folder = Path(viewer_module.__file__).with_name("niivue")
    text = (folder / "LICENSE").read_text()
    assert "BSD 2-Clause License" in text
    assert "@niivue/niivue 0.69.0" in text
    assert '"0.69.0"' in library()


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("name", ["FLAIR", "shear"])
def test_real_volumes_are_drawn_and_their_pages_stay_small(name, real_data, browser, tmp_path):
    scan = nib.load(real_data / f"{name}.nii.gz")
    image = scan.get_fdata(dtype=np.float32)
    far = np.linalg.norm(np.moveaxis(np.indices(image.shape), 0, -1) - scan.shape, axis=-1)
    anomaly = np.exp(-(((far / far.max()) - 0.4) ** 2) * 50)
    page = viewer_page(image, anomaly, scan.affine, threshold=0.5, script="niivue.js")
    file = os.path.getsize(real_data / f"{name}.nii.gz")
    assert len(page) < 3 * file + image.size + 1_000_000  # this map compresses to a byte a voxel
    if image.size > 5_000_000:
        return  # software draws it for minutes
    _opened(browser, page, tmp_path)
    browser.run("nv.setSliceType(nv.sliceTypeAxial)")
    _seen(browser, lambda count: count > 200)
    assert browser.problems() == []
