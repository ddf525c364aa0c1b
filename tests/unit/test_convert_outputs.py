"""A series with several images: the plainest goes on, the others are in the ledger."""

import nibabel as nib
import numpy as np
import pytest
from tiny_series import (
    AXIAL,
    CORONAL,
    GE_RAW_TYPE,
    SAGITTAL,
    UID,
    account,
    assert_every_pixel_is_where_its_header_says,
    convert,
    pictures,
    planned,
    verdicts,
    write_enhanced,
    write_parts,
    write_series,
)

ACCEPTED = ("accepted", "")
EXTRA = ("rejected", "extra_output")
SIEMENS = {"Manufacturer": "SIEMENS"}
GE = {"Manufacturer": "GE MEDICAL SYSTEMS"}
PHILIPS = {"Manufacturer": "Philips Medical Systems"}


def of_type(*words):
    return {"ImageType": ["ORIGINAL", "PRIMARY", *words]}


@pytest.mark.parametrize("word", ["ORIGINAL", "PRIMARY", "FID"])
def test_an_image_type_of_one_word_is_not_read_letter_by_letter(tmp_path, word):
    outcome, _ = convert(tmp_path, planned(write_series(tmp_path / "in", ImageType=word)))
    assert account(outcome) == [(*ACCEPTED, "magnitude", "", 8, 8, [])]


def test_of_three_echoes_the_shortest_goes_on_with_its_own_header(tmp_path):
    echoes = [{"EchoTime": te, "EchoNumbers": n} for n, te in enumerate((80, 20, 50), start=1)]
    parts = write_parts(tmp_path / "in", echoes)
    outcome, out = convert(tmp_path, planned(tmp_path / "in"))
    assert account(outcome) == [
        (*ACCEPTED, "magnitude", "e2", 18, 6, ["split"]),
        (*EXTRA, "magnitude", "e1", 18, 6, ["split"]),
        (*EXTRA, "magnitude", "e3", 18, 6, ["split"]),
    ]
    assert [key for key, *_ in verdicts(outcome)] == ["SERIESAA", "SERIESAA-2", "SERIESAA-3"]
    assert outcome.series[0]["header"]["TE_ms"] == 20
    assert [p.name for p in out.iterdir()] == ["SERIESAA.nii.gz"]
    assert_every_pixel_is_where_its_header_says(out / "SERIESAA.nii.gz", parts[1])


@pytest.mark.parametrize(
    ("vendor", "parts"),
    [
        (SIEMENS, [of_type(letter, "ND") for letter in "PMRI"]),
        (PHILIPS, [of_type(*w) for w in (("PHASE MAP", "P"), ("M_FFE", "M"), ("R_FFE", "R"), "I")]),
        (GE, [{"private": {GE_RAW_TYPE: n}, **of_type("OTHER")} for n in (1, 0, 2, 3)]),
    ],
    ids=["Siemens", "Philips", "GE"],
)
def test_of_magnitude_phase_real_and_imaginary_the_magnitude_goes_on(tmp_path, vendor, parts):
    files = write_parts(tmp_path / "in", parts, **vendor)
    outcome, out = convert(tmp_path, planned(tmp_path / "in"))
    kinds = [(*row[:3], *row[4:]) for row in account(outcome)]  # suffixes differ by vendor
    assert kinds == [
        (*ACCEPTED, "magnitude", 24, 6, []),
        (*EXTRA, "phase", 24, 6, []),
        (*EXTRA, "real", 24, 6, []),
        (*EXTRA, "imaginary", 24, 6, []),
    ]
    assert_every_pixel_is_where_its_header_says(out / "SERIESAA.nii.gz", files[1])


@pytest.mark.parametrize(
    ("vendor", "words"),
    [
        (SIEMENS, ("FAT", "WATER", "OPP_PHASE", "IN_PHASE")),
        (GE, ("FAT", "WATER", "OUT_PHASE", "IN_PHASE")),
        (PHILIPS, ("F", "W", "OP", "IP")),
    ],
    ids=["Siemens", "GE", "Philips"],
)
def test_of_a_dixon_series_the_in_phase_image_goes_on(tmp_path, vendor, words):
    files = write_parts(tmp_path / "in", [of_type("DIXON", word) for word in words], **vendor)
    outcome, out = convert(tmp_path, planned(tmp_path / "in"))
    assert [row[:3] for row in account(outcome)] == [
        (*ACCEPTED, "in_phase"),
        (*EXTRA, "water"),
        (*EXTRA, "opposed_phase"),
        (*EXTRA, "fat"),
    ]
    # dcm2niix takes the word IN_PHASE for a phase image: the voxels are still the file's
    assert_every_pixel_is_where_its_header_says(out / "SERIESAA.nii.gz", files[3])


def test_of_water_and_fat_alone_the_water_goes_on(tmp_path):
    write_parts(tmp_path / "in", [of_type("FAT"), of_type("WATER")], **GE)
    outcome, _ = convert(tmp_path, planned(tmp_path / "in"))
    assert account(outcome) == [
        (*ACCEPTED, "water", "", 12, 6, []),
        (*EXTRA, "fat", "", 12, 6, []),
    ]


