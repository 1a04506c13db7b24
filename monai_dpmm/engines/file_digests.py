"""Digests of scans, computed again only where a file has changed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from monai_dpmm.files import atomic_write, file_digest, json_object
from monai_dpmm.io.dicom_files import is_dicom, scan_files
from monai_dpmm.io.suffixes import format_of

__all__ = ["FileDigests"]

_DETACHED = {".hdr", ".img", ".mhd", ".nhdr"}  # whose voxels lie in a file of the same stem
_RECENT = 2_000_000_000  # ns: a file may change once more within what its clock tells apart


class FileDigests:
    """SHA-256 of the bytes of a scan, a file or a folder, kept in a JSON file.

    A digest is taken from there while path, size, inode and the times of the last change to every
    file's bytes and to its entry in the file system are what they were, and none of these times was
    within two seconds of the reading. Digests and names are kept as digests, so that the file tells
    nobody the names of scans. Several processes may share it: what one of them overwrites is
    computed again.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._known: dict[str, str] | None = None
        self._new: dict[str, str] = {}

    def __call__(self, scan: Path) -> str:
        """Digest of a scan, whatever it is called: 64 hexadecimal digits."""
        files = _files(scan)
        before = _state(scan, files)
        if self._known is None:
            self._known = self._read()
        if before in self._known:
            self._new[before] = self._known[before]
            return self._known[before]
        content = json.dumps([[name, file_digest(file)] for name, file in files])
        digest = hashlib.sha256(content.encode()).hexdigest()
        stats = [file.stat() for _, file in files]
        changed = max((max(s.st_mtime_ns, s.st_ctime_ns) for s in stats), default=0)
        if before == _state(scan, files) and time.time_ns() - changed > _RECENT:
            self._known[before] = self._new[before] = digest
        return digest

    def save(self) -> None:
        """Add what has been asked for to the file, if it is not there."""
        if self.path is None or self._new.keys() <= (known := self._read()).keys():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as partial:
            partial.write_text(json.dumps(known | self._new), encoding="utf-8")

    def _read(self) -> dict[str, str]:
        """What the file holds; nothing of one that is damaged, whose digests are made again."""
        try:
            known = {} if self.path is None else json_object(self.path)
        except (OSError, ValueError):
            return {}
        return {key: text for key, text in known.items() if _is_digest(key) and _is_digest(text)}


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def _state(scan: Path, files: list[tuple[str, Path]]) -> str:
    """Digest of where the files are, how large, and when they changed last."""
    told = [os.path.abspath(scan)]
    for name, file in files:
        s = file.stat()
        told.append(f"{name}|{s.st_dev}|{s.st_ino}|{s.st_size}|{s.st_mtime_ns}|{s.st_ctime_ns}")
    return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()


def _files(path: Path) -> list[tuple[str, Path]]:
    """The files of a scan, with what tells them apart, whatever the scan is called."""
    if path.is_dir():
        return [(str(p.relative_to(path)), p) for p in sorted(path.rglob("*")) if p.is_file()]
    if format_of(path) is None and is_dicom(path):
        return [(file.name, file) for file in scan_files(path)]
    if path.suffix.lower() in _DETACHED:
        beside = sorted(p for p in path.parent.iterdir() if p.stem == path.stem and p.is_file())
        return [(p.suffix, p) for p in beside]
    return [(path.suffix, path)]
