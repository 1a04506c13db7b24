"""`settings`: every setting of the workflows, as text or as the page of the documentation."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser, Namespace
from difflib import get_close_matches

from monai_dpmm.app.completion import offer_names
from monai_dpmm.app.options import Command
from monai_dpmm.app.settings import RENAMED, SECTIONS, SETTINGS, Setting
from monai_dpmm.errors import UsageError

__all__ = ["COMMANDS", "settings_tables"]


def settings_tables() -> str:
    """The sections of docs/configuration.md that tell every setting, in Markdown."""
    head = "| name | default | meaning | allowed |\n|---|---|---|---|\n"
    return "\n".join(
        f"## {title}\n\n{head}{''.join(map(_row, rows))}" for title, rows in SECTIONS.items()
    )


def _row(row: Setting) -> str:
    name = f"`{row.name}`{' •' if row.remembered else ''}"
    allowed = row.rule.text if row.rule else "not set by hand"
    return f"| {name} | {row.default_text or f'`{_written(row)}`'} | {row.help} | {allowed} |\n"


def _written(row: Setting) -> str:
    """The default as it is typed after -s."""
    return row.default if isinstance(row.default, str) else json.dumps(row.default)


def _options(command: ArgumentParser) -> None:
    name = command.add_argument(
        "name", nargs="?", metavar="NAME", help="of one setting (default: all)"
    )
    offer_names(name, SETTINGS)
    command.add_argument("--markdown", action="store_true", help="as the tables of the docs")


def _run(args: Namespace) -> None:
    name = RENAMED.get(args.name, args.name)
    if name is not None and name not in SETTINGS:
        near = ", ".join(get_close_matches(name, SETTINGS)) or "monai-dpmm settings prints all"
        raise UsageError(f"NAME must be a setting, got {name!r} (nearest: {near})")
    if args.markdown:
        print(settings_tables(), end="")
    elif name is not None:
        print(_text(SETTINGS[name]))
    else:
        for title, rows in SECTIONS.items():
            print(
                f"{title}\n", *(f"  {_text(row)}".replace("\n", "\n  ") for row in rows), sep="\n"
            )
            print()


def _text(row: Setting) -> str:
    """A setting in a few lines."""
    marks = [
        *(["the model remembers it"] if row.remembered else []),
        *(["another value embeds the scans anew"] if row.embeds else []),
    ]
    help_ = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", row.help).replace("`", "")
    lines = [
        f"{row.name}, default {row.default_text.replace('`', '') or _written(row)}",
        help_,
        f"allowed: {row.rule.text if row.rule else 'not set by hand'}",
        *(["; ".join(marks)] if marks else []),
    ]
    return "\n    ".join(lines)


COMMANDS = [
    Command(
        "settings",
        "print every setting, its default and what it may be",
        _options,
        _run,
        """\
examples:
  monai-dpmm settings
  monai-dpmm settings window
""",
    )
]
