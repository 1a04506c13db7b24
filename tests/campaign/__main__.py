"""The campaign: kills, power cuts, full disks, races and mutated inputs; prints a table.

    OMP_NUM_THREADS=1 PYTHONPATH=tests python -m campaign  # an hour
    OMP_NUM_THREADS=1 PYTHONPATH=tests python -m campaign --quick  # as tests have it

Exits with 1 where anything is torn, foreign, hangs, crashes or ends in a traceback.
"""

import argparse
import datetime
import os
import platform
import random
import re
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import ignite  # noqa: F401 - children inherit what is imported
import monai.bundle
import torch
import tqdm

import monai_dpmm.engines.engines
import monai_dpmm.report.report
import monai_dpmm.report.viewer
import monai_dpmm.study.comparison  # noqa: F401
from campaign import faults, inputs, workloads
from monai_dpmm.files import load_tensors

KINDS = ("crash", "hang", "traceback", "torn", "foreign", "other")


class Tally:
    """Trials and what went wrong in each, by part."""

    def __init__(self):
        self.rows, self.faults = {}, []

    def add(self, part, wrong, trials=1):
        """Count trials of a part, and what was wrong."""
        row = self.rows.setdefault(part, dict.fromkeys(("trials", *KINDS), 0))
        row["trials"] += trials
        for line in wrong:
            row[_kind(line)] += 1
            self.faults.append(f"{part}: {line}")
            print(f"  {part}: {line}"[:500], flush=True)

    def table(self):
        """Rows of a Markdown table."""
        lines = [
            "| part | trials | " + " | ".join(KINDS) + " |",
            "|---|" + "--:|" * (1 + len(KINDS)),
        ]
        lines += [
            f"| {part} | " + " | ".join(f"{value:,}" for value in row.values()) + " |"
            for part, row in self.rows.items()
        ]
        return "\n".join(lines)


def _kind(line):
    if "traceback" in line.lower():
        return "traceback"
    for word, kind in (("hang", "hang"), ("ends the process", "crash"), ("signal", "crash")):
        if word in line:
            return kind
    if line.startswith(("torn", "one of", "another embedding", "a page without", "model.pt and")):
        return "torn"
    return "foreign" if line.startswith(("taken", "left over")) else "other"


def ending(end, *, killed=False, allowed=(0,), line=None):
    """What is wrong with how a child ended."""
    if end.code is None:
        return ["hangs"]
    if killed and end.code == -9:
        return []
    if "Traceback" in end.output:
        errors = re.findall(r"^\w*(?:Error|Exception).*", end.output, re.MULTILINE)
        return [f"traceback: {(errors or [end.output[-300:]])[0]}"]
    if end.code < 0 or end.code not in allowed:
        kind = "signal" if end.code < 0 else "exit code"
        return [f"{kind} {end.code}: {' '.join(end.output.split())[-300:]}"]
    if line is not None and end.code:
        errors = [text for text in end.output.splitlines() if text.startswith("error: ")]
        told = end.output[end.output.rfind("error: ") :]  # a list of scans has a line for each
        if len(errors) != 1 or not re.search(line, told):
            return [f"not one line: {' '.join(end.output.split())[-300:]}"]
    return []


