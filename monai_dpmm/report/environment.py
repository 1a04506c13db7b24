"""What a number was measured with: date, versions and hardware."""

from __future__ import annotations

import os
import platform
import re
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from monai_dpmm import __version__

_PACKAGES = ("torch", "monai", "pytorch-ignite", "transformers", "numpy")

__all__ = ["environment"]


def environment() -> dict[str, str]:
    """Date (UTC), versions of the packages that results depend on, and hardware, by name."""
    found = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    found |= {"monai_dpmm": __version__, "python": platform.python_version()}
    found |= {package: _version(package) for package in _PACKAGES}
    return found | {"platform": platform.platform(), "processor": _processor(), "gpu": _gpu()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Model and number of cores."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    model = names[0] if names else platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} logical cores"


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
