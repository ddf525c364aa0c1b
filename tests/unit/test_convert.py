import errno
import json
import os
import stat
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from mrmill import converter
from mrmill.config import Convert
from mrmill.convert import convert_study
from mrmill.shards import Study

AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)
CORONAL = (1, 0, 0, 0, 0, -1)
OBLIQUE = (0.8, 0.6, 0, -0.36, 0.48, -0.8)
UID = "1.2.826.0.1.3680043.8.498."
STEP_MM = 5.0
REAL = (
    Path(os.environ.get("MRMILL_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "real"
)


def pictures(n=12, dtype=np.uint16, low=0):
    """(n, 20, 24) random pictures, none like another."""
    return np.random.default_rng(7).integers(low, 1000, (n, 20, 24)).astype(dtype)


def write_picture(path, number, picture, iop=AXIAL, start=(-96.0, -80.0, -30.0), **tags):
    """Write one classic MR instance, a picture at `start`."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = f"{UID}1.{number}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = UID + "2", UID + "3"
    ds.Modality, ds.Manufacturer = "MR", "GE MEDICAL SYSTEMS"
    ds.PatientID, ds.PatientName = "CANARY-ID", "CANARY^NAME"
    ds.StudyDate, ds.StudyTime, ds.AcquisitionTime = "20990101", "100000", "100000"
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = 3, 1, number
    ds.ImageType, ds.SeriesDescription = ["ORIGINAL", "PRIMARY", "M"], "CANARY"
    ds.ScanningSequence, ds.SequenceVariant, ds.MRAcquisitionType = "SE", "NONE", "2D"
    ds.EchoTime, ds.RepetitionTime, ds.MagneticFieldStrength = 10, 500, 3
    ds.PatientPosition = "HFS"
    ds.ImageOrientationPatient = list(iop)
    ds.ImagePositionPatient = [float(x) for x in start]
    ds.PixelSpacing, ds.SliceThickness = [8, 7], STEP_MM
    ds.Rows, ds.Columns = picture.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored = 16, 12
    ds.HighBit, ds.PixelRepresentation = 11, int(picture.dtype.kind == "i")
    ds.PixelData = picture.tobytes()
    for name, value in tags.items():
        if value is None:
            del ds[name]
        else:
            setattr(ds, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def write_series(folder, images=None, iop=AXIAL, first=1, keep=None, shear_mm=0.0, **tags):
    """Write a stack of pictures, one file each, `STEP_MM` apart along their normal."""
    images = pictures() if images is None else images
    normal, down = np.cross(iop[:3], iop[3:]), np.array(iop[3:])
    for i, image in enumerate(images):
        if keep is None or i in keep:
            start = np.array([-96.0, -80.0, -30.0]) + i * (STEP_MM * normal + shear_mm * down)
            write_picture(folder / f"{first + i:03d}.dcm", first + i, image, iop, start, **tags)
    return folder


def planned(folder, key="SERIESAA", **values):
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return {
        "series_key": key,
        "kind": "dicom",
        "folder": str(folder),
        "files": files,
        "n_sop": len(files),
        "table": {},
        **values,
    }


@pytest.fixture
def convert(tmp_path):
    """Convert planned series as one study; return the outcome and the folder of its files."""

    def run(*series, scratch=None, timeout_s=60.0, **plan):
        scratch = scratch or tmp_path / "scratch"
        scratch.mkdir(parents=True)
        study = Study("STUDY23456", "PATIENT234", "batch00", {"series": list(series), **plan})
        outcome = convert_study(study, scratch, Convert(timeout_s=timeout_s))
        json.dumps(outcome.series)  # no numpy values in a record
        return outcome, scratch

    return run


def verdicts(outcome):
    return [(entry["series_key"], entry["state"], entry["reason"]) for entry in outcome.series]


def assert_every_pixel_is_where_its_header_says(image, files):
    """Oracle: DICOM's own formula for the place of a pixel (PS3.3 C.7.6.2.1.1), via the affine."""
    to_index = np.linalg.inv(image.affine)
    data = np.asanyarray(image.dataobj)
    for file in files:
        ds = pydicom.dcmread(file)
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
            expected = pixels[row, column] * ds.get("RescaleSlope", 1) + ds.get(
                "RescaleIntercept", 0
            )
            np.testing.assert_array_equal(data[tuple(nearest.T)], expected)


def frame_planes(ds):
    if "PerFrameFunctionalGroupsSequence" not in ds:
        return [(ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing)]
    return [
        (
            frame.PlanePositionSequence[0].ImagePositionPatient,
            frame.PlaneOrientationSequence[0].ImageOrientationPatient,
            frame.PixelMeasuresSequence[0].PixelSpacing,
        )
        for frame in ds.PerFrameFunctionalGroupsSequence
    ]


@pytest.mark.parametrize("acquisition", ["2D", "3D"])
@pytest.mark.parametrize("iop", [AXIAL, SAGITTAL, CORONAL, OBLIQUE])
def test_every_pixel_ends_up_where_its_header_says(convert, tmp_path, iop, acquisition):
    folder = write_series(tmp_path / "in", iop=iop, MRAcquisitionType=acquisition)
    outcome, out = convert(planned(folder))
    (entry,) = outcome.series
    image = nib.load(out / entry["file"])
    assert (outcome.state, entry["state"], entry["warnings"]) == ("accepted", "accepted", [])
    assert (entry["n_sop"], entry["n_slices"]) == (12, 12)
    assert sorted(entry["shape"]) == [12, 20, 24]
    assert tuple(entry["shape"]) == image.shape
    np.testing.assert_allclose(entry["affine"], image.affine, atol=1e-4)
    assert image.get_data_dtype() == np.uint16
    assert_every_pixel_is_where_its_header_says(image, sorted(folder.iterdir()))


@pytest.mark.parametrize(
    ("images", "tags", "dtype"),
    [
        (pictures(dtype=np.int16, low=-500), {}, np.float32),
        (pictures(), {"RescaleSlope": 2, "RescaleIntercept": 10}, np.uint16),
        (pictures(), {"RescaleSlope": 0.5, "RescaleIntercept": 0}, np.float32),
    ],
    ids=["negative", "scaled", "halves"],
)
def test_values_are_those_of_the_header_scale_in_the_smallest_lossless_type(
    convert, tmp_path, images, tags, dtype
):
    folder = write_series(tmp_path / "in", images, **tags)
    outcome, out = convert(planned(folder))
    image = nib.load(out / outcome.series[0]["file"])
    assert image.get_data_dtype() == dtype
    assert_every_pixel_is_where_its_header_says(image, sorted(folder.iterdir()))


def test_a_gap_in_the_stack_makes_the_series_incomplete_and_its_resampled_copy_extra(
    convert, tmp_path
):
    folder = write_series(tmp_path / "in", keep=set(range(12)) - {6})
    outcome, out = convert(planned(folder))
    plain, equalised = outcome.series
    assert verdicts(outcome) == [
        ("SERIESAA", "rejected", "incomplete"),
        ("SERIESAA-2", "rejected", "extra_output"),
    ]
    assert (plain["found"], plain["limit"]) == ("11 slices", "12 slices at even distances")
    assert {"uneven_slices", "missing_images"} <= set(plain["warnings"])
    assert equalised["suffix"].startswith("Eq")
    assert (outcome.state, outcome.reason) == ("rejected", "no_accepted_series")
    assert list(out.iterdir()) == []


def test_a_gap_is_found_where_dcm2niix_cannot_resample_and_gives_up(convert, tmp_path):
    folder = write_series(tmp_path / "in", keep=set(range(12)) - {6}, BitsStored=16, HighBit=15)
    outcome, _ = convert(planned(folder))
    (entry,) = outcome.series
    assert (entry["exit_code"], entry["reason"], entry["found"]) == (1, "incomplete", "11 slices")


def test_fewer_slices_than_instances_make_the_series_incomplete(convert, tmp_path):
    folder = write_series(tmp_path / "in")
    outcome, _ = convert(planned(folder, n_sop=13))
    (entry,) = outcome.series
    assert entry["reason"] == "incomplete"
    assert (entry["found"], entry["limit"]) == ("12 slices", "13 instances")


def test_a_slice_exported_twice_under_another_uid_makes_the_series_incomplete(convert, tmp_path):
    folder = write_series(tmp_path / "in")
    start = (-96.0, -80.0, -30.0 + 4 * STEP_MM)
    write_picture(folder / "again.dcm", 99, pictures()[4], start=start)
    outcome, _ = convert(planned(folder))
    assert {entry["reason"] for entry in outcome.series} == {"incomplete", "extra_output"}


def test_a_series_exported_twice_under_other_uids_is_not_accepted(convert, tmp_path):
    folder = write_series(tmp_path / "in")
    write_series(folder, first=101)
    outcome, _ = convert(planned(folder))
    assert [entry["reason"] for entry in outcome.series] == ["not_3d"]


def test_of_two_echoes_the_first_goes_on_with_its_own_header(convert, tmp_path):
    folder = write_series(tmp_path / "in", EchoTime=80, EchoNumbers=2)
    write_series(folder, pictures(24)[12:], first=101, EchoTime=20, EchoNumbers=1)
    outcome, out = convert(planned(folder))
    assert verdicts(outcome) == [
        ("SERIESAA", "accepted", ""),
        ("SERIESAA-2", "rejected", "extra_output"),
    ]
    entry = outcome.series[0]
    assert entry["header"]["TE_ms"] == 20
    assert [e["n_slices"] for e in outcome.series] == [12, 12]
    assert [p.name for p in out.iterdir()] == ["SERIESAA.nii.gz"]
    image = nib.load(out / entry["file"])
    assert_every_pixel_is_where_its_header_says(image, sorted(folder.glob("1*.dcm")))


def test_of_magnitude_and_phase_the_magnitude_goes_on(convert, tmp_path):
    phase = {"Manufacturer": "Philips", "ImageType": ["ORIGINAL", "PRIMARY", "PHASE MAP", "P"]}
    plain = {"Manufacturer": "Philips", "ImageType": ["ORIGINAL", "PRIMARY", "M_FFE", "M"]}
    folder = write_series(tmp_path / "in", **phase)
    write_series(folder, pictures(24)[12:], first=101, **plain)
    outcome, out = convert(planned(folder))
    assert [e["reason"] for e in outcome.series] == ["", "extra_output"]
    image = nib.load(out / "SERIESAA.nii.gz")
    assert_every_pixel_is_where_its_header_says(image, sorted(folder.glob("1*.dcm")))
    assert "M_FFE" in outcome.series[0]["header"]["ImageType"]


def test_outputs_that_nothing_tells_apart_are_all_extra(convert, tmp_path):
    folder = write_series(tmp_path / "in", FlipAngle=5)
    write_series(folder, first=101, FlipAngle=20)
    outcome, _ = convert(planned(folder))
    assert [e["reason"] for e in outcome.series] == ["extra_output"] * 2


def test_every_plane_of_a_localizer_goes_on_for_curate_to_judge(convert, tmp_path):
    folder = tmp_path / "in"
    for first, iop in ((1, AXIAL), (101, SAGITTAL), (201, CORONAL)):
        write_series(folder, iop=iop, first=first)
    outcome, out = convert(planned(folder))
    assert [e["series_key"] for e in outcome.accepted_series()] == [
        "SERIESAA",
        "SERIESAA-2",
        "SERIESAA-3",
    ]
    for entry in outcome.series:
        affine = nib.load(out / entry["file"]).affine
        axes = nib.aff2axcodes(affine)
        first = {"S": 1, "R": 101, "L": 101, "A": 201, "P": 201}[axes[2]]
        files = [folder / f"{first + i:03d}.dcm" for i in range(12)]
        assert_every_pixel_is_where_its_header_says(nib.load(out / entry["file"]), files)


def test_one_series_uid_per_slice_is_one_series_when_the_plan_says_so(convert, tmp_path):
    folder = tmp_path / "in"
    for i, image in enumerate(pictures()):
        start, uid = (-96.0, -80.0, -30 + i * STEP_MM), f"{UID}3.{i}"
        write_picture(folder / f"{i}.dcm", i + 1, image, start=start, SeriesInstanceUID=uid)
    outcome, _ = convert(planned(folder))
    assert verdicts(outcome) == [("SERIESAA", "accepted", "")]


def test_names_and_descriptions_in_turkish_change_nothing(convert, tmp_path):
    plain = write_series(tmp_path / "in")
    turkish = write_series(
        tmp_path / "dışa aktarım ĞÜŞ",
        SeriesDescription="T1 ağırlıklı İĞŞ/çöü",
        ProtocolName="kontrastlı <şant>",
    )
    for path in list(turkish.iterdir()):
        path.rename(path.with_name(f"görüntü {path.stem}; ş"))
    one, out_one = convert(planned(plain), scratch=tmp_path / "one")
    two, out_two = convert(planned(turkish), scratch=tmp_path / "two")
    assert one.state == two.state == "accepted"
    assert (out_one / "SERIESAA.nii.gz").read_bytes() == (out_two / "SERIESAA.nii.gz").read_bytes()


def test_equal_input_gives_equal_bytes_and_an_equal_outcome_anywhere(convert, tmp_path):
    results = []
    for place in ("here", "elsewhere/deeper"):
        folder = tmp_path / place / "in"
        write_series(folder, EchoTime=80)
        write_series(folder, first=101, EchoTime=20)
        outcome, out = convert(planned(folder), scratch=tmp_path / place / "scratch")
        results.append((outcome, {p.name: p.read_bytes() for p in out.rglob("*")}))
    assert results[0] == results[1]
    assert str(tmp_path) not in json.dumps(results[0][0].series)


@pytest.mark.parametrize("damage", ["truncated", "not DICOM"])
def test_a_damaged_series_leaves_its_siblings_alone(convert, tmp_path, damage):
    good, bad = write_series(tmp_path / "good"), write_series(tmp_path / "bad")
    if damage == "truncated":
        path = bad / "005.dcm"
        path.write_bytes(path.read_bytes()[:-300])
    else:
        for path in bad.iterdir():
            path.write_bytes(b"no image at all")
    outcome, out = convert(planned(bad, "BADSERIE"), planned(good, "GOODSERI"))
    assert outcome.state == "accepted"
    assert verdicts(outcome) == [
        ("BADSERIE", "rejected", "not_converted"),
        ("GOODSERI", "accepted", ""),
    ]
    assert [p.name for p in out.iterdir()] == ["GOODSERI.nii.gz"]


def test_a_sheared_stack_is_refused_though_dcm2niix_says_nothing(convert, tmp_path):
    folder = write_series(tmp_path / "in", shear_mm=1.0)
    outcome, _ = convert(planned(folder))
    (entry,) = outcome.series
    assert (entry["reason"], entry["warnings"]) == ("bad_geometry", [])
    assert entry["found"] == "a slice 11.0 mm from its place"


def test_one_slice_out_of_line_is_refused(convert, tmp_path):
    folder = write_series(tmp_path / "in")
    write_picture(folder / "005.dcm", 5, pictures()[4], start=(-96.0, -79.0, -30.0 + 4 * STEP_MM))
    outcome, _ = convert(planned(folder))
    assert [entry["reason"] for entry in outcome.series] == ["bad_geometry"]


@pytest.mark.parametrize("tag", ["ImageOrientationPatient", "ImagePositionPatient"])
def test_a_series_without_positions_is_refused(convert, tmp_path, tag):
    outcome, _ = convert(planned(write_series(tmp_path / "in", **{tag: None})))
    assert verdicts(outcome) == [("SERIESAA", "rejected", "bad_geometry")]


def test_what_the_plan_rejects_is_recorded_and_not_touched(convert, tmp_path):
    folder = write_series(tmp_path / "in")
    outcome, _ = convert(planned(folder, reject="no_images"), planned(folder, "OTHERSER"))
    assert verdicts(outcome) == [
        ("SERIESAA", "rejected", "no_images"),
        ("OTHERSER", "accepted", ""),
    ]


def test_a_study_the_plan_rejects_keeps_its_reason(convert, tmp_path):
    folder = write_series(tmp_path / "in")
    outcome, out = convert(planned(folder), reject="mixed_patients")
    assert (outcome.state, outcome.reason) == ("rejected", "mixed_patients")
    assert verdicts(outcome) == [("SERIESAA", "rejected", "study_rejected")]
    assert list(out.iterdir()) == []


def test_a_study_whose_files_are_gone_is_failed_so_that_a_retry_opens_it(convert, tmp_path):
    folder = write_series(tmp_path / "in")
    series = planned(folder)
    (folder / "005.dcm").unlink()
    outcome, _ = convert(series)
    assert (outcome.state, outcome.reason) == ("failed", "error")
    assert outcome.error.startswith("FileNotFoundError")


@pytest.fixture
def fake_dcm2niix(tmp_path, monkeypatch):
    def install(script):
        path = tmp_path / "dcm2niix"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(converter, "dcm2niix", lambda: str(path))

    return install


@pytest.mark.parametrize(
    ("script", "error"), [("exec sleep 30", "TimeoutError"), ("kill -9 $$", "ChildProcessError")]
)
def test_a_converter_that_hangs_or_dies_fails_the_series(
    convert, tmp_path, fake_dcm2niix, script, error
):
    fake_dcm2niix(script)
    outcome, out = convert(planned(write_series(tmp_path / "in")), timeout_s=0.5)
    assert outcome.state == "failed"
    assert outcome.series[0]["error"].startswith(error)
    assert list(out.iterdir()) == []


def test_a_full_disk_is_no_fault_of_the_study(convert, tmp_path, fake_dcm2niix):
    fake_dcm2niix('echo "Error: Unable to write /x/v.nii (disk full?)" >&2; exit 1')
    with pytest.raises(OSError, match="could not write") as caught:
        convert(planned(write_series(tmp_path / "in")))
    assert caught.value.errno == errno.ENOSPC


def test_nothing_of_the_header_or_the_paths_reaches_the_log(convert, tmp_path, caplog):
    caplog.set_level("DEBUG")
    folder = write_series(tmp_path / "CANARY-FOLDER", keep=set(range(12)) - {6})
    convert(planned(folder))
    assert "uneven_slices" in caplog.text
    assert "CANARY" not in caplog.text
    assert str(tmp_path) not in caplog.text


# NIfTI


def write_nifti(path, data, sidecar=None):
    image = nib.Nifti1Image(data, np.diag([2.0, 2.0, 3.0, 1.0]))
    image.header["descrip"] = b"CANARY"
    image.header["aux_file"] = b"CANARY"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    if sidecar is not None:
        path.with_name("x.json").write_text(sidecar)
    return planned(
        path.parent,
        kind="nifti",
        files=[path.name],
        sidecar=str(path.with_name("x.json")) if sidecar is not None else "",
        table={"SeriesNumber": 5},
    )


def test_a_nifti_is_rewritten_without_free_text_and_voxel_for_voxel(convert, tmp_path):
    data = pictures(dtype=np.int16)
    outcome, out = convert(write_nifti(tmp_path / "in/x.nii.gz", data, '{"EchoTime": 0.02}'))
    (entry,) = outcome.series
    image = nib.load(out / entry["file"])
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), data)
    assert image.header["descrip"] == image.header["aux_file"] == b""
    assert (entry["shape"], entry["spacing_mm"]) == ([12, 20, 24], [2.0, 2.0, 3.0])
    assert entry["header"]["TE_ms"] == pytest.approx(20)
    assert entry["header"]["SeriesNumber"] == 5
    assert (entry["state"], entry["warnings"]) == ("accepted", [])


