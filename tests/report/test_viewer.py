"""The viewer page, also as Chromium draws it: what is marked is where the letters say it is."""

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from monai_dpmm.report import viewer as viewer_module
from monai_dpmm.report.report import write_report
from monai_dpmm.report.viewer import MAX_VOXELS, can_view, viewer_page

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)

# What the page draws, told in its title: texts with their places, and where the heat map is.
PROBE = """<script>
const texts = [], write = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
  texts.push([text, x, y]); write.call(this, text, x, y); };
window.addEventListener("load", () => setTimeout(() => {
  const canvas = document.querySelector("canvas"), { width, height } = canvas;
  const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  let grey = 0; const heat = [];
  for (let i = 0; i < pixels.length; i += 4) {
    const [r, g, b] = pixels.slice(i, i + 3);
    if (r === g && g === b && r > 40) grey++;
    if (r - b > 90) heat.push([(i / 4) % width, Math.floor(i / 4 / width)]);
  }
  const found = { width, height, grey, heat, texts };
  document.body.insertAdjacentHTML("beforeend", `<pre id=found>${JSON.stringify(found)}</pre>`);
}, 300));
</script>"""


def _drawn(page, folder):
    """What Chromium draws of a page, see PROBE, and what it says on its console."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium, which draws the page")
    file = folder / "page.html"
    file.write_text(page.replace("<body>", f"<body>{PROBE}"), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
    options += (f"--user-data-dir={folder / 'profile'}", "--window-size=1200,900")
    options += ("--virtual-time-budget=5000", "--dump-dom", file.as_uri())
    done = subprocess.run([CHROMIUM, *options], capture_output=True, timeout=120, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout.decode())
    lines = [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]
    console = [line for line in lines if "Multiple readback" not in line]  # a hint to PROBE
    return json.loads(html.unescape(found[1])), console


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


@pytest.mark.parametrize("name", AFFINES)
def test_the_mark_is_drawn_where_the_letters_and_coordinates_say(name, tmp_path):
    image, anomaly, mark = _marked(AFFINES[name])
    drawn, console = _drawn(viewer_page(image, anomaly, AFFINES[name], threshold=0.4), tmp_path)
    assert not console
    assert drawn["grey"] > 10_000
    coordinates = _coordinates(drawn)
    np.testing.assert_allclose([float(coordinates[k]) for k in "xyz"], mark, atol=3.6)
    letters = sorted((x, text) for text, x, _ in drawn["texts"][-12:] if text in "LR")
    (right, a), (left, b), (axial_right, c), (axial_left, d) = letters
    assert a + b + c + d == "RLRL"
    bar = 0.2 * drawn["height"]  # the bar of colours is above
    heat = np.array([place for place in drawn["heat"] if place[1] > bar])
    _, x_coronal, x_axial, y_axial = _places(heat, right, left, axial_right, axial_left)
    assert right < x_coronal < (right + left) / 2
    assert axial_right < x_axial < (axial_right + axial_left) / 2
    assert y_axial < drawn["height"] / 2


def _coordinates(drawn):
    """The coordinates that the page shows last, by axis."""
    return dict(text.split(" = ") for text, *_ in drawn["texts"] if " = " in text)


def _places(heat, right, left, axial_right, axial_left):
    sagittal = heat[heat[:, 0] < right]
    coronal = heat[(right < heat[:, 0]) & (heat[:, 0] < left)]
    axial = heat[(axial_right < heat[:, 0]) & (heat[:, 0] < axial_left)]
    assert min(map(len, (sagittal, coronal, axial))) > 20
    return sagittal[:, 0].mean(), coronal[:, 0].mean(), *axial.mean(axis=0)


def test_a_click_goes_to_the_place_that_it_was_on(tmp_path):
    """Opened beside the peak, the axial slice shows it; a click on it finds its coordinates."""
    affine = AFFINES["LPS, anisotropic"]
    image, anomaly, mark = _marked(affine)
    beside = np.round(apply_affine(np.linalg.inv(affine), mark - (45, 0, 0))).astype(int)
    page = viewer_page(image, anomaly, affine, threshold=0.4, start=tuple(beside.tolist()))
    first, _ = _drawn(page, tmp_path)
    assert float(_coordinates(first)["x"]) == pytest.approx(mark[0] - 45, abs=3.6)
    axial = [place for place in first["heat"] if place[0] > 0.68 * first["width"]]
    x, y = np.mean(axial, axis=0)
    click = f"""<script>window.addEventListener("load", () => setTimeout(() => {{
      const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
      const at = {{ clientX: box.left + {x}, clientY: box.top + {y} }};
      canvas.dispatchEvent(new MouseEvent("click", at)); }}, 100));</script>"""
    drawn, console = _drawn(page.replace("</body>", f"{click}</body>"), tmp_path)
    assert not console
    found = [float(_coordinates(drawn)[key]) for key in "xyz"]
    np.testing.assert_allclose(found, mark, atol=5)


class _Addresses(HTMLParser):
    """What a page loads or links to, as a browser would see it."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "data", "action")]


def test_a_page_holds_all_it_needs_and_may_fetch_nothing(tmp_path):
    image, anomaly, _ = _marked(AFFINES["oblique"])
    title = "<script>alert(1)</script>\"' & <img src=y>"
    page = viewer_page(image, anomaly, AFFINES["oblique"], title=title, back='../x"y.html#s')
    assert {address[:14] for address in _Addresses(page).found} == {
        "data:image/png",
        '../x"y.html#s',
    }
    assert not re.search(r"https?:|@import|url\(", page)
    assert "default-src 'none'; img-src data:" in page
    assert page.count("<h1>&lt;script&gt;") == 1
    assert "<img src=y>" not in page
    blocked = page.replace("</body>", '<img src="https://example.invalid/x.png"></body>')
    _, console = _drawn(blocked, tmp_path)
    assert any("Content Security Policy" in line for line in console)


