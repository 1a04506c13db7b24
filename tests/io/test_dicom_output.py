"""DICOM results lie on the series that they were made from: frames, positions, references."""

import re

import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch
from monai.data import MetaTensor
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from workflows import run_bundle

from monai_dpmm import InputError, LoadVolume, SaveDicomd, SaveResultsd, dicom_sources
from monai_dpmm.io import dicom_output
from monai_dpmm.io.dicom_fields import without_details
from monai_dpmm.io.dicom_output import parametric_map, segmentation, series_slices

ROW, COLUMN = np.array([0.8, 0.36, 0.48]), np.array([-0.6, 0.48, 0.64])
STEP = 3.5 * np.cross(ROW, COLUMN)
ORIGIN = np.array([-40.0, 25.5, 110.25])
SPACING = (0.75, 1.25)  # between rows, between columns
ROWS, COLUMNS, SLICES = 14, 20, 12
FLIP = np.diag([-1, -1, 1, 1])  # Left, Posterior, Superior to Right, Anterior, Superior


def _header(number, step, shared):
    """Header of one CT slice."""
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = CTImageStorage
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.update(shared)
    header.Modality, header.PatientID, header.PatientName = "CT", "p1", "A^B"
    header.PatientBirthDate = header.PatientSex = header.AccessionNumber = header.StudyID = ""
    header.StudyDate, header.StudyTime, header.ReferringPhysicianName = "20200101", "120000", ""
    header.SeriesNumber, header.InstanceNumber = 4, number + 1
    header.Rows, header.Columns, header.PixelSpacing = ROWS, COLUMNS, list(SPACING)
    header.SliceThickness, header.RescaleSlope, header.RescaleIntercept = 3.5, 1, 0
    header.ImageOrientationPatient = [*ROW, *COLUMN]
    header.ImagePositionPatient = [float(f"{x:.6f}") for x in ORIGIN + number * step]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 1
    return header


def _series(folder, step=STEP, **changed):
    """A series of 12 oblique slices, file names in no order: (Z, rows, columns)."""
    voxels = np.random.default_rng(0).integers(-200, 900, (SLICES, ROWS, COLUMNS)).astype(np.int16)
    names = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    shared = pydicom.Dataset()
    for name in names:
        setattr(shared, name, generate_uid())
    folder.mkdir(parents=True)
    for number, file in enumerate(np.random.default_rng(1).permutation(SLICES)):
        header = _header(number, step, shared)
        header.PixelData = voxels[number].tobytes()
        for name, value in changed.items():
            setattr(header, name, value) if value is not None else delattr(header, name)
        header.save_as(folder / f"{file:02d}.dcm", enforce_file_format=True)
    return voxels


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicom") / "series"
    return folder, _series(folder)


def _written(dataset, path):
    dataset.save_as(path)
    return path


def _results(folder, tmp_path):
    """Scores and mask on a series' grid, and both as they are read back."""
    scan = LoadVolume()(folder)
    anomaly = scan / 900
    mask = (anomaly > 0.5).to(torch.uint8)
    slices = series_slices(folder)
    seg = hd.seg.segread(_written(segmentation(mask, slices), tmp_path / "seg.dcm"))
    scores = hd.imread(_written(parametric_map(anomaly, slices), tmp_path / "map.dcm"))
    return anomaly, mask, seg, scores


def _agree(read, volume):
    """Every voxel that was read has the value of the volume at the same place in the world."""
    assert read.array.shape == tuple(volume.shape[:0:-1])
    voxels = np.indices(read.array.shape).reshape(3, -1)
    homogeneous = np.concatenate([voxels, np.ones((1, voxels.shape[1]))])
    there = np.linalg.inv(volume.affine.numpy()) @ FLIP @ read.affine @ homogeneous
    index = there[:3].round().astype(int)
    np.testing.assert_allclose(there[:3], index, atol=1e-3)
    assert len(np.unique(index, axis=1).T) == read.array.size
    expected = volume.numpy()[0][tuple(index)]
    np.testing.assert_array_equal(read.array.ravel(), expected)


def _refers(dataset, headers):
    """Frame by frame, the position is that of the source slice that the frame refers to."""
    assert dataset.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
    assert dataset.StudyInstanceUID == headers[0].StudyInstanceUID
    assert dataset.SeriesInstanceUID != headers[0].SeriesInstanceUID
    source = {header.SOPInstanceUID: header for header in headers}
    referenced = []
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        referenced.append(image.ReferencedSOPInstanceUID)
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        expected = source[image.ReferencedSOPInstanceUID].ImagePositionPatient
        assert list(position) == list(expected)
    assert sorted(referenced) == sorted(source)


