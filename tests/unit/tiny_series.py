"""Tiny DICOM series with pixels, their plan, and an oracle for what becomes of them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage

from mrmill.config import Convert
from mrmill.convert import convert_study
from mrmill.shards import Study
from mrmill.stamps import digest_of_files

AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)
CORONAL = (1, 0, 0, 0, 0, -1)
OBLIQUE = (0.8, 0.6, 0, -0.36, 0.48, -0.8)
UID = "1.2.826.0.1.3680043.8.498."
START = (-96.0, -80.0, -30.0)
STEP_MM = 5.0

#: Vendors' own elements: group, creator, element, VR.
GE_RAW_TYPE = (0x0043, "GEMS_PARM_01", 0x2F, "SS")
GE_LOCATIONS = (0x0021, "GEMS_RELA_01", 0x4F, "SS")
PHILIPS_SCALE_SLOPE = (0x2005, "Philips MR Imaging DD 001", 0x0E, "FL")
PHILIPS_SLICES = (0x2001, "Philips Imaging DD 001", 0x18, "SL")
SIEMENS_PROTOCOL = (0x0029, "SIEMENS CSA HEADER", 0x20, "OB")


def pictures(n=8, dtype=np.uint16, low=0):
    """(n, 20, 24) random pictures, none like another."""
    return np.random.default_rng(7).integers(low, 1000, (n, 20, 24)).astype(dtype)


def picture_header(sop_class, instance):
    """Header of one MR instance, without place or pixels."""
    ds = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=bytes(128))
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"{UID}1.{instance}"
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = UID + "2", UID + "3"
    ds.Modality, ds.Manufacturer = "MR", "GE MEDICAL SYSTEMS"
    ds.PatientID, ds.PatientName = "CANARY-ID", "CANARY^NAME"
    ds.StudyDate, ds.StudyTime, ds.AcquisitionTime = "20990101", "100000", "100000"
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = 3, 1, instance
    ds.ImageType, ds.SeriesDescription = ["ORIGINAL", "PRIMARY", "M"], "CANARY"
    ds.ScanningSequence, ds.SequenceVariant, ds.MRAcquisitionType = "SE", "NONE", "2D"
    ds.EchoTime, ds.RepetitionTime, ds.MagneticFieldStrength = 10, 500, 3
    ds.PatientPosition = "HFS"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    return ds


def write_picture(path, number, picture, iop=AXIAL, start=START, private=None, **tags):
    """Write one classic MR instance, a picture at `start`; `None` leaves a tag out."""
    ds = picture_header(MRImageStorage, number)
    ds.ImageOrientationPatient = list(iop)
    ds.ImagePositionPatient = [float(x) for x in start]
    ds.PixelSpacing, ds.SliceThickness = [8, 7], STEP_MM
    ds.Rows, ds.Columns = picture.shape
    ds.PixelRepresentation = int(picture.dtype.kind == "i")
    ds.PixelData = picture.tobytes()
    for (group, creator, element, vr), value in (private or {}).items():
        ds.private_block(group, creator, create=True).add_new(element, vr, value)
    for name, value in tags.items():
        if value is None:
            del ds[name]
        else:
            setattr(ds, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def starts(n, iop=AXIAL, shear_mm=0.0):
    """Yield the first positions of a stack, `STEP_MM` apart along the normal."""
    normal, down = np.cross(iop[:3], iop[3:]), np.array(iop[3:])
    return [np.array(START) + i * (STEP_MM * normal + shear_mm * down) for i in range(n)]


def write_series(folder, images=None, iop=AXIAL, first=1, keep=None, shear_mm=0.0, **tags):
    """Write a stack of pictures, one file each; of a list of values each picture takes its own."""
    images = pictures() if images is None else images
    for i, start in enumerate(starts(len(images), iop, shear_mm)):
        if keep is None or i in keep:
            own = {name: v[i] if isinstance(v, tuple) else v for name, v in tags.items()}
            write_picture(folder / f"{first + i:03d}.dcm", first + i, images[i], iop, start, **own)
    return folder


def write_parts(folder, parts, **tags):
    """Write a stack of 6 for each of `parts` (tags), numbered through; return the stacks' files."""
    images = pictures(6 * len(parts))
    for i, part in enumerate(parts):
        write_series(folder, images[6 * i :][:6], first=1 + 6 * i, **{**tags, **part})
    files = sorted(folder.iterdir())
    return [files[6 * i :][:6] for i in range(len(parts))]


def item(**tags):
    """Sequence of one item."""
    ds = Dataset()
    for name, value in tags.items():
        setattr(ds, name, value)
    return [ds]


