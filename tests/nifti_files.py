"""NIfTI files whose headers are as programs leave them, which no library would write."""

import gzip

import nibabel as nib
import numpy as np

SHAPE = (9, 8, 7)
UNITS = {"unknown": 0, "metre": 1, "mm": 2, "micron": 3}
MM = {"metre": 1000.0, "micron": 0.001}
KINDS = (
    *("sform", "sform_sheared", "sform_scaled", "pixdim_rounded", "pixdim_1", "pixdim_0"),
    *("qform", "qform_qfac_0", "qform_qfac_-1", "qform_negative", "agree", "differ"),
    *("differ_mirrored", "neither", "neither_negative"),
)


def turn(rng):
    """A proper rotation, (3, 3)."""
    matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return matrix * np.sign(np.linalg.det(matrix))


def grid_header(kind, seed, *, nifti2=False, units="mm"):
    """A NIfTI header of a grid drawn at random, of one of the KINDS."""
    rng = np.random.default_rng(seed)
    header = (nib.Nifti2Header if nifti2 else nib.Nifti1Header)()
    header.set_data_dtype(np.int16)
    sizes, origin = rng.uniform(0.4, 6, 3), rng.uniform(-120, 120, 3)
    flips = rng.choice([-1, 1], 3)
    sform = nib.affines.from_matvec(turn(rng) * sizes * flips, origin)
    if kind == "sform_sheared":
        sform[:3, 2] += 0.3 * sform[:3, 1]
    stated = sizes.copy()
    if kind == "sform_scaled":
        stated *= 1.1
    elif kind == "pixdim_rounded":
        stated *= [1, 1, 1.001]
    elif kind == "pixdim_1":
        stated[:] = 1
    elif kind == "pixdim_0":
        stated[2] = 0
    header["pixdim"][:5] = [1, *stated, 1]
    if kind.startswith(("sform", "pixdim", "agree", "differ")):
        header["sform_code"] = rng.integers(1, 5)
        for name, row in zip(("srow_x", "srow_y", "srow_z"), sform, strict=False):
            header[name] = row
    if kind.startswith(("qform", "agree", "differ")):
        other = nib.affines.from_matvec(turn(rng) * sizes, rng.uniform(-120, 120, 3))
        if kind == "differ_mirrored":
            other = np.diag([-1, -1, 1, 1]) @ sform
        header.set_qform(sform if kind == "agree" else other, int(rng.integers(1, 3)))
        header["pixdim"][0] *= -1 if kind == "qform_qfac_-1" else 1
        header["pixdim"][0] *= 0 if kind == "qform_qfac_0" else 1
    if kind.endswith("negative"):
        header["pixdim"][1:4] *= rng.choice([-1, 1], 3)
    header["xyzt_units"] = UNITS[units] + 8  # the time's in seconds
    scale = 1 / MM.get(units, 1)
    for name in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
        header[name] = header[name] * scale
    header["pixdim"][1:4] *= scale
    return header


def write_nifti(path, header, array, byteorder="<"):
    """A file of a header, as it is, and voxels."""
    header = header.as_byteswapped(byteorder)
    header.set_data_dtype(array.dtype.newbyteorder(byteorder))
    header.set_data_shape(array.shape)
    new = isinstance(header, nib.Nifti2Header)
    header["vox_offset"] = 544 if new else 352
    header["magic"] = header["magic"] if new else b"n+1"
    voxels = array.astype(array.dtype.newbyteorder(byteorder)).tobytes("F")
    content = header.binaryblock + b"\0\0\0\0" + voxels
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path
