"""What the process of `monai_dpmm.io.reading_process` does: images by ITK, pictures by Pillow."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_dpmm.errors import InputError, reader_reason

__all__ = ["READERS", "read_itk", "read_picture", "read_series", "serve"]

_Image = tuple[NDArray[Any], NDArray[np.float64]]
_DEFLATED = 1032  # times smaller is the most that a file compressed by deflate can be
# bytes that reading may take: of any file, of each byte in it, and of each byte of its pixels
_ANY, _OF_FILE, _OF_PIXELS = 512 << 20, 16, 20
_MOST, _MOST_OF_FILE = 4 << 30, 64  # whatever the pixels are
_FEW = 64 << 20  # bytes of pixels that any file may say to have
_OF_PICTURE = 32  # bytes that a pixel may take, which may have four channels
_BESIDE = (".nhdr", ".mhd", ".nrrd", ".mha", ".hdr")  # formats whose pixels may lie in other files
_SQUARE = 1.01  # longest pixel, of its width, that counts as square
_OUT_OF_LPS = (-1.0, -1.0, 1.0)


def serve() -> None:
    """Answer requests on standard input, one JSON line each, until it ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    _limit_memory(0)
    import PIL.Image
    import SimpleITK  # noqa: F401 - now, not within the time of a file

    PIL.Image.init()
    _answer(out, {})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit_memory(_needed(request["size"]))
        files = [Path(file) for file in request["files"]]
        try:
            array, affine = READERS[request["kind"]](files, **request["options"])
        except (Exception, RecursionError) as error:  # libraries raise what they like
            _answer(out, {"refused": _reason(error)})
            continue
        order = "F" if array.flags.f_contiguous else "C"
        head = {"dtype": array.dtype.str, "shape": array.shape, "order": order}
        flat = np.ravel(array, order="K" if array.flags.forc else "C")
        _answer(out, {**head, "affine": affine.tolist(), "bytes": flat.nbytes}, flat)


def _answer(out: Any, head: dict[str, Any], content: Any = b"") -> None:
    out.write(json.dumps(head).encode() + b"\n")
    out.write(memoryview(content).cast("B"))
    out.flush()


def _limit_memory(more: int) -> None:
    """Let this process have some memory beside what it has, at most 80 % of the computer's.

    0 is as much as that. A system that does not tell what a process has sets no limit.
    """
    with suppress(ImportError, ValueError, OSError, AttributeError):
        import resource

        most = int(0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        has = pages * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (min(has + more if more else most, most), hard))


def _needed(size: int, pixels: int = 0) -> int:
    """Bytes that files of so many may take, whose pixels take so many."""
    return min(_ANY + _OF_FILE * size + pixels, _MOST + _MOST_OF_FILE * size)


def _reason(error: BaseException) -> str:
    """Why a file is refused."""
    if isinstance(error, InputError):
        return str(error)
    return f"must be a scalar image that can be read, got {reader_reason(error)}"


def read_itk(files: Sequence[Path]) -> _Image:
    """Image of one file that ITK reads, (C, X, Y, Z) or (C, X, Y), and its affine.

    Raises:
        InputError: for complex numbers, and a header that asks for more voxels than its file, or
            those in its folder where they lie in others, can hold.
        Exception: of ITK.
    """
    import SimpleITK as sitk  # noqa: N813 - its documentation's name

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(files[0]))
    reader.ReadImageInformation()
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise InputError("must be a scalar image, got complex numbers")
    _expect(reader, files)
    return _from_itk(reader.Execute())


def read_series(files: Sequence[Path], exact: bool = False) -> _Image:
    """Volume (1, X, Y, Z) of slices in their order, and ITK's affine of it.

    Args:
        files: of the slices.
        exact: as float64: slopes and intercepts differ by slice, and the first one's type does not
            hold the others' values.

    Raises:
        InputError: where a slice cannot be read.
    """
    import SimpleITK as sitk  # noqa: N813

    if len(files) == 1:  # of several frames, perhaps
        return read_itk(files)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    if exact:
        reader.SetOutputPixelType(sitk.sitkFloat64)
    try:
        first = sitk.ImageFileReader()
        first.SetFileName(str(files[0]))
        first.ReadImageInformation()
        _expect(first, files)
        return _from_itk(reader.Execute())
    except RuntimeError:
        for file in files:
            _check_slice(file)
        raise


def _check_slice(file: Path) -> None:
    """Refuse a slice that cannot be read, by its name."""
    import SimpleITK as sitk  # noqa: N813

    try:
        sitk.ReadImage(str(file))
    except RuntimeError as error:
        raise InputError(f"{file.name} cannot be read") from error


