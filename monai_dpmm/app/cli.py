"""Command line: `python -m monai_dpmm COMMAND`, each a module of `commands`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from monai_dpmm import __version__
from monai_dpmm.app.commands import all_commands
from monai_dpmm.app.release import configs_dir
from monai_dpmm.app.workflows import run_workflow
from monai_dpmm.errors import (
    INTERRUPTED,
    USAGE,
    UsageError,
    one_line_errors,
    printable,
    report_line,
)

_EPILOG = """\
A first model, and what it finds in other scans:
  monai-dpmm check healthy_scans
  monai-dpmm train healthy_scans -f brain
  monai-dpmm infer scans -f brain

demo, train, calibrate, evaluate and infer are workflows of the bundle, which
MONAI runs as well, for example
  python -m monai.bundle run training --config_file configs/train.json \\
    --dataset_dir healthy_scans
Any value of their configs can be set with -s; --show-config prints them all,
and --dry-run says what would be done.

exit codes:
  0    done
  1    a problem of the data or the model: one line on standard error;
       also where check finds one, or infer did all scans but some. A traceback,
       also 1, is a bug: please report it. Where the variable
       MONAI_DPMM_TRACEBACK is set, every error has its traceback
  2    an option, key or config that there is none of; nothing has been run
  130  interrupted (Ctrl-C)
"""
_MOVED = {  # commands of one earlier version
    "benchmark": "is a script of the source: python benchmarks/costs.py SCAN -f FOLDER",
    "completion": "is shtab's: shtab --shell bash monai_dpmm.app.cli.command_parser",
}

__all__ = ["command_parser", "configs_dir", "main", "run_workflow"]


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the command; without any, print the help.

    A problem of the data or the model is raised, and reported by the interpreter as one line with
    exit code 1.

    Raises:
        SystemExit: with code 2 for wrong usage, 1 where `check` finds something wrong. When
            interrupted, the process ends with code 130.
    """
    one_line_errors()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: no file of a run may take its place
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    given = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        if given[0] in _MOVED:
            raise UsageError(f"{given[0]} {_MOVED[given[0]]}")
        args = command_parser().parse_args(given)
        args.run(args)
        sys.stdout.flush()
    except UsageError as error:
        report_line(error)
        raise SystemExit(USAGE) from None
    except BrokenPipeError:  # the reader of the output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt as error:
        print(f"\n{printable(str(error)) or 'interrupted'}", file=sys.stderr)
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # threads of libraries that still compute abort an orderly exit


def command_parser() -> ArgumentParser:
    """Parser of all commands; the result's `run` is what to call with it."""
    parser = ArgumentParser(
        prog="monai-dpmm",
        description="Unsupervised anomaly detection for medical volumes.",
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", dest="command", title="commands"
    )
    for command in all_commands():
        declared = commands.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help[:1].upper()}{command.help[1:]}.",
            epilog=command.examples,
            formatter_class=RawDescriptionHelpFormatter,
        )
        declared.set_defaults(run=command.run)
        command.options(declared)
    return parser