def write_enhanced(path, stacks=((AXIAL, 8),), components=("MAGNITUDE",) * 3, **tags):
    """Write one enhanced multi-frame instance that holds stacks, each of a complex component."""
    ds = picture_header(EnhancedMRImageStorage, 1)
    images = pictures(sum(n for _, n in stacks))
    ds.NumberOfFrames, (ds.Rows, ds.Columns) = len(images), images.shape[1:]
    ds.PixelRepresentation, ds.PixelData = 0, images.tobytes()
    measures = item(PixelSpacing=[8, 7], SliceThickness=STEP_MM, SpacingBetweenSlices=STEP_MM)
    ds.SharedFunctionalGroupsSequence = item(PixelMeasuresSequence=measures)
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=item(ImageOrientationPatient=list(iop)),
            PlanePositionSequence=item(ImagePositionPatient=[float(x) for x in start]),
            FrameContentSequence=item(
                StackID="1", InStackPositionNumber=i, DimensionIndexValues=[1, i, volume]
            ),
            MRImageFrameTypeSequence=item(ComplexImageComponent=component),
        )[0]
        for volume, ((iop, n), component) in enumerate(
            zip(stacks, components, strict=False), start=1
        )
        for i, start in enumerate(starts(n, iop), start=1)
    ]
    for name, value in tags.items():
        setattr(ds, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path.parent


def rewrite(folder, change):
    """Change every file of a folder: `change(dataset)` in place."""
    for path in sorted(folder.iterdir()):
        ds = pydicom.dcmread(path)
        ds.pixel_array  # noqa: B018 (decoded while it still is what the header says)
        change(ds)
        plain = Dataset()  # forgets how the file was written
        plain.update(ds)
        plain.file_meta = ds.file_meta
        dcmwrite(path, plain, enforce_file_format=True)
    return folder


def planned(folder, key="SERIESAA", **values):
    """Return what the plan says of the files of a folder."""
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    files = values.get("files", files)
    return {
        "series_key": key,
        "kind": "dicom",
        "folder": str(folder),
        "files": files,
        "n_sop": len(files),
        "table": {},
        "digest": digest_of_files(folder, files),
        **values,
    }


def convert(place, *series, timeout_s=60.0, **plan):
    """Convert planned series as one study; return the outcome and the folder of its files."""
    scratch = place / "scratch"
    scratch.mkdir(parents=True)
    study = Study("STUDY23456", "PATIENT234", "batch00", {"series": list(series), **plan})
    outcome = convert_study(study, scratch, Convert(timeout_s=timeout_s))
    json.dumps(outcome.series)  # no numpy values in a record
    return outcome, scratch


def verdicts(outcome):
    """Key, state and reason of every entry."""
    return [(entry["series_key"], entry["state"], entry["reason"]) for entry in outcome.series]


def account(outcome):
    """What the ledger needs of every entry: what came out, why, of how many, with what said."""
    names = ("state", "reason", "kind", "suffix", "n_sop", "n_slices", "warnings")
    return [tuple(entry.get(name) for name in names) for entry in outcome.series]


def assert_every_pixel_is_where_its_header_says(image: Path, files, scale=None):
    """Oracle: DICOM's own formula for the place of a pixel (PS3.3 C.7.6.2.1.1), via the affine."""
    image = nib.load(image)
    to_index = np.linalg.inv(image.affine)
    data = np.asanyarray(image.dataobj)
    for file in files:
        ds = pydicom.dcmread(file)
        slope, intercept = ds.get("RescaleSlope", 1), ds.get("RescaleIntercept", 0)
        for frame, (position, iop, spacing) in enumerate(frame_planes(ds)):
            pixels = ds.pixel_array if ds.pixel_array.ndim == 2 else ds.pixel_array[frame]
            row, column = np.mgrid[: ds.Rows : 3, : ds.Columns : 5].reshape(2, -1)
            lps = (
                np.array(position, float)[:, None]
                + np.outer(iop[:3], column) * float(spacing[1])
                + np.outer(iop[3:], row) * float(spacing[0])
            )
            index = nib.affines.apply_affine(to_index, lps.T * (-1, -1, 1))
            nearest = np.rint(index).astype(int)
            assert np.abs(index - nearest).max() < 0.01
            expected = pixels[row, column] * slope + intercept
            if scale is not None:
                expected = scale(pixels[row, column].astype(float))
            np.testing.assert_array_equal(data[tuple(nearest.T)], expected)


def frame_planes(ds):
    """Position, orientation and pixel spacing of every frame."""
    if "PerFrameFunctionalGroupsSequence" not in ds:
        return [(ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing)]
    shared = ds.SharedFunctionalGroupsSequence[0]
    return [
        (
            frame.PlanePositionSequence[0].ImagePositionPatient,
            frame.PlaneOrientationSequence[0].ImageOrientationPatient,
            (frame if "PixelMeasuresSequence" in frame else shared)
            .PixelMeasuresSequence[0]
            .PixelSpacing,
        )
        for frame in ds.PerFrameFunctionalGroupsSequence
    ]
