"""Writing phantom scans as DICOM: classic MR Image Storage, one file per slice."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrmill.phantom.acquire import LPS_TO_RAS, Acquisition, Scan
from mrmill.phantom.vendors import Vendor

if TYPE_CHECKING:
    from pydicom import Dataset

CANARY_PRIVATE_GROUP = 0x0051
GE_PRIVATE = (0x0019, "GEMS_ACQU_01", 0x9C)  # where GE keeps the name of the pulse sequence
INSTITUTION = {
    "InstitutionName": "CANARY-HOSPITAL",
    "InstitutionAddress": "1 CANARY-STREET, CANARYTOWN",
    "InstitutionalDepartmentName": "CANARY-RADIOLOGY",
    "StationName": "CANARY-STATION",
    "DeviceSerialNumber": "CANARYSERIAL01",
    "OperatorsName": "CANARY^OPERATOR",
    "PerformingPhysicianName": "CANARY^PERFORMER",
    "ReferringPhysicianName": "CANARY^REFERRER",
    "RequestingPhysician": "CANARY^REQUESTER",
    "PatientAddress": "2 CANARY-STREET, CANARYTOWN",
    "PatientTelephoneNumbers": "CANARYPHONE01",
    "PatientComments": "CANARY patient comment",
    "ImageComments": "CANARY image comment",
    "StudyDescription": "MR HEAD CANARY-STUDY",
    "RequestedProcedureDescription": "CANARY-PROCEDURE",
}


@dataclass(frozen=True)
class Identity:
    """Whom and when: the fake names and dates of one study.

    Attributes
    ----------
    patient_id, patient_name, birth_date, sex : str
        As in DICOM; dates are YYYYMMDD.
    age_years : int
        Age at the study.
    study_uid, frame_uid : str
        StudyInstanceUID, FrameOfReferenceUID.
    study_date, study_time, accession, study_id : str
        As in DICOM.
    """

    patient_id: str
    patient_name: str
    birth_date: str
    sex: str
    age_years: int
    study_uid: str
    frame_uid: str
    study_date: str
    study_time: str
    accession: str
    study_id: str


@dataclass(frozen=True)
class SeriesLabel:
    """What identifies one series in its study.

    Attributes
    ----------
    uid : str
        SeriesInstanceUID.
    number : int
        SeriesNumber.
    time : str
        SeriesTime, HHMMSS.
    """

    uid: str
    number: int
    time: str


def stable_uid(*parts: object) -> str:
    """Valid DICOM UID that depends on nothing but `parts`."""
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=["mrmill-phantom", *map(str, parts)]))


def series_description(vendor: Vendor, acquisition: Acquisition) -> str:
    """SeriesDescription in the vendor's words."""
    name = vendor.sequences[acquisition.sequence].description
    if acquisition.role == "derived":
        name = f"MPR {name}"
    plane = "obl" if max(np.abs(acquisition.tilt_deg)) >= 30 else acquisition.plane
    return name.format(plane=vendor.planes[plane])