@pytest.mark.parametrize("sidecar", ["{broken", "[1, 2]"])
def test_an_unreadable_sidecar_is_a_warning_and_the_table_stands(convert, tmp_path, sidecar):
    outcome, _ = convert(write_nifti(tmp_path / "in/x.nii.gz", pictures(), sidecar))
    (entry,) = outcome.series
    assert (entry["state"], entry["warnings"]) == ("accepted", ["bad_sidecar"])
    assert entry["header"]["SeriesNumber"] == 5


def test_a_truncated_nifti_and_a_4d_one_are_rejected_with_their_reasons(convert, tmp_path):
    cut = write_nifti(tmp_path / "cut/x.nii.gz", pictures())
    path = tmp_path / "cut/x.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    long = write_nifti(tmp_path / "long/x.nii", np.stack([pictures()] * 3, axis=-1))
    outcome, _ = convert(cut, long)
    assert [entry["reason"] for entry in outcome.series] == ["unreadable_image", "not_3d"]


# real DICOM


@pytest.fixture
def real(tmp_path):
    """Return a function that unpacks a real series, or skips the test."""

    def unpack(archive, folder):
        path = REAL / archive
        if not path.exists():
            pytest.skip(f"no {archive}: set MRMILL_TEST_DATA to the folder of the real data")
        with tarfile.open(path) as tar:
            wanted = [m for m in tar if m.isfile() and folder in m.name]
            tar.extractall(tmp_path / "real", members=wanted, filter="data")
        return (tmp_path / "real" / wanted[0].name).parent

    return unpack


