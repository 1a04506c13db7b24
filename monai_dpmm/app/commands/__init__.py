"""One module a command, or a few that share how they run; each lists its `COMMANDS`."""

from importlib import import_module
from pkgutil import iter_modules

from monai_dpmm.app.options import Command

__all__ = ["all_commands"]


def all_commands() -> list[Command]:
    """Every command of the modules here, the bundle's workflows first."""
    names = sorted((module.name for module in iter_modules(__path__)), key=lambda n: n != "bundled")
    modules = (import_module(f"{__name__}.{name}") for name in names)
    return [command for module in modules for command in module.COMMANDS]
