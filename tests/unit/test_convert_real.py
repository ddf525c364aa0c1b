"""Real DICOM of several vendors, from the folder of the real data."""

import os
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_series import account, assert_every_pixel_is_where_its_header_says, convert, planned

REAL = (
    Path(os.environ.get("MRMILL_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "real"
)
ACCEPTED = ("accepted", "", "magnitude", "")

#: Archive, part of the folder's name -> what comes of it; no case has warnings but those given.
SERIES = {
    ("siemens-prisma-hfs", "3_t1_fl2d_sag"): (*ACCEPTED, 35, 35, []),
    ("siemens-prisma-hfs", "4_ep2d_diff"): ("rejected", "not_3d", "magnitude", "", 13, 325, []),
    ("siemens-xa30-enhanced", "5_anat-T1w_acq-tfl"): (*ACCEPTED, 1, 96, []),
    ("siemens-xa30-enhanced", "6_anat-T1w_acq-tfl"): (*ACCEPTED, 1, 96, []),
    ("siemens-xa30-enhanced", "99_Phoenix"): (
        ("rejected", "not_converted", None, None, 7, None, [])
    ),
    ("fragmented-jpeglossless", "5001_anat"): (*ACCEPTED, 96, 96, ["enhanced_saved_as_classic"]),
    ("7t-t1-defaced", "dicoms/"): (*ACCEPTED, 384, 384, ["manufacturer_unknown"]),
}

#: Single files of pydicom's collection.
NASTY = {
    "MR2_J2KR": (*ACCEPTED, 1, 1, ["maybe_incomplete"]),  # Philips, JPEG 2000, number 2
    "emri_small": "bad_geometry",
    "emri_small_RLE": "bad_geometry",
    "emri_small_big_endian": "bad_geometry",
    "emri_small_jpeg_2k_lossless_too_short": "bad_geometry",
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Return a function that gives the folder of a real series, or skips the test."""
    place = tmp_path_factory.mktemp("real")

    def folder(archive, part):
        path = REAL / f"dicom-{archive}.tar.xz"
        if not path.exists():
            pytest.skip(f"no {path.name}: set MRMILL_TEST_DATA to the folder of the real data")
        if not (place / archive).exists():
            with tarfile.open(path) as tar:
                tar.extractall(place / archive, filter="data")
        return next(
            p for p in (place / archive).rglob("*") if p.is_file() and part in str(p)
        ).parent

    return folder


@pytest.mark.parametrize(("series", "row"), SERIES.items(), ids=map("/".join, SERIES))
def test_every_real_series_ends_as_expected_and_with_every_pixel_in_place(
    tmp_path, unpacked, series, row
):
    folder = unpacked(*series)
    outcome, out = convert(tmp_path, planned(folder))
    assert account(outcome) == [row]
    # pydicom alone reads no JPEG: that series is held against its published conversion, below
    if row[0] == "accepted" and series[0] != "fragmented-jpeglossless":
        files = sorted(folder.iterdir())[:: max(1, row[4] // 24)]
        assert_every_pixel_is_where_its_header_says(out / "SERIESAA.nii.gz", files)


@pytest.mark.parametrize(("name", "row"), NASTY.items(), ids=NASTY)
def test_every_nasty_file_ends_as_expected(tmp_path, name, row):
    if not (REAL / "dicom-nasty").exists():
        pytest.skip("no dicom-nasty: set MRMILL_TEST_DATA to the folder of the real data")
    outcome, _ = convert(tmp_path, planned(REAL / "dicom-nasty", files=[f"{name}.dcm"]))
    (found,) = account(outcome)
    assert found == row if isinstance(row, tuple) else found[:2] == ("rejected", row)


def test_a_single_real_mosaic_is_one_complete_volume(tmp_path, unpacked):
    folder = unpacked("siemens-prisma-hfs", "4_ep2d_diff")
    first = min(p.name for p in folder.iterdir())
    outcome, _ = convert(tmp_path, planned(folder, files=[first]))
    assert account(outcome) == [(*ACCEPTED, 1, 25, [])]


def test_a_real_series_without_its_first_slice_is_incomplete(tmp_path, unpacked):
    folder = unpacked("siemens-prisma-hfs", "3_t1_fl2d_sag")
    files = sorted(p.name for p in folder.iterdir())[1:]
    outcome, _ = convert(tmp_path, planned(folder, files=files))
    (entry,) = outcome.series
    assert (entry["reason"], entry["found"]) == ("incomplete", "34 pictures")
    assert entry["limit"] == "35 pictures in the header"


def test_real_fragmented_jpeg_equals_its_published_conversion(tmp_path, unpacked):
    archive = "fragmented-jpeglossless"
    folder, reference = unpacked(archive, "5001_anat"), unpacked(archive, "Ref/")
    _, out = convert(tmp_path, planned(folder))
    image = nib.load(out / "SERIESAA.nii.gz")
    expected = nib.load(next(reference.glob("*.nii")))
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), np.asanyarray(expected.dataobj))
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-4)
