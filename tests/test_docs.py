"""The documentation builds without a warning, is complete, and needs no internet to be read."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from sphinx.util.inventory import InventoryFile
from workflows import ROOT

import monai_dpmm
from monai_dpmm.app.config import config_names

pytestmark = pytest.mark.slow  # whole workflows, or processes of their own


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the built pages."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", ROOT / "docs", folder]
    result = subprocess.run(map(str, command), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_public_name_has_its_place(site):
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    there = {name.removeprefix("monai_dpmm.") for kind in inventory.data.values() for name in kind}
    aliases = {f"{name[:-1]}{end}" for name in there if name.endswith("d") for end in ("D", "Dict")}
    assert set(monai_dpmm.__all__) - there - aliases == set()


class _Loaded(HTMLParser):
    """What a page loads when it is opened."""

    def __init__(self):
        super().__init__()
        self.urls = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.urls.append(found.get("src") or "")
        elif tag == "link" and "stylesheet" in found.get("rel", ""):
            self.urls.append(found["href"])


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = _Loaded()
        loaded.feed(page.read_text())
        assert [url for url in loaded.urls if re.match(r"(https?:)?//", url)] == []
        assert any(loaded.urls)
    styles = "".join(file.read_text() for file in site.rglob("*.css"))
    assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", styles)


def test_formulas_are_drawn_by_the_browser(site):
    page = (site / "method.html").read_text()
    assert page.count("<math") > 20
    assert "\\frac" not in page


def test_commands_have_their_options(site):
    page = (site / "command_line.html").read_text()
    for word in ("demo", "train", "calibrate", "evaluate", "infer", "bundle", "--dry-run"):
        assert word in page


def test_every_overlay_is_told():
    text = (ROOT / "docs/configuration.md").read_text().split("## Overlays")[1].split("## Names")[0]
    names = {
        name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in row.split(", ")
    }
    assert {name.strip("`") for name in names} == {*config_names()} - {"train", "inference"}


def test_the_keys_of_a_scans_findings_are_told(trained, cohort, tmp_path):
    """As an inference of a real run writes them."""
    from workflows import run_bundle

    scan = cohort / "test/images/test_000.nii.gz"
    overlay = str(trained / "models/model.json")
    run_bundle(
        "run",
        ["inference", overlay],
        bundle_root=trained,
        dataset_dir=scan,
        output_dir=tmp_path,
        false_positive_rate=0.1,
        min_lesion_ml=0,
    )
    findings = json.loads((tmp_path / "test_000/test_000_findings.json").read_text())
    assert findings["lesions"]
    told = set(re.findall(r"`(\w+)`", (ROOT / "docs/files.md").read_text()))
    assert {*findings, *findings["lesions"][0]} <= told
