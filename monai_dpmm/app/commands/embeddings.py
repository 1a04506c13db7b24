"""`embeddings`: what the store of embeddings holds, and what is cleared of it."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from monai_dpmm.app.options import Command, add_folder, positive, require_paths
from monai_dpmm.files import sweep

__all__ = ["COMMANDS"]

_DAY = 86_400


def _options(command: ArgumentParser) -> None:
    files = command.add_argument_group("folders")
    add_folder(files)
    files.add_argument(
        "--store", type=Path, metavar="DIR", help="of the embeddings (default: embeddings in -f)"
    )
    group = command.add_argument_group("clearing")
    group.add_argument("--clear", action="store_true", help="delete files instead of showing them")
    group.add_argument(
        "--unused",
        type=positive,
        metavar="DAYS",
        help="only those that no run has read for so long",
    )


def _run(args: Namespace) -> None:
    store = args.folder / "embeddings" if args.store is None else args.store
    require_paths(store)
    files = {p: p.stat() for p in store.glob("[!.]*.safetensors") if p.is_file()}
    if args.unused is not None:
        read_before = time.time() - args.unused * _DAY
        files = {path: stat for path, stat in files.items() if stat.st_mtime < read_before}
    size = sum(stat.st_size for stat in files.values())
    if args.clear:
        for path in files:
            path.unlink(missing_ok=True)
        sweep(store)
        print(f"{store}: {len(files)} scans deleted, {size / 1e9:.2f} GB")
        return
    which = "" if args.unused is None else f" not read for {args.unused} days"
    print(f"{store}: {len(files)} scans{which}, {size / 1e9:.2f} GB")
    if files:
        first, last = (
            time.strftime("%Y-%m-%d", time.localtime(of(s.st_mtime for s in files.values())))
            for of in (min, max)
        )
        print(f"last read from {first} to {last}")


COMMANDS = [
    Command(
        "embeddings",
        "show what the store of embeddings holds, or clear it",
        _options,
        _run,
        """\
examples:
  monai-dpmm embeddings -f brain
  monai-dpmm embeddings -f brain --clear --unused 30

Whatever is cleared is embedded again by the next run that needs it. What a
killed run has left in the store goes, too.
""",
    )
]