def _expect(reader: Any, files: Sequence[Path]) -> None:
    """Have the memory for an image that a header tells of; refuse more than its files can hold.

    Args:
        reader: of the header of the first file.
        files: of one image, each with as many pixels.
    """
    from SimpleITK import GetPixelIDValueAsString

    words = GetPixelIDValueAsString(reader.GetPixelID()).split()
    bits = next((int(word.split("-")[0]) for word in words if "-bit" in word), 8)
    wanted = math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * bits // 8 * len(files)
    beside = files[0].suffix.lower() in _BESIDE
    held = [path for path in files[0].parent.iterdir() if path.is_file()] if beside else files
    size = sum(path.stat().st_size for path in held)
    can = max(_DEFLATED * size, 0 if beside else _FEW)
    if wanted > can:
        raise InputError(
            f"must be a scalar image, got a header that asks for {wanted} bytes, could the file be"
            f" damaged: it can hold {can}"
        )
    _limit_memory(_needed(size, _OF_PIXELS * wanted))


def _from_itk(image: Any) -> _Image:
    """Channels first, axes as ITK counts them, and an affine out of ITK's coordinates."""
    import SimpleITK as sitk  # noqa: N813

    array = sitk.GetArrayFromImage(image)
    channels = array.shape[-1] if image.GetNumberOfComponentsPerPixel() > 1 else 0
    array = np.moveaxis(array, -1, 0) if channels else array[None]
    array = array.transpose(0, *range(array.ndim - 1, 0, -1))
    d = image.GetDimension()
    n = min(d, 3)
    if d == 4:  # a series, of one volume perhaps
        array = array[..., 0] if array.shape[-1] == 1 else array[0].transpose(3, 0, 1, 2)
    direction = np.array(image.GetDirection()).reshape(d, d)[:n, :n]
    affine = np.eye(n + 1)
    affine[:n, :n] = direction * image.GetSpacing()[:n]
    affine[:n, n] = image.GetOrigin()[:n]
    affine[:n] *= np.array(_OUT_OF_LPS[:n])[:, None]
    return array, affine


def read_picture(files: Sequence[Path], label: bool = False) -> _Image:
    """Picture (1, W, H), or (3, W, H) in colour, as viewers show it, and its affine, in pixels.

    Equal colour channels are one. The values are those of the file, 0 and 255 of one bit. Pixels
    that are not square by the file's resolution are as long in the affine as they are of their
    width.

    Args:
        files: one.
        label: a mask: a palette's values are labels, no colours.

    Raises:
        InputError: for several pages, and pixels that are transparent.
    """
    from PIL import Image, ImageOps

    with Image.open(files[0]) as image:
        pages = getattr(image, "n_frames", 1)
        if pages > 1:
            raise InputError(f"must be one picture, got {pages} pages")
        if getattr(getattr(image, "tag_v2", None), "next", 0):
            raise InputError("the list of its pages must end, it leads back to itself")
        size = files[0].stat().st_size
        _limit_memory(_needed(size, _OF_PICTURE * math.prod(image.size)))
        dpi = image.info.get("dpi", (1, 1))
        turned = ImageOps.exif_transpose(image)
        dpi = dpi if turned.size == image.size else dpi[::-1]
        array = np.asarray(_plain(turned, label))
    colours = [*np.moveaxis(array, -1, 0)] if array.ndim == 3 else [array]
    alpha = colours.pop() if len(colours) in (2, 4) else None
    if alpha is not None and not (alpha == alpha.max()).all():
        raise InputError("must be opaque, got a picture with transparent pixels")
    if all(np.array_equal(colours[0], other) for other in colours[1:]):
        del colours[1:]
    array = np.stack(colours)
    return array.transpose(0, 2, 1), np.diag([*_pixel(dpi), 1.0])


def _plain(image: Any, label: bool) -> Any:
    """The image in a mode of grey values or of red, green and blue, with alpha or without."""
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "PA"):
        clear = image.mode == "PA" or "transparency" in image.info
        return image if label else image.convert("RGBA" if clear else "RGB")
    known = ("L", "LA", "RGB", "RGBA", "F")
    return image if image.mode in known or image.mode[0] == "I" else image.convert("RGB")


def _pixel(dpi: Sequence[Any]) -> tuple[float, float]:
    """Width and height of a pixel by its resolution, the smaller one 1."""
    with suppress(ValueError, TypeError, ZeroDivisionError):
        across, down = (float(n) for n in dpi)
        ratio = across / down
        if math.isfinite(ratio) and ratio > 0 and not 1 / _SQUARE <= ratio <= _SQUARE:
            return (1.0, ratio) if ratio > 1 else (1 / ratio, 1.0)
    return 1.0, 1.0


READERS: dict[str, Callable[..., _Image]] = {
    "itk": read_itk,
    "picture": read_picture,
    "series": read_series,
}