def test_a_phase_image_never_stands_in_for_a_magnitude_that_is_incomplete(tmp_path):
    magnitude, _ = write_parts(tmp_path / "in", [of_type("M"), of_type("P")], **SIEMENS)
    magnitude[3].unlink()
    outcome, out = convert(tmp_path, planned(tmp_path / "in"))
    said = ["maybe_incomplete", "missing_images", "uneven_slices"]
    assert account(outcome) == [
        ("rejected", "incomplete", "magnitude", "", 11, 5, said),
        (*EXTRA, "magnitude", "Eq_1", 11, 6, said),
        (*EXTRA, "phase", "", 11, 6, ["maybe_incomplete"]),
    ]
    assert list(out.iterdir()) == []


def test_outputs_that_nothing_tells_apart_are_all_extra(tmp_path):
    write_parts(tmp_path / "in", [{"FlipAngle": 5}, {"FlipAngle": 20}])
    outcome, _ = convert(tmp_path, planned(tmp_path / "in"))
    assert [row[:2] for row in account(outcome)] == [EXTRA, EXTRA]


def test_a_series_of_several_time_points_is_not_one_volume(tmp_path):
    times = [
        {"TemporalPositionIdentifier": t, "AcquisitionNumber": t, "AcquisitionTime": f"10{t:02d}00"}
        for t in (1, 2, 3)
    ]
    write_parts(tmp_path / "in", times, NumberOfTemporalPositions=3, **SIEMENS)
    outcome, out = convert(tmp_path, planned(tmp_path / "in"))
    assert account(outcome) == [("rejected", "not_3d", "magnitude", "", 18, 18, [])]
    assert outcome.series[0]["found"] == "24 x 20 x 6 x 3"
    assert list(out.iterdir()) == []


def test_every_plane_of_a_localizer_goes_on_for_curate_to_judge(tmp_path):
    images = pictures(9)
    for first, iop in ((1, AXIAL), (4, SAGITTAL), (7, CORONAL)):
        write_series(tmp_path / "in", images[first - 1 :][:3], iop=iop, first=first)
    outcome, out = convert(tmp_path, planned(tmp_path / "in"))
    assert account(outcome) == [
        (*ACCEPTED, "magnitude", suffix, 9, 3, ["split"])
        for suffix in ("i00001", "i00004", "i00007")
    ]
    files = sorted((tmp_path / "in").iterdir())
    for entry, first in zip(outcome.series, (0, 3, 6), strict=True):
        assert_every_pixel_is_where_its_header_says(out / entry["file"], files[first:][:3])


def test_an_enhanced_localizer_in_three_planes_is_not_converted(tmp_path):
    write_enhanced(tmp_path / "in/a.dcm", stacks=((AXIAL, 3), (SAGITTAL, 3), (CORONAL, 3)))
    outcome, _ = convert(tmp_path, planned(tmp_path / "in"))
    said = ["orientation_varies"]
    assert account(outcome) == [("rejected", "not_converted", None, None, 1, None, said)]


def test_an_enhanced_instance_is_one_volume_of_its_frames(tmp_path):
    folder = write_enhanced(tmp_path / "in/a.dcm")
    outcome, out = convert(tmp_path, planned(folder))
    assert account(outcome) == [(*ACCEPTED, "magnitude", "", 1, 8, [])]
    assert_every_pixel_is_where_its_header_says(out / "SERIESAA.nii.gz", folder.iterdir())


@pytest.mark.parametrize("numbers", [{}, {"InstanceNumber": 1}], ids=["numbered", "all 1"])
@pytest.mark.parametrize("maker", ["CANON_MEC", "SIEMENS"])
def test_a_series_uid_for_every_slice_gives_the_same_volume_as_one_for_all(
    tmp_path, maker, numbers
):
    write_series(tmp_path / "one/in", Manufacturer=maker)
    own = tuple(f"{UID}3.{i}" for i in range(1, 9))
    write_series(tmp_path / "many/in", SeriesInstanceUID=own, Manufacturer=maker, **numbers)
    _, whole = convert(tmp_path / "one", planned(tmp_path / "one/in"))
    merged = planned(tmp_path / "many/in", warnings=["merged_series_uids"])
    outcome, out = convert(tmp_path / "many", merged)
    assert account(outcome) == [(*ACCEPTED, "magnitude", "", 8, 8, ["merged_series_uids"])]
    name = "SERIESAA.nii.gz"
    assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_of_an_enhanced_instance_with_phase_and_magnitude_the_magnitude_goes_on(tmp_path):
    write_enhanced(
        tmp_path / "in/a.dcm",
        stacks=((AXIAL, 6), (AXIAL, 6)),
        components=("PHASE", "MAGNITUDE"),
        ImageType=["ORIGINAL", "PRIMARY", "MIXED", "MIXED"],
        **PHILIPS,
    )
    outcome, out = convert(tmp_path, planned(tmp_path / "in"))
    assert account(outcome) == [
        (*ACCEPTED, "magnitude", "", 1, 6, []),
        (*EXTRA, "phase", "ph", 1, 6, []),
    ]
    image = np.asanyarray(nib.load(out / "SERIESAA.nii.gz").dataobj)
    upright = image.transpose(2, 1, 0)[:, ::-1]  # rows run from front to back, RAS+ the other way
    np.testing.assert_array_equal(upright, pictures(12)[6:])