def test_real_sagittal_t1_goes_on_with_every_pixel_in_place(convert, real):
    folder = real("dicom-siemens-prisma-hfs.tar.xz", "3_t1_fl2d_sag")
    outcome, out = convert(planned(folder))
    (entry,) = outcome.series
    assert (entry["state"], entry["n_slices"], entry["header"]["SeriesNumber"]) == (
        "accepted",
        35,
        3,
    )
    image = nib.load(out / entry["file"])
    assert_every_pixel_is_where_its_header_says(image, sorted(folder.iterdir()))


def test_real_diffusion_mosaics_are_4d_and_a_single_one_is_complete(convert, real):
    folder = real("dicom-siemens-prisma-hfs.tar.xz", "4_ep2d_diff")
    first = sorted(p.name for p in folder.iterdir())[0]
    outcome, _ = convert(planned(folder), planned(folder, "ONEPICTU", files=[first], n_sop=1))
    assert [(e["reason"], e["n_slices"]) for e in outcome.series] == [("not_3d", 325), ("", 25)]


@pytest.mark.parametrize("series", ["5_anat-T1w_acq-tfl", "6_anat-T1w_acq-tfl"])
def test_real_enhanced_instance_is_one_volume_of_its_frames(convert, real, series):
    folder = real("dicom-siemens-xa30-enhanced.tar.xz", series)
    outcome, out = convert(planned(folder))
    (entry,) = outcome.series
    assert (entry["state"], entry["n_sop"], entry["n_slices"]) == ("accepted", 1, 96)
    image = nib.load(out / entry["file"])
    assert_every_pixel_is_where_its_header_says(image, sorted(folder.iterdir()))


