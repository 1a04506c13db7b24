"""Pages of a report in Chromium: many scans, paper, dark, phone, and no word to anyone outside."""

import base64

import numpy as np
import pytest
from chromium import Browser

from monai_dpmm.report.report import write_report
from monai_dpmm.report.subjects import SubjectFiles

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own

SCANS = 600


def _scan(number):
    picture = np.outer(np.linspace(0, 1, 32), np.linspace(0, 1, 32))
    finding = {"area_px": 100, "peak_px": [10, 20], "peak_score": 0.9, "p_value": 0.02}
    lesions = [{"rank": rank + 1, **finding} for rank in range(number % 6)]
    metrics = {"auroc": 0.9, "aupr": 0.5, "aupro": 0.8, "best_dice": 0.6, "dice_at_fpr_0.01": 0.4}
    return {
        **{"name": f"slice_{number}", "image": picture, "anomaly": picture, "threshold": 0.8},
        **{"score": number / SCANS, "metrics": metrics},
        "findings": {"lesions": lesions, "mask_area_px": 310, "healthy_scans": 49},
    }


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Page of a report whose figures are one small picture."""

    def write(files, number, *_):
        address = f"figures/{number:03d}-x.png"
        (files.folder / address).write_bytes(b"")
        return {"figure": address, "figure_size": [1320, 428], "viewer": None}

    monkeypatch.setattr(SubjectFiles, "write", write)
    return write_report(tmp_path / "report", subjects=[_scan(n) for n in range(SCANS)])


@pytest.fixture
def browser(tmp_path):
    own = Browser(tmp_path / "profile")
    yield own
    own.close()


def test_600_scans_open_in_less_than_two_seconds(page, browser):
    browser.call("Performance.enable", timeDomain="threadTicks")
    browser.open(page)
    found = {m["name"]: m["value"] for m in browser.call("Performance.getMetrics")["metrics"]}
    assert found["ThreadTime"] < 2  # of the processor, whatever else the machine does
    assert browser.run("document.querySelectorAll('details.scan').length") == SCANS
    assert found["LayoutObjects"] < found["Nodes"] / 3
    asked = browser.run("performance.getEntriesByType('resource').length")
    assert asked <= 2  # the first screen's picture, not all


@pytest.mark.parametrize(("size", "mobile"), [((1280, 800), False), ((390, 844), True)])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_fits_its_screen_and_asks_for_nothing_outside(page, browser, size, mobile, dark):
    browser.open(page, size, dark=dark, mobile=mobile)
    assert browser.run("document.documentElement.scrollWidth") == size[0]
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") != dark
    assert browser.problems() == []


def test_paper_has_all_that_is_folded_and_every_column(page, browser):
    browser.open(page, (760, 1000), dark=True)
    scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", media="print", features=scheme)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("[...document.querySelectorAll('details')].every((one) => one.open)")
    assert browser.run("document.documentElement.scrollWidth") == 760
    hidden = "[...document.querySelectorAll('.wide')].filter((e) => e.scrollWidth > e.clientWidth)"
    assert browser.run(f"{hidden}.length") == 0
    pdf = base64.b64decode(browser.call("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") > SCANS / 10
