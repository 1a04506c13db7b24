"""Time that `import monai_dpmm` adds to `import monai`, and what its public names add.

    python benchmarks/import_time.py [--rows ROW ...] [--repeats 7] [--json FILE]

Each row is a fresh process that imports MONAI, then what the row names, and times both; processes
take turns, and medians over the turns are shown. The last column, found first, which also fills the
caches of files, names heavy modules that ours import themselves: they are taken out of
`sys.modules` after `import monai`, which loads most of them where they are installed.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAVY = (
    "matplotlib",
    "nilearn",
    "pandas",
    "sklearn",
    "tensorboard",
    "torchmetrics",
    "transformers",
)
IMPORTS = {
    "monai_dpmm": "[]",
    # MONAI's three names of a dictionary transform
    "its transforms": "[n for n in monai_dpmm.__all__ if n[:-1] + 'Dict' in monai_dpmm.__all__]",
    "all public names": "monai_dpmm.__all__",
}
CODE = """
import json, sys, time
start = time.perf_counter()
import monai
middle = time.perf_counter()
import monai_dpmm
for name in {names}:
    getattr(monai_dpmm, name)
seconds = [middle - start, time.perf_counter() - middle]
print(json.dumps(seconds))
"""
WHICH = """
import json, sys
import monai, monai_dpmm
heavy = {heavy}
for name in list(sys.modules):
    if name.split(".")[0] in heavy:
        del sys.modules[name]
for name in {names}:
    getattr(monai_dpmm, name)
print(json.dumps([name for name in heavy if name in sys.modules]))
"""


def fresh(code: str) -> Any:
    """What the last line that a process of its own prints says, as JSON."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def measured(rows: Sequence[str], repeats: int) -> dict[str, dict[str, Any]]:
    """Heavy modules; medians of the seconds of `import monai` and of each import after it."""
    heavy = {row: fresh(WHICH.format(names=IMPORTS[row], heavy=HEAVY)) for row in rows}
    turns = [{row: fresh(CODE.format(names=IMPORTS[row])) for row in rows} for _ in range(repeats)]
    return {
        row: {
            "monai": statistics.median(turn[row][0] for turn in turns),
            "added": statistics.median(turn[row][1] for turn in turns),
            "heavy": heavy[row],
        }
        for row in rows
    }


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=IMPORTS, default=list(IMPORTS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file to write the result to")
    args = parser.parse_args()
    result = measured(args.rows, args.repeats)
    print(f"{'after import monai':<18}  {'monai, s':>8}  {'added, s':>8}  heavy")
    for name, row in result.items():
        heavy = ", ".join(row["heavy"]) or "-"
        print(f"{name:<18}  {row['monai']:8.2f}  {row['added']:8.3f}  {heavy}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