def write_series(
    folder: Path,
    stacks: Sequence[tuple[Acquisition, Scan]],
    vendor: Vendor,
    identity: Identity,
    label: SeriesLabel,
) -> list[Path]:
    """Write one series.

    Parameters
    ----------
    folder : Path
        Made if absent; files in it are `IM00001.dcm` and on.
    stacks : sequence of (Acquisition, Scan)
        One, or several where a series holds slices in several planes (localizer).
    vendor, identity, label
        Scanner, patient and study, series.

    Returns
    -------
    paths : list of Path
        Files written, in the order of InstanceNumber.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for acquisition, scan in stacks:
        header = _series_header(acquisition, vendor, identity, label)
        for position, cosines, pixels in _slices(scan):
            number = len(paths) + 1
            _set_slice(header, acquisition, label, number, position, cosines, pixels)
            path = folder / f"IM{number:05d}.dcm"
            header.save_as(path, enforce_file_format=True)
            paths.append(path)
    return paths


def _slices(scan: Scan) -> Iterable[tuple[NDArray, NDArray, NDArray[np.uint16]]]:
    """Position (LPS, mm), row and column cosines (6,), pixels (rows, columns) of each slice."""
    to_lps = LPS_TO_RAS @ scan.affine[:3]
    cosines = to_lps[:, :2] / np.linalg.norm(to_lps[:, :2], axis=0)
    for k in range(scan.voxels.shape[2]):
        yield to_lps[:, 3] + k * to_lps[:, 2], cosines.T.ravel(), scan.voxels[:, :, k].T


def _series_header(
    acquisition: Acquisition, vendor: Vendor, identity: Identity, label: SeriesLabel
) -> "Dataset":
    """Everything that the slices of a stack have in common."""
    from pydicom.dataset import Dataset
    from pydicom.uid import MRImageStorage

    header = Dataset()
    header.file_meta = _file_meta()
    sequence = vendor.sequences[acquisition.sequence]
    description = series_description(vendor, acquisition)
    fields = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": vendor.image_type[acquisition.role],
        "SOPClassUID": MRImageStorage,
        "Modality": "MR",
        "Manufacturer": vendor.manufacturer,
        "ManufacturerModelName": vendor.model,
        "SoftwareVersions": "phantom 1",
        "MagneticFieldStrength": vendor.field_t,
        **INSTITUTION,
        **_identity_fields(identity, label),
        "SeriesInstanceUID": label.uid,
        "SeriesNumber": label.number,
        "SeriesDescription": description,
        "ProtocolName": description,
        "BodyPartExamined": "HEAD",
        "PatientPosition": "HFS",
        "ScanningSequence": sequence.scanning,
        "SequenceVariant": sequence.variant,
        "ScanOptions": sequence.options,
        "MRAcquisitionType": "3D" if acquisition.volumetric else "2D",
        "AngioFlag": "Y" if acquisition.modality == "MRA" else "N",
        **_timing_fields(acquisition),
        **_geometry_fields(acquisition),
    }
    for keyword, value in fields.items():
        setattr(header, keyword, value)
    if vendor.manufacturer.startswith("GE"):
        group, creator, element = GE_PRIVATE
        header.private_block(group, creator, create=True).add_new(element, "LO", sequence.name)
    elif sequence.name:
        header.SequenceName = sequence.name
    block = header.private_block(CANARY_PRIVATE_GROUP, "CANARY PRIVATE", create=True)
    block.add_new(0x01, "LO", f"CANARYPRIVATE {identity.patient_name}")
    return header


def _file_meta() -> "Dataset":
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = stable_uid("implementation")
    meta.ImplementationVersionName = "MRMILL_PHANTOM"
    return meta


def _identity_fields(identity: Identity, label: SeriesLabel) -> dict[str, object]:
    return {
        "PatientName": identity.patient_name,
        "PatientID": identity.patient_id,
        "PatientBirthDate": identity.birth_date,
        "PatientSex": identity.sex,
        "PatientAge": f"{identity.age_years:03d}Y",
        "PatientWeight": 70,
        "StudyInstanceUID": identity.study_uid,
        "FrameOfReferenceUID": identity.frame_uid,
        "StudyID": identity.study_id,
        "AccessionNumber": identity.accession,
        "StudyDate": identity.study_date,
        "StudyTime": identity.study_time,
        "SeriesDate": identity.study_date,
        "SeriesTime": label.time,
        "AcquisitionDate": identity.study_date,
        "AcquisitionTime": label.time,
        "ContentDate": identity.study_date,
        "ContentTime": label.time,
    }


def _timing_fields(acquisition: Acquisition) -> dict[str, object]:
    fields = {
        "EchoTime": acquisition.te_ms,
        "RepetitionTime": acquisition.tr_ms,
        "FlipAngle": acquisition.flip_deg,
        "EchoTrainLength": acquisition.echo_train,
        "EchoNumbers": 1,
        "NumberOfAverages": 1,
        "ImagedNucleus": "1H",
    }
    if acquisition.ti_ms:
        fields["InversionTime"] = acquisition.ti_ms
    if acquisition.modality == "DWI":
        fields["DiffusionBValue"] = 1000.0
    return fields


def _geometry_fields(acquisition: Acquisition) -> dict[str, object]:
    return {
        "Rows": acquisition.rows,
        "Columns": acquisition.columns,
        "PixelSpacing": [acquisition.pixel_mm, acquisition.pixel_mm],
        "SliceThickness": acquisition.thickness_mm,
        "SpacingBetweenSlices": acquisition.spacing_mm[2],
        "AcquisitionMatrix": [acquisition.columns, 0, 0, acquisition.rows],
        "InPlanePhaseEncodingDirection": "ROW",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
    }


def _set_slice(
    header: "Dataset",
    acquisition: Acquisition,
    label: SeriesLabel,
    number: int,
    position: NDArray,
    cosines: NDArray,
    pixels: NDArray[np.uint16],
) -> None:
    """Fill in what differs from slice to slice."""
    uid = stable_uid(label.uid, number)
    header.file_meta.MediaStorageSOPInstanceUID = uid
    header.SOPInstanceUID = uid
    header.InstanceNumber = number
    header.AcquisitionNumber = 1
    header.AcquisitionTime = f"{label.time}.{2500 * number:06d}"
    header.ImagePositionPatient = [f"{value:.9g}" for value in position]
    header.ImageOrientationPatient = [f"{value:.9g}" for value in cosines]
    normal = np.cross(cosines[:3], cosines[3:])
    header.SliceLocation = f"{normal @ position:.9g}"
    header.WindowCenter = 400
    header.WindowWidth = 800
    header.PixelData = pixels.astype("<u2").tobytes()
