"""The README's example runs as it stands."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["anomaly"].shape == (1, 1, 40, 48, 12)
    assert 0 < names["mask"].float().mean() < 0.5


def test_the_configs_of_the_readme_exist():
    for path in set(re.findall(r"configs/\w+\.json", README)):
        assert (Path(__file__).parents[1] / path).is_file(), path
