"""The examples of the README and of the documentation run as they stand."""

import re
import shlex
from pathlib import Path

import pytest

from monai_dpmm.app.cli import command_parser

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}


def examples(page):
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)


def run(example):
    names: dict = {}
    exec(example, names)
    return names


def test_the_readmes_example_marks_anomalies():
    (example,) = examples("README.md")
    names = run(example)
    assert names["anomaly"].shape == (1, 1, 40, 48, 12)
    assert 0 < names["mask"].float().mean() < 0.5


def test_the_examples_of_the_mixture_say_what_they_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place, sites, estimator = examples("mixture.md")
    names = run(place)
    assert names["nats"] > 0
    assert names["misplaced"] > names["expected"] + 1
    names = run(sites)
    pooled = names["DPMM"](64, components=20, schedule="none")
    pooled.initialize(names["sites"][0])
    for _ in range(10):
        pooled.step(names["patches"])
    assert names["torch"].allclose(pooled.means, names["shared"].means, atol=1e-3)
    distance = run(estimator)["distance"]
    assert distance[:5].max() < 0.1
    assert distance[5:].min() > 0.6


def test_the_parts_of_ones_own_pipeline_find_a_hole():
    volume, network, occlusion = examples("own_pipeline.md")
    names = run(volume)
    scores = names["anomaly"][0, 0]
    hole = names["torch"].zeros_like(scores, dtype=bool)
    hole[12:28, 16:32, 6] = True
    assert hole.flatten()[scores.argmax()]
    assert scores[hole].mean() > 1.5 * scores[~hole].mean()
    assert run(network)["maps"].shape == (8, 1, 64, 64)
    assert run(network + occlusion)["where"].shape[-2:] == (64, 64)


@pytest.mark.parametrize("page", PAGES)
def test_the_program_takes_every_command_of_a_page(page):
    blocks = re.findall(r"```bash\n(.*?)```", PAGES[page], re.DOTALL)
    shell = "\n".join(blocks).replace("\\\n", " ")
    for line in re.findall(r"python -m monai_dpmm ([^\n#]*)", shell):
        command_parser().parse_args(shlex.split(line))


@pytest.mark.parametrize("page", PAGES)
def test_files_and_configs_that_a_page_names_exist(page):
    for path in set(re.findall(r"(?:configs|benchmarks|docs)/\w+\.\w+", PAGES[page])):
        assert (ROOT / path).is_file(), path
