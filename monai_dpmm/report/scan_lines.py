"""One line a scan, as soon as it is done: findings, ml, whether to rely on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm

from monai_dpmm.errors import printable
from monai_dpmm.io.result_files import scan_name
from monai_dpmm.report.scan_text import scan_sentence, verdict

__all__ = ["ScanLines", "scan_line"]


class ScanLines:
    """Print a line for each scan that an engine has finished, and a warning where it does not fit.

    The postprocessing must put the findings at a key, see `AnomalyFindingsd`.

    Args:
        findings_key: key of the findings.
    """

    def __init__(self, findings_key: str = "findings") -> None:
        self.findings_key = findings_key

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Print the lines of a batch."""
        for item in engine.state.output:
            image = str(item["image"].meta["filename_or_obj"])
            with tqdm.external_write_mode():  # not into the bar
                print(scan_line(image, item[self.findings_key]), flush=True)


def scan_line(image: str, findings: Mapping[str, Any]) -> str:
    """What was found in a scan, under its folder and name, and lines that warn of it."""
    path = Path(image)
    name = f"{path.parent.name}/{scan_name(image)}" if path.parent.name else scan_name(image)
    name = name.replace("\n", "?")  # a line is that of one scan
    warned = "".join(f"\n{name}: {line}" for line in verdict(findings))
    return printable(f"{name}: {scan_sentence(findings)}{warned}")
