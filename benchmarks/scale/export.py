"""A DICOM export without pixels worth a look: as many folders and files as a real one has."""

from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.8.498"
MR = "1.2.840.10008.5.1.4.1.1.4"

#: Pixels along an edge.
SIZE = 16

#: What stands in the template for the numbers of study, series and file.
STUDY, SERIES, FILE = b"777777", b"888888", b"999999"


def write_export(folder: Path, studies: range, series: int, files: int) -> None:
    """Write studies of equally many series and files.

    Parameters
    ----------
    studies : range
        Their numbers; a number always gives the same bytes.
    """
    template = one_file()
    for study in studies:
        for number in range(series):
            place = folder / f"{study:06d}" / f"{number:02d}"
            place.mkdir(parents=True)
            for file in range(files):
                data = template
                for word, value in ((STUDY, study), (SERIES, number), (FILE, file)):
                    data = data.replace(word, b"%d" % (value + 100_000))
                (place / f"{file:03d}.dcm").write_bytes(data)


def one_file() -> bytes:
    """Return a file whose numbers of study, series and file are still to be put in."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality = MR, "MR"
    dataset.SOPInstanceUID = f"{ROOT}.777777.888888.999999"
    dataset.StudyInstanceUID = f"{ROOT}.777777"
    dataset.SeriesInstanceUID = f"{ROOT}.777777.888888"
    dataset.StudyDate, dataset.SeriesNumber = "20240131", "888888"
    dataset.PatientID, dataset.AccessionNumber = "P777777", "A777777"
    dataset.Rows = dataset.Columns = SIZE
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = bytes(2 * SIZE * SIZE)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = MR
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