@pytest.mark.slow
def test_the_page_says_how_it_was_resampled_and_stays_small():
    noise = np.random.default_rng(0).random((240, 240, 155), np.float32)
    page = viewer_page(noise, noise, np.diag([1.0, 1, 1, 1]))
    assert "Voxels of 1 × 1 × 1 mm, resampled to 2 mm" in page  # noqa: RUF001
    assert len(page) < 8_000_000  # noise, which does not compress; anatomy takes a third
    sizes = re.search(r'"nbSlice": {"X": (\d+), "Y": (\d+), "Z": (\d+)}', page)
    assert 0.8 * MAX_VOXELS < np.prod([int(n) for n in sizes.groups()]) < 1.1 * MAX_VOXELS


def test_scores_below_zero_nan_and_constants_are_drawn(tmp_path):
    image, anomaly, _ = _marked(AFFINES["RAS"])
    negative = anomaly * 100 - 300
    negative[0], image[:, 0] = np.nan, np.inf
    page = viewer_page(image, negative, AFFINES["RAS"], threshold=-260)
    assert "clear at -290, opaque from -260 (the threshold) on" in page
    drawn, console = _drawn(page, tmp_path)
    assert not console
    assert len(drawn["heat"]) > 1000
    flat = viewer_page(np.zeros_like(image), anomaly * 0, AFFINES["RAS"])
    drawn, console = _drawn(flat, tmp_path)
    assert not console
    assert drawn["grey"] < 3000  # letters and coordinates only


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


def test_another_page_of_nilearn_is_refused(monkeypatch):
    monkeypatch.setattr(viewer_module, "_PARAMETERS", re.compile("nothing of the kind"))
    volume = np.random.default_rng(0).random((4, 4, 4))
    with pytest.raises(RuntimeError, match=r"nilearn's view_img must be that of nilearn 0\.14"):
        viewer_page(volume, volume, np.eye(4))


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


def test_each_volume_of_a_report_has_a_viewer_and_a_link_to_it(tmp_path):
    subjects = _subjects(tmp_path)
    subjects.append({"name": "flat", "image": np.eye(8), "anomaly": np.eye(8), "score": -1.0})
    page = write_report(tmp_path / "report", subjects=subjects)
    viewers = tmp_path / "report" / "viewers"
    assert sorted(os.listdir(viewers)) == ["001-high.html", "002-low.html"]
    text = page.read_text()
    assert re.findall(r'class="viewer" href="([^"]+)"', text) == [
        "viewers/001-high.html",
        "viewers/002-low.html",
    ]
    first = (viewers / "001-high.html").read_text()
    assert 'href="../report.html#subject-1"' in first
    assert 'id="subject-1"' in text
    records = json.loads((tmp_path / "report" / "metrics.json").read_text())["subjects"]
    assert records[2]["viewer"] is None
    drawn, console = _drawn(first, tmp_path)
    assert not console
    assert drawn["heat"]


def test_viewers_share_the_colours_of_the_report(tmp_path):
    subjects = _subjects(tmp_path)
    image = nib.load(subjects[0]["anomaly"])
    nib.save(nib.Nifti1Image(image.get_fdata() * 2, image.affine), subjects[0]["anomaly"])
    write_report(tmp_path / "report", subjects=subjects)
    scales = [
        re.search("Anomaly score: .*", path.read_text())[0]
        for path in (tmp_path / "report" / "viewers").iterdir()
    ]
    assert scales[0] == scales[1]


def test_an_earlier_report_s_viewers_go_with_it(tmp_path):
    folder = tmp_path / "report"
    write_report(folder, subjects=_subjects(tmp_path))
    (folder / "viewers" / "mine.html").write_text("mine")
    write_report(folder, subjects=_subjects(tmp_path, ["other"]))
    assert sorted(os.listdir(folder / "viewers")) == ["001-other.html", "mine.html"]
    write_report(folder, subjects=_subjects(tmp_path), viewers=False)
    assert os.listdir(folder / "viewers") == ["mine.html"]
    assert "viewers/" not in (folder / "report.html").read_text()


def test_viewers_need_nilearn_only_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(viewer_module, "find_spec", lambda name: None)
    subjects = _subjects(tmp_path)
    with pytest.raises(ImportError, match=r"viewer pages need nilearn: pip install monai-dpmm"):
        write_report(tmp_path / "report", subjects=subjects, viewers=True)
    assert not (tmp_path / "report").exists()
    write_report(tmp_path / "report", subjects=subjects)
    assert not (tmp_path / "report" / "viewers").exists()


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("name", ["chris_t1", "FLAIR", "shear"])
def test_real_volumes_give_small_pages(name, real_data, tmp_path):
    scan = nib.load(real_data / f"{name}.nii.gz")
    image = scan.get_fdata(dtype=np.float32)
    far = np.linalg.norm(np.moveaxis(np.indices(image.shape), 0, -1) - scan.shape, axis=-1)
    page = viewer_page(image, np.exp(-(((far / far.max()) - 0.4) ** 2) * 50), scan.affine)
    assert len(page) < 4_000_000
    drawn, console = _drawn(page, tmp_path)
    assert not console
    assert drawn["grey"] > 10_000
    assert drawn["heat"]
