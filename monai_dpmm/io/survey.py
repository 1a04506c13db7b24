"""The scans below a folder, by name and by content, and what is left out, by its reason."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from monai_dpmm.errors import InputError, printable
from monai_dpmm.files import LAST
from monai_dpmm.io.dicom_files import dicom_folder, is_dicom
from monai_dpmm.io.suffixes import DICOM_SUFFIXES, IMAGE_SUFFIXES, format_of

__all__ = ["Survey", "find_images", "left_out_line", "matching", "survey", "tell_once", "without"]

_logger = logging.getLogger(__name__)
# of images or archives of them, which are not read
_UNREAD = (
    *(".img", ".hdr", ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".mnc", ".gipl", ".vtk"),
    *(".vti", ".par", ".rec", ".nrrd.gz", ".mha.gz", ".dcm.gz", ".ecat", ".bruker", ".gif"),
    *(".webp", ".jp2", ".j2k", ".svs", ".heic", ".npy", ".npz", ".mat", ".h5", ".hdf5", ".zip"),
    *(".tar", ".tar.gz", ".tgz", ".7z", ".rar"),
)
# of what is no image, and so not opened
_NO_IMAGE = {
    *(".txt", ".json", ".csv", ".tsv", ".md", ".html", ".xml", ".pdf", ".log", ".yaml", ".yml"),
    *(".bval", ".bvec", ".py", ".xlsx", ".docx", ".ini", ".inf", ".exe", ".dll", ".js", ".css"),
}
_KILLED = (".partial-", ".commit-", ".moving-")  # folders of `replacement`
_SHOWN = 3  # files of one reason
_told: set[str] = set()


class Survey(NamedTuple):
    """What lies below a folder.

    Attributes:
        images: files of images, and for each DICOM scan its folder, or its first file where the
            folder holds several; sorted.
        left_out: what is taken for no scan, by its reason.
    """

    images: list[Path]
    left_out: dict[str, list[Path]]


def find_images(folder: str | Path) -> list[Path]:
    """Images below a folder, see `survey`.

    Raises:
        InputError: where the folder is missing, is no folder, or holds no image.
    """
    return survey(folder).images


def survey(folder: str | Path) -> Survey:
    """Images below a folder; a DICOM scan is recognised by content, and counts as one image.

    Hidden files and folders are passed over, linked folders are followed, once each. What this
    package has written there of scans, results and reports, is left out, and so are links to files
    that are there already, links to files that are not there, DICOM objects without a scan, and
    formats that are not read.

    Raises:
        InputError: where the folder is missing, is no folder, or holds no image.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: must be a folder of images, there is no such folder")
    left_out: defaultdict[str, list[Path]] = defaultdict(list)
    files = _without_results(root, _once(_files(root), left_out))
    images = [path for path in files if format_of(path)]
    dicoms: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in files:
        if path.name.lower().endswith(_UNREAD):
            left_out["files of formats that are not read"].append(path)
        elif path.suffix.lower() not in _NO_IMAGE and path.name != "DICOMDIR" and is_dicom(path):
            dicoms[path.parent].append(path)
    for parent, of_folder in dicoms.items():
        found = dicom_folder(of_folder)
        alone = len(found.scans) == 1
        images += [parent] if alone else [scan[0] for scan in found.scans]
        for reason, others in found.others.items():
            left_out[reason] += others
    if not images:
        known = ", ".join(IMAGE_SUFFIXES)
        told = "".join(f"; {left_out_line(*item, root)}" for item in left_out.items())
        raise InputError(
            f"{root}: must hold images ({known} or DICOM series), got {len(files)} other files"
            f"{told}"
        )
    return Survey(sorted(images), dict(left_out))