class Campaign:
    """All parts on one folder."""

    def __init__(self, folder, quick):
        self.folder, self.quick, self.tally = Path(folder), quick, Tally()
        self.healthy = workloads.write_scans(self.folder / "healthy", 3)
        self.scans = workloads.write_scans(self.folder / "scans", 2, lesion=True)
        self.root = self.folder / "root"
        self._run(lambda: workloads.train(self.root, self.healthy))
        self.model = workloads.model_of(self.root)
        self.fresh = self.folder / "fresh"  # embeddings are there, a model is not
        (self.fresh / "embeddings").parent.mkdir()
        workloads.copied(self.root / "embeddings", self.fresh / "embeddings")
        self._run(lambda: workloads.infer(self.root, self.scans, self.folder / "reference"))
        self.results = workloads.results_of(self.folder / "reference")
        self.random = random.Random(0)

    def _run(self, function):
        end = faults.ended(function)
        if end.code:
            raise SystemExit(f"the undisturbed run failed:\n{end.output}")
        return end

    def _changes(self, run, root):
        file = self.folder / "changes"

        def counted():
            faults.count_changes(root, file)
            run()

        start = time.monotonic()
        self._run(counted)
        return file.stat().st_size, time.monotonic() - start

    def _killed(self, part, run, root, prepare, check, count, seconds, *, steps, moments):
        """Kill a run before each of its changes (every n-th), and at random moments."""
        for number in range(0, count, steps):
            prepare()

            def killed(number=number):
                faults.killed_before(number, root)
                run()

            end = faults.ended(killed)
            self.tally.add(f"{part}, killed before a change", ending(end, killed=True) + check())
        for _ in range(moments):
            prepare()
            end = faults.ended(run, kill_after=self.random.uniform(0, seconds))
            self.tally.add(f"{part}, killed at random", ending(end, killed=True) + check())

    def training(self, steps, moments):
        """A training goes on where it was killed and gives the same model, bit for bit."""
        root = self.folder / "training"

        def prepare():
            workloads.copied(self.fresh, root)

        def run():
            workloads.train(root, self.healthy)

        def check():
            wrong = workloads.wrong_model(root)
            more = ("-s", "resume=true") if (root / "models/checkpoint.pt").exists() else ()
            end = faults.ended(lambda: workloads.train(root, self.healthy, *more))
            wrong += ending(end)
            if not end.code:
                wrong += workloads.wrong_model(root) + workloads.leftovers(root)
                wrong += workloads.other_model(self.model, workloads.model_of(root))
            return wrong

        prepare()
        count, seconds = self._changes(run, root)
        self._killed(
            "training", run, root, prepare, check, count, seconds, steps=steps, moments=moments
        )

    def inference(self, steps, moments):
        """Results are whole or not there, and never taken for scans; every fourth is done again."""
        scans = self.folder / "among"
        output, number = scans / "output", iter(range(10**6))

        def prepare():
            if next(number) % 2 == 0:  # every other time over earlier results
                workloads.copied(self.scans, scans)

        def run():
            workloads.infer(self.root, scans, output)

        def check():
            wrong = workloads.wrong_results(scans, output, self.results)
            if next(number) % 4 == 0:
                wrong += ending(faults.ended(run))
                wrong += workloads.wrong_results(scans, output, self.results)
                wrong += workloads.leftovers(output)
            return wrong

        workloads.copied(self.scans, scans)
        count, seconds = self._changes(run, scans)
        self._killed(
            "inference", run, scans, prepare, check, count, seconds, steps=steps, moments=moments
        )

    def store(self, steps, moments):
        """A store of embeddings is whole after any number of kills."""
        folder = self.folder / "store"

        def prepare():
            workloads.shutil.rmtree(folder, ignore_errors=True)

        def run():
            workloads.quiet()
            workloads.store(folder, self.healthy).embed()

        def check():
            workloads.writing._FRESH = -1.0
            workloads.writing._swept.clear()
            return workloads.wrong_store(folder, self.healthy)

        prepare()
        count, seconds = self._changes(run, folder)
        self._killed(
            "store", run, folder, prepare, check, count, seconds, steps=steps, moments=moments
        )

    def comparison(self, steps, moments):
        """A comparison goes on with the trials that are whole."""
        root, dataset = self.folder / "compared", self.folder / "dataset"
        for name in ("train", "val"):
            workloads.write_scans(dataset / name, 2, first=2 * (name == "val"))
        workloads.write_scans(dataset / "test/images", 2, lesion=True)
        import nibabel as nib
        import numpy as np

        (dataset / "test/labels").mkdir()
        for path in (dataset / "test/images").iterdir():
            image = nib.load(path)
            mask = (np.asarray(image.dataobj) > 500).astype(np.uint8)
            nib.save(nib.Nifti1Image(mask, image.affine), dataset / "test/labels" / path.name)

        def run():
            workloads.compare(root, dataset)

        self._run(run)
        reference = sorted(p.name for p in (root / "comparison").iterdir())
        base = self.folder / "embedded"
        workloads.copied(root, base)
        workloads.shutil.rmtree(base / "comparison")

        def prepare():
            workloads.copied(base, root)

        def check():
            wrong = [
                f"torn: {path.name}"
                for path in (root / "comparison").glob("[!.]*.json")
                if workloads._unreadable(workloads.json_value, path)
            ]
            end = faults.ended(run)
            names = sorted(p.name for p in (root / "comparison").iterdir())
            return wrong + ending(end) + ([] if names == reference else [f"left over: {names}"])

        prepare()
        count, seconds = self._changes(run, root)
        self._killed(
            "comparison", run, root, prepare, check, count, seconds, steps=steps, moments=moments
        )

    def power(self, *, every):
        """After a power cut at any moment, nothing that has its name is torn."""
        store = self.folder / "replay"
        scans, folder = self.folder / "among", self.folder / "cut"
        train = self.folder / "training"
        cases = {
            "training": (
                train,
                lambda: workloads.copied(self.root, train),
                lambda: workloads.train(train, self.healthy),
                lambda: workloads.wrong_model(folder),
            ),
            "inference": (
                scans,
                lambda: workloads.copied(self.scans, scans),
                lambda: workloads.infer(self.root, scans, scans / "output"),
                lambda: workloads.wrong_results(folder, folder / "output", self.results),
            ),
            "store": (
                self.folder / "store",
                lambda: workloads.copied(self.folder / "healthy", self.folder / "store"),
                lambda: workloads.store(self.folder / "store", self.healthy).embed(),
                lambda: workloads.wrong_store(folder, self.healthy),
            ),
        }
        for name, (root, prepare, run, check) in cases.items():
            prepare()
            workloads.shutil.rmtree(store, ignore_errors=True)
            store.mkdir()
            replay = faults.Replay(root, store)

            def recorded(run=run, replay=replay):
                workloads.quiet()
                replay.record()
                run()

            self._run(recorded)
            for number, _ in enumerate(faults.replayed(store, folder)):
                if number % every == 0:
                    workloads.writing._FRESH = -1.0
                    workloads.writing._swept.clear()
                    self.tally.add(f"{name}, power cut", check())

    def disks(self, count):
        """On a full or read-only disk, or without inodes: one line, earlier results whole."""
        disk = self.folder / "disk"
        disk.mkdir(exist_ok=True)
        root = disk / "root"
        runs = {
            "training": (
                lambda: workloads.train(root, self.healthy),
                lambda: workloads.wrong_model(root),
            ),
            "inference": (
                lambda: workloads.infer(self.root, self.scans, disk / "output"),
                lambda: workloads.wrong_results(self.scans, disk / "output", self.results),
            ),
        }
        for name, (run, check) in runs.items():
            for number in range(count):
                size = int(4096 * 2 ** self.random.uniform(0, 9 if name == "inference" else 12))
                inodes = self.random.randrange(2, 30) if number % 3 == 2 else None
                try:
                    with faults.full_disk(disk, size, inodes):
                        end = faults.ended(run)
                        wrong = ending(
                            end, allowed=(0, 1), line=r"disk|space|No space|written|made"
                        )
                        self.tally.add(f"{name}, full disk", wrong + check())
                        if number % 4 == 0:
                            faults.read_only(disk)
                            end = faults.ended(run)
                            wrong = ending(end, allowed=(1,), line=r"(?i)read-only")
                            self.tally.add(f"{name}, read-only disk", wrong + check())
                except PermissionError:
                    pass  # the limit below does the same to any user
                self._limited(name, run, check, disk, size)

    def _limited(self, name, run, check, disk, size):
        def limited():
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            run()

        end = faults.ended(limited)
        wrong = ending(end, allowed=(0, 1), line=r"File too large|written")
        self.tally.add(f"{name}, limit of file sizes", wrong + check())
        for path in disk.iterdir():
            workloads.shutil.rmtree(path)

    def memory(self, count):
        """Where memory is short: one line that says what to lower, never that a file is broken."""
        with Path("/proc/self/status").open() as status:
            own = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))
        output = self.folder / "short"
        for number in range(count):
            spare = (1 << 20) * (4 << (number % 7))
            end = faults.ended(
                lambda: workloads.infer(self.root, self.scans, output), memory=own + spare
            )
            wrong = ending(end, allowed=(0, 1), line=r"memory")
            self.tally.add("inference, little memory", wrong)

    def races(self, count):
        """Several writers at once: each ends well or says in a line why not; nothing is torn."""
        folder, output = self.folder / "store", self.folder / "raced"
        for _ in range(count):
            workloads.shutil.rmtree(folder, ignore_errors=True)
            ends = self._together([lambda: self._embed(folder)] * 3)
            wrong = [line for end in ends for line in end] + workloads.wrong_store(
                folder, self.healthy
            )
            self.tally.add("store, three writers", wrong)
        for _ in range(max(1, count // 4)):
            workloads.shutil.rmtree(output, ignore_errors=True)
            runs = [
                lambda path=path: workloads.infer(self.root, path, output)
                for path in sorted(self.scans.iterdir())
            ]
            wrong = [line for end in self._together(runs) for line in end]
            wrong += workloads.wrong_results(self.scans, output, self.results)
            wrong += workloads.not_reported(self.scans, output)
            self.tally.add("inference, two writers", wrong)

    def _embed(self, folder):
        workloads.quiet()
        workloads.store(folder, self.healthy).embed()

    def _together(self, functions):
        ends = [[] for _ in functions]

        def one(i, function):
            ends[i] = ending(faults.ended(function), allowed=(0, 1), line=r".")

        threads = [threading.Thread(target=one, args=pair) for pair in enumerate(functions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return ends

    def bits(self, count):
        """A flipped bit anywhere in model.pt is noticed."""
        content = (self.root / "models/model.pt").read_bytes()
        path = self.folder / "flipped.pt"
        for _ in range(count):
            data = bytearray(content)
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            path.write_bytes(data)
            try:
                found = load_tensors(path)
            except ValueError:
                found = None
            same = found is None or not workloads.other_model((found, {}), (self.model[0], {}))
            self.tally.add("model.pt, a bit flipped", [] if same else ["torn: it was not noticed"])

    def flat(self, *counts):
        """Memory does not grow with the number of scans, once the first have warmed it up."""
        peaks = []
        for count in counts:
            scans = workloads.write_scans(self.folder / f"many-{count}", count, lesion=True)
            output = self.folder / f"of-{count}"
            peaks.append(self._run(lambda s=scans, o=output: workloads.infer(self.root, s, o)).peak)
        pairs = zip(counts, peaks, strict=True)
        shown = ", ".join(f"{count} scans {peak // 1000} MB" for count, peak in pairs)
        print(f"peak memory: {shown}", flush=True)
        self.tally.add(
            f"memory of {counts[-1]} scans", [] if peaks[-1] < 1.1 * peaks[-2] else [shown]
        )

    def mutated(self, count):
        """Inputs at every door."""
        found = inputs.campaign(self.folder / "inputs", count)
        for door, (tried, wrong) in found.items():
            self.tally.add(f"input: {door}", wrong, tried)
        if list(self.folder.rglob("traced")):
            self.tally.add("input: code", ["code of a file was run"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, prog="campaign")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--folder", type=Path, help="to work in, instead of a temporary one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # tqdm's own lock is shared by processes: a child that is killed would keep it for ever
    tqdm.tqdm.set_lock(threading.RLock())
    tqdm.tqdm.monitor_interval = 0
    start, quick = time.monotonic(), args.quick
    folder = tempfile.mkdtemp(dir=args.folder)  # no child's exit removes it
    try:
        os.chdir(folder)
        campaign = Campaign(folder, quick)
        parts = {
            "mutated": lambda: campaign.mutated(400 if quick else 6000),
            "bits": lambda: campaign.bits(20 if quick else 300),
            "store": lambda: campaign.store(4 if quick else 1, 1 if quick else 250),
            "power": lambda: campaign.power(every=6 if quick else 1),
            "training": lambda: campaign.training(22 if quick else 2, 1 if quick else 10),
            "inference": lambda: campaign.inference(26 if quick else 2, 1 if quick else 10),
            "disks": lambda: campaign.disks(1 if quick else 8),
            "memory": lambda: campaign.memory(1 if quick else 14),
            "races": lambda: campaign.races(1 if quick else 12),
            "comparison": lambda: campaign.comparison(20 if quick else 3, 0 if quick else 5),
            "flat": lambda: None if quick else campaign.flat(15, 60, 120),
        }
        for name, part in parts.items():
            if not args.only or name in args.only:
                print(f"{name} ({time.monotonic() - start:.0f} s)", flush=True)
                part()
                if not quick:
                    print(f"{campaign.tally.table()}\n", flush=True)
    finally:
        os.chdir("/")
        workloads.shutil.rmtree(folder, ignore_errors=True)
    tally, python = campaign.tally, platform.python_version()
    versions = f"Python {python}, PyTorch {torch.__version__}, MONAI {monai.__version__}"
    print(f"\n{datetime.date.today()}, {versions}, {time.monotonic() - start:.0f} s")
    print(f"\n{tally.table()}")
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
