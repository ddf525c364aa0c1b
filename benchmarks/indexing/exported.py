"""Synthetic DICOM files with headers as large and as varied as those of a scanner."""

from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

MR = "1.2.840.10008.5.1.4.1.1.4"
ROOT = "1.3.12.2.1107.5.2.19.45400"
SIZE = 256
SLICES = 25

#: Standard elements of an MR image, about as many as a Siemens or GE scanner writes.
TEXTS = {
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"],
    "InstanceCreationDate": "20240131",
    "InstanceCreationTime": "101112.345000",
    "StudyTime": "100000.000000",
    "SeriesTime": "101000.000000",
    "AcquisitionDate": "20240131",
    "AcquisitionTime": "101011.232500",
    "ContentDate": "20240131",
    "ContentTime": "101112.345000",
    "Manufacturer": "SIEMENS",
    "InstitutionName": "Institution",
    "InstitutionAddress": "Street 1, City, District, Country, Postal Code",
    "ReferringPhysicianName": "Referring^Physician",
    "StationName": "AWP45400",
    "StudyDescription": "Brain^Routine",
    "SeriesDescription": "t1_mprage_sag_p2_iso",
    "InstitutionalDepartmentName": "Department",
    "PerformingPhysicianName": "Performing^Physician",
    "OperatorsName": "Operator",
    "ManufacturerModelName": "Skyra",
    "PatientName": "Synthetic^Patient",
    "PatientBirthDate": "19700101",
    "PatientSex": "O",
    "PatientAge": "054Y",
    "PatientSize": "1.72",
    "PatientWeight": "72",
    "BodyPartExamined": "BRAIN",
    "ScanningSequence": ["GR", "IR"],
    "SequenceVariant": ["SK", "SP", "MP"],
    "ScanOptions": ["IR", "WE"],
    "MRAcquisitionType": "3D",
    "SequenceName": "*tfl3d1_16ns",
    "AngioFlag": "N",
    "SliceThickness": "1",
    "RepetitionTime": "2300",
    "EchoTime": "2.98",
    "InversionTime": "900",
    "NumberOfAverages": "1",
    "ImagingFrequency": "123.258738",
    "ImagedNucleus": "1H",
    "EchoNumbers": "1",
    "MagneticFieldStrength": "3",
    "SpacingBetweenSlices": "1",
    "NumberOfPhaseEncodingSteps": "255",
    "EchoTrainLength": "1",
    "PercentSampling": "100",
    "PercentPhaseFieldOfView": "100",
    "PixelBandwidth": "240",
    "DeviceSerialNumber": "45400",
    "SoftwareVersions": "syngo MR E11",
    "ProtocolName": "t1_mprage_sag_p2_iso",
    "TransmitCoilName": "Body",
    "InPlanePhaseEncodingDirection": "ROW",
    "FlipAngle": "9",
    "VariableFlipAngleFlag": "N",
    "SAR": "0.0436",
    "dBdt": "0",
    "PatientPosition": "HFS",
    "StudyID": "1",
    "AcquisitionNumber": "1",
    "ImageOrientationPatient": ["0", "1", "0", "0", "0", "-1"],
    "FrameOfReferenceUID": f"{ROOT}.1.2024.0.0.0",
    "PositionReferenceIndicator": "",
    "PhotometricInterpretation": "MONOCHROME2",
    "PixelSpacing": ["1", "1"],
    "WindowCenter": "400",
    "WindowWidth": "800",
    "WindowCenterWidthExplanation": "Algo1",
    "RequestingPhysician": "Requesting^Physician",
    "RequestedProcedureDescription": "Brain MRI with and without contrast",
    "PerformedProcedureStepID": "MR20240131100000",
}
NUMBERS = {
    "SamplesPerPixel": 1,
    "Rows": SIZE,
    "Columns": SIZE,
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
    "SmallestImagePixelValue": 0,
    "LargestImagePixelValue": 1023,
}

#: Private groups, their creators, and how many elements each holds.
PRIVATE = {
    0x0009: ("SYNTHETIC IDENT 01", 8),
    0x0019: ("SYNTHETIC MR HEADER", 22),
    0x0021: ("SYNTHETIC MR SDS 01", 18),
    0x0051: ("SYNTHETIC MR HEADER", 14),
}
CSA_BYTES = 12_000


def write_export(folder: Path, n_files: int) -> None:
    """Write a synthetic export, one folder per series of `SLICES` files.

    Half of the series have implicit VRs; all have sequences of undefined length.
    """
    for number in range(n_files):
        series, instance = divmod(number, SLICES)
        if instance == 0:
            syntax = ImplicitVRLittleEndian if series % 2 else ExplicitVRLittleEndian
            dataset = _series(series, syntax)
            (folder / f"{series:05d}").mkdir(parents=True)
        uid = f"{ROOT}.{series}.{instance}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
        dataset.InstanceNumber = instance + 1
        dataset.ImagePositionPatient = ["-120", "-120", str(instance)]
        dataset.SliceLocation = str(instance)
        path = folder / f"{series:05d}" / f"{instance:05d}.dcm"
        dataset.save_as(path, enforce_file_format=True)


def _series(number: int, syntax: str) -> Dataset:
    """Return what the files of one series have in common."""
    dataset = Dataset()
    for keyword, value in {**TEXTS, **NUMBERS}.items():
        setattr(dataset, keyword, value)
    study = number // 10
    dataset.SOPClassUID = MR
    dataset.Modality = "MR"
    dataset.StudyDate = dataset.SeriesDate = "20240131"
    dataset.AccessionNumber, dataset.PatientID = f"A{study}", f"P{study}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{ROOT}.{study}", f"{ROOT}.{number}.0"
    dataset.SeriesNumber = number % 10 + 1
    dataset.ProcedureCodeSequence = Sequence([_code("MRHEAD")])
    dataset.ReferencedImageSequence = Sequence([_reference(i) for i in range(3)])
    dataset.RequestAttributesSequence = Sequence([_code("RPID")])
    for sequence in ("ProcedureCodeSequence", "ReferencedImageSequence"):
        dataset[sequence].is_undefined_length = True
    for group, (creator, n_elements) in PRIVATE.items():
        block = dataset.private_block(group, creator, create=True)
        for element in range(n_elements):
            block.add_new(element, "LO", f"value {element} of {number}")
    csa = dataset.private_block(0x0029, "SYNTHETIC CSA HEADER", create=True)
    for element in (0x10, 0x20):
        csa.add_new(element, "OB", bytes(CSA_BYTES))
    dataset.PixelData = bytes(2 * SIZE * SIZE)
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = MR
    return dataset


def _code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "99LOCAL", "Head"
    return item


def _reference(number: int) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = MR, f"{ROOT}.9.{number}"
    return item
