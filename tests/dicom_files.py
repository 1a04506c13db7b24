"""DICOM series as scanners write them, made by pydicom."""

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)


def write_series(folder, volume, *, spacing=(1.0, 1.0, 2.0), directions=OBLIQUE, series=None):
    """Slices (columns, rows, S) of a volume as files, in an order that is not that of the slices.

    Returns the voxel-to-world matrix in DICOM's coordinates (towards Left, Posterior, Superior).
    """
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.array(directions[:3]), np.array(directions[3:])
    normal = np.cross(row, column)
    origin = np.array([-30.0, 12.5, 40.0])
    uids = {"study": generate_uid(), "series": series or generate_uid(), "frame": generate_uid()}
    for number in range(volume.shape[2]):
        position = origin + number * spacing[2] * normal
        dataset = _slice(volume[:, :, number].T, spacing, directions, position, number, uids)
        dataset.save_as(folder / f"{(7 * number + 3) % 1000:03}.dcm", enforce_file_format=True)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * spacing[0], column * spacing[1], normal * spacing[2]], 1)
    affine[:3, 3] = origin
    return affine


def _slice(pixels, spacing, directions, position, number, uids):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uids["study"], uids["series"]
    dataset.FrameOfReferenceUID, dataset.Modality = uids["frame"], "MR"
    dataset.PatientID, dataset.PatientName = "phantom", "Phantom"
    dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = ""
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20260101", "120000", "1"
    dataset.ReferringPhysicianName = dataset.PositionReferenceIndicator = ""
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number + 1
    dataset.ImagePositionPatient = [f"{x:.6f}" for x in position]
    dataset.ImageOrientationPatient = list(directions)
    dataset.PixelSpacing = [spacing[1], spacing[0]]
    dataset.SliceThickness = spacing[2]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    return dataset


def headers(folder):
    """Path and dataset of each file."""
    return [(file, pydicom.dcmread(file)) for file in sorted(folder.glob("*.dcm"))]