def without(found: Survey, root: Path, reason: str, unwanted: Callable[[Path], bool]) -> Survey:
    """A survey less the images whose paths below the root are unwanted, told by a reason."""
    out = [path for path in found.images if unwanted(path.relative_to(root))]
    if not out:
        return found
    gone = set(out)
    return Survey(
        [path for path in found.images if path not in gone],
        {**found.left_out, reason: [*found.left_out.get(reason, []), *out]},
    )


def matching(found: Survey, root: Path, pattern: str | None) -> Survey:
    """A survey with those images only that a pattern matches.

    Args:
        found: of `survey`.
        root: its folder.
        pattern: of names, as a shell has them (`*_T1w.nii.gz`), or of paths below the root if there
            is a "/" in it; None for all.

    Raises:
        InputError: where it matches none.
    """
    if pattern is None:
        return found
    reason = "files of other names than pattern"
    kept = without(found, root, reason, lambda path: not _fits(path, pattern))
    if not kept.images:
        raise InputError(
            f"{root}: pattern must match a scan, {pattern!r} matches none of {len(found.images)},"
            f" such as {found.images[0].name}"
        )
    return kept


def _fits(path: Path, pattern: str) -> bool:
    return fnmatchcase(path.as_posix() if "/" in pattern else path.name, pattern)


def left_out_line(reason: str, files: list[Path], root: Path) -> str:
    """A reason with how many files there are, and some of them, by their paths below a folder."""
    names = ", ".join(os.path.relpath(file, root) for file in files[:_SHOWN])
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return f"{len(files)} {reason} ({names}{more})"


def tell_once(root: Path, left_out: Mapping[str, list[Path]]) -> None:
    """Log what was left out, a line for each reason, once a process."""
    for reason, files in left_out.items():
        line = printable(f"{root}: left out {left_out_line(reason, files, root)}")
        if line not in _told:
            _told.add(line)
            _logger.warning(line)


def _files(root: Path) -> Iterator[Path]:
    """Files below a folder, by their paths, those of linked folders as well.

    Of hidden ones only those of runs that were killed, which tell what was being written.
    """
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [n for n in folders if not n.startswith(".") or n.startswith(_KILLED)]
        folders.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        shown = (n for n in names if not n.startswith(".") or n.startswith(LAST))
        yield from (Path(folder, name) for name in sorted(shown))


def _once(paths: Iterable[Path], left_out: defaultdict[str, list[Path]]) -> list[Path]:
    """Files that are there, without links to one another."""
    files, links = [], []
    for path in paths:
        (links if path.is_symlink() else files).append(path)
    known = {os.path.realpath(path) for path in files} if links else set()
    for path in links:
        real = os.path.realpath(path)
        looks = format_of(path) or path.suffix.lower() in DICOM_SUFFIXES
        if not os.path.isfile(real):
            if looks:
                left_out["links to files that are not there, as `datalad get` fetches"].append(path)
        elif real in known:
            if looks:
                left_out["links to files that are there already"].append(path)
        else:
            known.add(real)
            files.append(path)
    return sorted(path for path in files if path.is_file())


def _without_results(root: Path, files: list[Path]) -> list[Path]:
    """The files but hidden ones, those that inference and evaluation have written, and reports.

    What a run that was killed had begun to put in place counts as written.
    """
    end, page, parts = "_findings.json", "report.html", ("figures", "viewers")
    results: defaultdict[Path, list[str]] = defaultdict(list)  # how they begin, by folder
    reports: set[Path] = set()
    for path in files:
        begun = path.name.startswith(LAST)
        folder, name = path.parent, path.name.removeprefix(LAST)
        folder = folder.parent if begun else folder
        if name.endswith(end):
            results[folder].append(f"{name.removesuffix(end)}_")
        old = name == "metrics.json" and any((folder / part).is_dir() for part in parts)
        if old or (name == page and (begun or (folder / "metrics.json").is_file())):
            reports.add(folder)
    return [
        path
        for path in files
        if not path.name.startswith(tuple(results.get(path.parent, ())))
        and not reports.intersection(path.parents)
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
