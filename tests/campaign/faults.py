"""Processes that are killed, run out of disk or lose power, and what they leave."""

import atexit
import hashlib
import os
import resource
import signal
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink"}
_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Ended(NamedTuple):
    """Exit code of a child, or -signal, None where it hung; what it printed; peak kB."""

    code: int | None
    output: str
    peak: int


def ended(function, timeout=300.0, kill_after=None, memory=None):
    """Run a function in a forked child, of a process without threads, to its end.

    Args:
        function: raises as a command does; it ends as the interpreter would end.
        timeout: seconds after which the child hangs.
        kill_after: seconds after which it is killed.
        memory: bytes of address space.
    """
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        code = 70  # where the hook for errors fails itself, or does not end the process
        try:
            os.close(reader)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            atexit._clear()  # what the parent has to do at its end
            if memory is not None:
                resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            function()
            sys.stdout.flush()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(bool(error.code))
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    os.close(writer)
    os.set_blocking(reader, False)
    start, output, killed = time.monotonic(), b"", False
    while True:
        with suppress(BlockingIOError):
            output += os.read(reader, 1 << 20)
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        passed = time.monotonic() - start
        if passed > timeout or (kill_after is not None and passed > kill_after and not killed):
            os.kill(child, signal.SIGKILL)
            killed = passed <= timeout
            if not killed:
                _, _, usage = os.wait4(child, 0)
                os.close(reader)
                return Ended(None, output.decode(errors="replace"), usage.ru_maxrss)
        time.sleep(0.002)
    with suppress(BlockingIOError):
        while block := os.read(reader, 1 << 20):
            output += block
    os.close(reader)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, output.decode(errors="replace"), usage.ru_maxrss)


def killed_before(number, root):
    """From now on, this process is killed before its n-th change below a folder, from 0 on."""
    seen = iter(range(number, -1, -1))

    def change(_):
        if next(seen, 0) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    _watch(root, change)


def count_changes(root, file):
    """From now on, the changes of this process below a folder are counted in a file's size."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    _watch(root, lambda _: os.write(descriptor, b"."))


class Replay:
    """What a disk may hold after a power cut at each moment of a process, which it records.

    The file system is one that keeps the order of names but no data that was not synchronised: such
    a file is empty, as on ext4 with noauto_da_alloc.
    """

    def __init__(self, root, store):
        self.root, self.store = Path(root), Path(store)
        self.durable = {path.stat().st_ino: path.read_bytes() for path in self._files()}
        self.states = set()

    def record(self):
        """Record this process from now on."""
        sync = os.fsync

        def fsync(descriptor):
            sync(descriptor)
            found = os.fstat(descriptor)
            if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
                self.durable[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
            self._keep()

        os.fsync = fsync
        _watch(self.root, lambda _: self._keep())

    def _files(self):
        return [path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink()]

    def _keep(self):
        lines = []
        for path in self._files():
            with suppress(FileNotFoundError):
                content = path.read_bytes()
                content = content if self.durable.get(path.stat().st_ino) == content else b""
                digest = hashlib.sha256(content).hexdigest()
                if not (blob := self.store / digest).exists():
                    blob.write_bytes(content)
                lines.append(f"{digest} {path.relative_to(self.root)}")
        state = "\n".join(sorted(lines))
        if state not in self.states:
            self.states.add(state)
            (self.store / f"state-{len(self.states):05d}").write_text(state)


def replayed(store, folder):
    """Folders as a power cut leaves them, one after the other in the same place."""
    import shutil

    for state in sorted(Path(store).glob("state-*")):
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir()
        for line in state.read_text().splitlines():
            digest, name = line.split(" ", 1)
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((Path(store) / digest).read_bytes())
        yield state.name


def _watch(root, change):
    """Call a function before each change below a folder."""
    root, busy = str(root), []

    def hook(event, arguments):
        if busy:
            return
        if event in _CHANGES:
            ours = any(
                isinstance(part, str | os.PathLike) and os.fspath(part).startswith(root)
                for part in arguments
            ) or arguments[-1] not in (-1, None)
        elif event == "open":
            path, _, flags = arguments
            ours = isinstance(flags, int) and bool(flags & _WRITE) and str(path).startswith(root)
        else:
            return
        if ours:
            busy.append(event)
            try:
                change(event)
            finally:
                busy.clear()

    sys.addaudithook(hook)


@contextmanager
def full_disk(folder, size, inodes=None):
    """A small file system at a folder, where this user may mount one; otherwise a PermissionError.

    Args:
        folder: where it is mounted.
        size: bytes it holds.
        inodes: files it holds.
    """
    import subprocess

    options = f"size={size}" + (f",nr_inodes={inodes}" if inodes else "")
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        raise PermissionError("no mount") from None
    if done.returncode:
        raise PermissionError(done.stderr.decode())
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def read_only(folder):
    """Nothing can be written to a file system from now on."""
    import subprocess

    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
