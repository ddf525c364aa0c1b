"""Every slice where its own header says it is, none missing, none invented."""

import nibabel as nib
import numpy as np
import pytest
from tiny_series import (
    AXIAL,
    CORONAL,
    OBLIQUE,
    SAGITTAL,
    START,
    STEP_MM,
    account,
    assert_every_pixel_is_where_its_header_says,
    convert,
    pictures,
    planned,
    verdicts,
    write_picture,
    write_series,
)


@pytest.mark.parametrize("acquisition", ["2D", "3D"])
@pytest.mark.parametrize("iop", [AXIAL, SAGITTAL, CORONAL, OBLIQUE])
def test_every_pixel_ends_up_where_its_header_says(tmp_path, iop, acquisition):
    folder = write_series(tmp_path / "in", iop=iop, MRAcquisitionType=acquisition)
    outcome, out = convert(tmp_path, planned(folder))
    (entry,) = outcome.series
    image = nib.load(out / entry["file"])
    assert account(outcome) == [("accepted", "", "magnitude", "", 8, 8, [])]
    assert sorted(entry["shape"]) == [8, 20, 24]
    assert tuple(entry["shape"]) == image.shape
    np.testing.assert_allclose(entry["affine"], image.affine, atol=1e-4)
    assert image.get_data_dtype() == np.uint16
    assert_every_pixel_is_where_its_header_says(out / entry["file"], folder.iterdir())


def test_a_gap_in_the_stack_makes_the_series_incomplete_and_its_resampled_copy_extra(tmp_path):
    folder = write_series(tmp_path / "in", keep=set(range(8)) - {6})
    outcome, out = convert(tmp_path, planned(folder))
    said = ["maybe_incomplete", "missing_images", "uneven_slices"]
    assert account(outcome) == [
        ("rejected", "incomplete", "magnitude", "", 7, 7, said),
        ("rejected", "extra_output", "magnitude", "Eq_1", 7, 8, said),
    ]
    plain = outcome.series[0]
    assert (plain["found"], plain["limit"]) == ("7 slices", "8 slices at even distances")
    assert (outcome.state, outcome.reason) == ("rejected", "no_accepted_series")
    assert list(out.iterdir()) == []


def test_a_gap_is_found_where_dcm2niix_cannot_resample_and_gives_up(tmp_path):
    folder = write_series(tmp_path / "in", keep=set(range(8)) - {6}, BitsStored=16, HighBit=15)
    outcome, _ = convert(tmp_path, planned(folder))
    (entry,) = outcome.series
    assert (entry["exit_code"], entry["reason"], entry["found"]) == (1, "incomplete", "7 slices")


def test_a_slice_exported_twice_under_another_uid_makes_the_series_incomplete(tmp_path):
    folder = write_series(tmp_path / "in")
    start = (*START[:2], START[2] + 4 * STEP_MM)
    write_picture(folder / "again.dcm", 99, pictures()[4], start=start)
    outcome, _ = convert(tmp_path, planned(folder))
    assert {entry["reason"] for entry in outcome.series} == {"incomplete", "extra_output"}


def test_a_series_exported_twice_under_other_uids_is_not_accepted(tmp_path):
    folder = write_series(tmp_path / "in")
    write_series(folder, first=9)
    outcome, _ = convert(tmp_path, planned(folder))
    assert account(outcome) == [("rejected", "not_3d", "magnitude", "", 16, 16, [])]


@pytest.mark.parametrize(
    ("tags", "said", "copies"),
    [
        ({}, [], []),
        (
            {"GantryDetectorTilt": 11.3},
            ["gantry_tilt"],
            [("rejected", "extra_output", "magnitude", "Tilt_1", 8, 8, ["gantry_tilt"])],
        ),
    ],
    ids=["silent", "tilt in the header"],
)
def test_a_sheared_stack_is_refused_and_its_resampled_copy_extra(tmp_path, tags, said, copies):
    folder = write_series(tmp_path / "in", shear_mm=1.0, **tags)
    outcome, _ = convert(tmp_path, planned(folder))
    stack = ("rejected", "bad_geometry", "magnitude", "", 8, 8, said)
    assert account(outcome) == [stack, *copies]
    assert outcome.series[0]["found"] == "a slice 7.0 mm from its place"


def test_one_slice_out_of_line_is_refused(tmp_path):
    folder = write_series(tmp_path / "in")
    start = (START[0], START[1] + 1, START[2] + 4 * STEP_MM)
    write_picture(folder / "005.dcm", 5, pictures()[4], start=start)
    outcome, _ = convert(tmp_path, planned(folder))
    assert [entry["reason"] for entry in outcome.series] == ["bad_geometry"]


def test_one_slice_with_another_pixel_size_is_refused(tmp_path):
    folder = write_series(tmp_path / "in", PixelSpacing=(*[[8, 7]] * 7, [8, 7.1]))
    outcome, _ = convert(tmp_path, planned(folder))
    assert account(outcome) == [("rejected", "bad_geometry", "magnitude", "", 8, 8, [])]
    assert outcome.series[0]["found"] == "a slice 2.3 mm from its place"  # 23 pixels of 0.1 mm


@pytest.mark.parametrize("tag", ["ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"])
def test_a_series_that_does_not_say_where_its_pixels_are_is_refused(tmp_path, tag):
    outcome, _ = convert(tmp_path, planned(write_series(tmp_path / "in", **{tag: None})))
    assert verdicts(outcome) == [("SERIESAA", "rejected", "bad_geometry")]


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("AcquisitionNumber", []),
        ("EchoTime", []),
        ("ImageType", []),
        ("InstanceNumber", []),
        ("Manufacturer", ["manufacturer_unknown"]),
        ("SeriesNumber", []),
        ("SliceThickness", []),
        ("StudyDate", []),
    ],
)
def test_other_missing_tags_cost_no_volume(tmp_path, tag, said):
    folder = write_series(tmp_path / "in", **{tag: None})
    outcome, out = convert(tmp_path, planned(folder))
    assert account(outcome) == [("accepted", "", "magnitude", "", 8, 8, said)]
    assert_every_pixel_is_where_its_header_says(out / "SERIESAA.nii.gz", folder.iterdir())
