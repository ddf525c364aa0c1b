"""DICOM files of a few hundred bytes for tests of planning."""

from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

MR = "1.2.840.10008.5.1.4.1.1.4"
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"


def write_dicom(
    path: Path, study="1.1", series="1.1.1", instance="1.1.1.1", patient="P1", **more
) -> Path:
    """Write one image without pixels; `None` leaves an element out."""
    values = {
        "SOPClassUID": MR,
        "SOPInstanceUID": instance,
        "StudyDate": "20240131",
        "AccessionNumber": f"A{study}",
        "Modality": "MR",
        "PatientName": "Canary^Cathy",
        "PatientID": patient,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "SeriesNumber": 1,
        "Rows": 2,
        **more,
    }
    dataset = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = values["SOPClassUID"] or MR
    dataset.file_meta.MediaStorageSOPInstanceUID = instance or "1"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_study(folder: Path, study: str, patient: str, n_series=2, n_files=3, **more) -> None:
    """Write a study as a folder per series."""
    for s in range(1, n_series + 1):
        for i in range(1, n_files + 1):
            write_dicom(
                folder / f"s{s}" / f"{i}.dcm",
                study,
                f"{study}.{s}",
                f"{study}.{s}.{i}",
                patient,
                SeriesNumber=s,
                **more,
            )