def test_real_objects_without_pixels_are_not_converted(convert, real):
    folder = real("dicom-siemens-xa30-enhanced.tar.xz", "99_Phoenix")
    outcome, _ = convert(planned(folder))
    assert verdicts(outcome) == [("SERIESAA", "rejected", "not_converted")]


def test_real_fragmented_jpeg_equals_its_published_conversion(convert, real):
    archive = "dicom-fragmented-jpeglossless.tar.xz"
    folder, reference = real(archive, "5001_anat"), real(archive, "Ref/")
    outcome, out = convert(planned(folder))
    image, expected = (
        nib.load(out / outcome.series[0]["file"]),
        nib.load(next(reference.glob("*.nii"))),
    )
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), np.asanyarray(expected.dataobj))
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-4)


def test_real_7t_series_of_384_slices_is_complete(convert, real):
    outcome, _ = convert(planned(real("dicom-7t-t1-defaced.tar.xz", "dicoms/")))
    (entry,) = outcome.series
    assert (entry["state"], entry["n_slices"]) == ("accepted", 384)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR2_J2KR", ""),
        ("emri_small", "bad_geometry"),
        ("emri_small_RLE", "bad_geometry"),
        ("emri_small_big_endian", "bad_geometry"),
        ("emri_small_jpeg_2k_lossless_too_short", "bad_geometry"),
    ],
)
def test_real_nasty_files_end_with_a_reason(convert, name, reason):
    if not (REAL / "dicom-nasty").exists():
        pytest.skip("no dicom-nasty: set MRMILL_TEST_DATA to the folder of the real data")
    outcome, _ = convert(planned(REAL / "dicom-nasty", files=[f"{name}.dcm"], n_sop=1))
    assert [entry["reason"] for entry in outcome.series] == [reason]
