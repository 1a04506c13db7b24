"""What DICOM results need not carry of the series that they refer to."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

__all__ = ["without_details"]

# what files a result with its patient and study, what places its frames in the world, and how text
# is written; archives ask for no more
_NEEDED = {
    *("SpecificCharacterSet", "PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber"),
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber"),
    *("Modality", "FrameOfReferenceUID", "PositionReferenceIndicator", "Rows", "Columns"),
    *("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
}


def without_details(headers: Sequence[Any]) -> list[Any]:
    """Headers of a series with only what identifies patient and study, and the grid.

    Left out are, among others, physicians, institution, department, station and device with their
    serial numbers, study and protocol descriptions, age, size, weight, history, allergies,
    pregnancy, occupation, comments and clinical trials. The referring physician, whom a result must
    name, is unknown.
    """
    kept = []
    for header in headers:
        one = copy.copy(header)
        for element in list(header):
            if element.keyword not in _NEEDED:
                del one[element.tag]
        one.ReferringPhysicianName = ""
        kept.append(one)
    return kept
