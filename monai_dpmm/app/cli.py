"""Command line: `python -m monai_dpmm COMMAND`, thin over the bundle's workflows.

The parser is in `cli_parser`, what the commands do in `cli_commands`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from monai_dpmm.app.cli_parser import command_parser
from monai_dpmm.app.release import configs_dir
from monai_dpmm.app.workflows import run_workflow
from monai_dpmm.errors import INTERRUPTED, USAGE, UsageError, one_line_errors, report_line

_MOVED = "benchmark is a script of the source: python benchmarks/costs.py SCAN -f FOLDER"

__all__ = ["configs_dir", "main", "run_workflow"]


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the command.

    A problem of the data or the model is raised, and reported by the interpreter as one line with
    exit code 1.

    Raises:
        SystemExit: with code 2 for wrong usage, 1 where `check` finds something wrong. When
            interrupted, the process ends with code 130.
    """
    one_line_errors()
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if arguments[:1] == ["benchmark"]:  # of one earlier version
            raise UsageError(_MOVED)
        args = command_parser().parse_args(argv)
        args.run(args)
        sys.stdout.flush()
    except UsageError as error:
        report_line(error)
        raise SystemExit(USAGE) from None
    except BrokenPipeError:  # the reader of the output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # threads of libraries that still compute abort an orderly exit