def test_slices_are_in_the_order_of_their_positions(series):
    positions = np.array([header.ImagePositionPatient for header in series_slices(series[0])])
    np.testing.assert_allclose(positions, ORIGIN + np.arange(SLICES)[:, None] * STEP, atol=1e-5)


def test_an_oblique_series_is_read_back_in_world_space(series, tmp_path):
    anomaly, mask, seg, scores = _results(series[0], tmp_path)
    assert 0 < mask.sum() < mask.numel() / 2
    _agree(seg.get_volume(combine_segments=True), mask)
    _agree(scores.get_volume(dtype=np.float32), anomaly)
    for dataset in (seg, scores):
        _refers(dataset, series_slices(series[0]))
        assert dataset.PatientID == "p1"
        assert dataset.SeriesNumber in (401, 402)


def test_frames_hold_what_the_source_slices_show(series, tmp_path):
    folder, voxels = series
    _, _, seg, _ = _results(folder, tmp_path)
    uids = [header.SOPInstanceUID for header in series_slices(folder)]
    mask = seg.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(mask, (voxels / np.float32(900)) > 0.5)
    scores = pydicom.dcmread(tmp_path / "map.dcm")
    groups = scores.PerFrameFunctionalGroupsSequence
    for frame, group in zip(scores.pixel_array, groups, strict=True):
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        number = uids.index(image.ReferencedSOPInstanceUID)
        np.testing.assert_allclose(frame, voxels[number] / 900, rtol=1e-6, atol=1e-9)


def test_the_segment_says_what_and_who(series, tmp_path):
    _, _, seg, scores = _results(series[0], tmp_path)
    (description,) = seg.SegmentSequence
    assert description.SegmentLabel == "Anomaly"
    assert description.SegmentAlgorithmType == "AUTOMATIC"
    assert description.SegmentAlgorithmName == "monai_dpmm"
    assert (seg.Modality, scores.SOPClassUID.name) == ("SEG", "Parametric Map Storage")
    assert "FloatPixelData" in scores


def test_an_empty_mask_has_a_frame_for_each_slice(series, tmp_path):
    scan = LoadVolume()(series[0])
    path = tmp_path / "seg.dcm"
    _written(segmentation(torch.zeros_like(scan), series_slices(series[0])), path)
    seg = hd.seg.segread(path)
    assert seg.NumberOfFrames == SLICES
    assert not seg.get_volume(combine_segments=True).array.any()


@pytest.mark.slow
def test_the_real_series_is_read_back_in_world_space(real_data, tmp_path):
    folder = real_data / "dicom"
    anomaly, mask, seg, scores = _results(folder, tmp_path)
    _agree(seg.get_volume(combine_segments=True), mask)
    _agree(scores.get_volume(dtype=np.float32), anomaly)
    assert len(seg.PerFrameFunctionalGroupsSequence) == 3
    for dataset in (seg, scores):
        _refers(dataset, series_slices(folder))


def test_a_missing_frame_of_reference_is_always_the_same(tmp_path):
    _series(tmp_path / "a", FrameOfReferenceUID=None)
    one, other = series_slices(tmp_path / "a")[::11], series_slices(tmp_path / "a")[:1]
    assert len({header.FrameOfReferenceUID for header in (*one, *other)}) == 1


def test_a_tilted_gantry_keeps_the_position_of_each_slice(tmp_path):
    step = STEP + 0.9 * COLUMN
    voxels = _series(tmp_path / "a", step)
    slices = series_slices(tmp_path / "a")
    straightened = np.eye(4)
    straightened[:3] = np.column_stack([ROW * SPACING[1], COLUMN * SPACING[0], STEP, ORIGIN])
    scan = MetaTensor(
        torch.from_numpy(voxels.transpose(2, 1, 0).astype(np.float32))[None],
        affine=torch.from_numpy(FLIP @ straightened),
    )
    dataset = segmentation((scan > 450).to(torch.uint8), slices)
    _refers(dataset, slices)
    seg = hd.seg.segread(_written(dataset, tmp_path / "seg.dcm"))
    uids = [header.SOPInstanceUID for header in slices]
    mask = seg.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(mask, voxels > 450)


def test_a_volume_on_another_grid_is_refused(series):
    scan, slices = LoadVolume()(series[0]), series_slices(series[0])
    with pytest.raises(
        InputError, match=r"must lie on the grid .*\(20, 14, 12\), got \(20, 14, 9\)"
    ):
        segmentation(scan[..., :9], slices)
    scan.affine[0, 3] += 1
    with pytest.raises(InputError, match=r"must lie on the grid of its DICOM series, .* elsewhere"):
        parametric_map(scan, slices)


