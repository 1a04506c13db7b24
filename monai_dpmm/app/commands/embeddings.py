"""`embeddings`: what the store of embeddings holds, and what is cleared of it."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from monai_dpmm.app.options import Command, add_folder, positive, require_paths

__all__ = ["COMMANDS"]

_DAY = 86_400
_LEFT = 3_600  # seconds after which what a run has begun to write is nobody's any more


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
    now = time.time()
    stats = {path: path.stat() for path in store.glob("*.safetensors") if path.is_file()}
    began = [path for path in stats if path.name.startswith(".")]
    kept = {path: stat for path, stat in stats.items() if path not in began}
    if args.unused is not None:
        kept = {p: stat for p, stat in kept.items() if now - stat.st_mtime > args.unused * _DAY}
    size = sum(stat.st_size for stat in kept.values())
    left = [path for path in began if now - stats[path].st_mtime > _LEFT]
    if args.clear:
        for path in (*kept, *left):
            path.unlink(missing_ok=True)
        print(f"{store}: {len(kept)} scans deleted, {size / 1e9:.2f} GB")
        return
    which = "" if args.unused is None else f" not read for {args.unused} days"
    print(f"{store}: {len(kept)} scans{which}, {size / 1e9:.2f} GB")
    if kept:
        first, last = (
            time.strftime("%Y-%m-%d", time.localtime(of(s.st_mtime for s in kept.values())))
            for of in (min, max)
        )
        print(f"last read from {first} to {last}")
    if left:
        print(f"{len(left)} files that interrupted runs have left; --clear deletes them, too")


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

Whatever is cleared is embedded again by the next run that needs it.
""",
    )
]