def test_what_is_no_series_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/readme.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"empty: must be a DICOM series, there is no DICOM file"):
        series_slices(tmp_path / "empty")
    with pytest.raises(InputError, match=r"scan.nii.gz: must be a folder with a DICOM series"):
        series_slices(tmp_path / "scan.nii.gz")
    _series(tmp_path / "frames", NumberOfFrames=2)
    with pytest.raises(
        InputError, match=r"must hold one slice a file for dicom_output, 00.dcm has"
    ):
        series_slices(tmp_path / "frames/00.dcm")
    _series(tmp_path / "nowhere", ImagePositionPatient=None)
    with pytest.raises(InputError, match=r"00.dcm lacks ImagePositionPatient"):
        series_slices(tmp_path / "nowhere/00.dcm")


def test_sources_are_checked_before_anything_is_computed(series, tmp_path):
    items = [{"image": str(series[0])}, {"image": str(tmp_path / "scan.nii.gz")}]
    assert dicom_sources(items, False) == items
    assert dicom_sources(items[:1], True) == items[:1]
    with pytest.raises(InputError, match=r"scan.nii.gz: must be a folder with a DICOM series"):
        dicom_sources(items, True)


def test_without_highdicom_the_reason_is_named(monkeypatch):
    monkeypatch.setattr(dicom_output, "find_spec", lambda name: None)
    message = re.escape("dicom_output needs highdicom, which is not installed: pip install")
    with pytest.raises(ImportError, match=message):
        SaveResultsd("out", dicom=True)
    with pytest.raises(ImportError, match=message):
        dicom_sources([], True)
    assert dicom_sources([], False) == []


def test_dicom_alone_is_written_beside_volumes_for_one_more_version(series, tmp_path):
    scan = LoadVolume()(series[0])
    with pytest.deprecated_call(match="SaveResultsd writes DICOM"):
        save = SaveDicomd()
    save({"pred_mask": scan, "pred_anomaly": scan})
    assert list(tmp_path.iterdir()) == []  # nothing was saved that it could lie beside
    results = {f"pred_{kind}": scan.clone() for kind in ("mask", "anomaly")}
    for kind in ("mask", "anomaly"):
        results[f"pred_{kind}"].meta["saved_to"] = str(tmp_path / f"ct_{kind}.nii.gz")
    save(results)
    assert {path.name for path in tmp_path.iterdir()} == {"ct_mask.dcm", "ct_anomaly.dcm"}


PERSONAL = {  # that DICOM results carry of a series, or leave out; none can be part of a new UID
    "PatientAge": "042Y",
    "PatientWeight": "70.5",
    "AdditionalPatientHistory": "a history",
    "Allergies": "an allergy",
    "Occupation": "a trade",
    "PatientComments": "a comment",
    "StudyDescription": "a study",
    "ReferringPhysicianName": "Physician^A",
    "PhysiciansOfRecord": "Physician^B",
    "InstitutionName": "a hospital",
    "Manufacturer": "a maker",
    "StationName": "a station",
    "DeviceSerialNumber": "serial 4711",
    "ClinicalTrialProtocolID": "a trial",
}


@pytest.mark.parametrize("minimal", [False, True])
def test_what_results_carry_of_a_patient_can_be_left_out(tmp_path, minimal):
    folder = tmp_path / "series"
    _series(folder)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        for name, value in PERSONAL.items():
            setattr(dataset, name, value)
        dataset.AccessionNumber = "A17"
        dataset.save_as(path)
    scan, slices = LoadVolume()(folder), series_slices(folder)
    slices = without_details(slices) if minimal else slices
    for made in (segmentation(scan > scan.median(), slices), parametric_map(scan, slices)):
        text = str(made)
        found = {name for name, value in PERSONAL.items() if value in text}
        assert found == (set() if minimal else set(PERSONAL))
        assert (made.PatientID, made.AccessionNumber) == ("p1", "A17")
        assert made.StudyInstanceUID == slices[0].StudyInstanceUID


@pytest.mark.slow
def test_inference_on_a_series_writes_dicom(trained, tmp_path):
    _series(tmp_path / "scans/ct")
    settings = {"ckpt_dir": trained / "models", "output_dir": tmp_path / "out"}
    run_bundle(
        "run",
        ["inference", str(trained / "models/model.json")],
        dataset_dir=tmp_path / "scans",
        dicom_output=True,
        output_ext=".mha",
        **settings,
    )
    volumes = {f"ct_{kind}.mha" for kind in ("anomaly", "component", "mask")}
    written = {file.name for file in (tmp_path / "out/ct").iterdir()}
    assert written == volumes | {"ct_findings.json", "ct_mask.dcm", "ct_anomaly.dcm"}
    load = LoadVolume()
    scores = hd.imread(tmp_path / "out/ct/ct_anomaly.dcm")
    _agree(scores.get_volume(dtype=np.float32), load(tmp_path / "out/ct/ct_anomaly.mha"))
    _refers(scores, series_slices(tmp_path / "scans/ct"))
