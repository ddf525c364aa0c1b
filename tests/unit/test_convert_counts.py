"""First and last slices that are missing, which only counts in the headers can tell."""

import pytest
from tiny_series import (
    GE_LOCATIONS,
    PHILIPS_SLICES,
    SIEMENS_PROTOCOL,
    account,
    convert,
    pictures,
    planned,
    verdicts,
    write_parts,
    write_series,
)

FIRST, LAST, EVERY_OTHER = set(range(1, 8)), set(range(7)), set(range(0, 8, 2))

PROTOCOL = {
    "2D": b"sSliceArray.lSize\t = \t8\nsKSpace.lImagesPerSlab\t=\t32\nsKSpace.ucDimension = 2\n",
    "3D": b"sSliceArray.lSize\t = \t1\nsKSpace.lImagesPerSlab = 8\nsKSpace.ucDimension = 0x4\n",
}

#: Where each vendor says that a volume has 8 slices.
COUNTS = {
    "GE": {"private": {GE_LOCATIONS: 8}},
    "Philips": {"private": {PHILIPS_SLICES: 8}, "Manufacturer": "Philips"},
    "Siemens 2D": {"private": {SIEMENS_PROTOCOL: PROTOCOL["2D"]}, "Manufacturer": "SIEMENS"},
    "Siemens 3D": {"private": {SIEMENS_PROTOCOL: PROTOCOL["3D"]}, "Manufacturer": "SIEMENS"},
    "acquisition": {"ImagesInAcquisition": 8},
}


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("keep", [FIRST, EVERY_OTHER], ids=["no first", "every other"])
def test_a_count_that_the_numbering_bears_out_makes_the_series_incomplete(tmp_path, count, keep):
    last = {7} if keep is EVERY_OTHER else set()  # numbered 8: there were as many
    folder = write_series(tmp_path / "in", keep=keep | last, **count)
    outcome, out = convert(tmp_path, planned(folder))
    assert verdicts(outcome) == [("SERIESAA", "rejected", "incomplete")]
    (entry,) = outcome.series
    n_here = len(keep | last)
    assert (entry["found"], entry["limit"]) == (
        f"{n_here} pictures",
        "8 pictures in the header",
    )
    assert (entry["n_sop"], entry["warnings"]) == (n_here, [])
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
def test_a_single_count_is_a_warning(tmp_path, count):
    folder = write_series(tmp_path / "in", keep=LAST, **count)
    outcome, _ = convert(tmp_path, planned(folder))
    (entry,) = outcome.series
    assert (entry["state"], entry["n_sop"], entry["n_slices"]) == ("accepted", 7, 7)
    # of some counts dcm2niix says so too
    assert {"maybe_incomplete"} <= set(entry["warnings"]) <= {"maybe_incomplete", "missing_images"}


def test_a_missing_last_slice_is_found_by_two_counts(tmp_path):
    folder = write_series(tmp_path / "in", keep=LAST, ImagesInAcquisition=8, **COUNTS["GE"])
    outcome, _ = convert(tmp_path, planned(folder))
    assert verdicts(outcome) == [("SERIESAA", "rejected", "incomplete")]


def test_a_numbering_that_starts_late_is_a_warning(tmp_path):
    outcome, _ = convert(tmp_path, planned(write_series(tmp_path / "in", keep=FIRST)))
    said = ["maybe_incomplete"]
    assert account(outcome) == [("accepted", "", "magnitude", "", 7, 7, said)]


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
def test_a_complete_series_has_no_warning(tmp_path, count):
    outcome, _ = convert(tmp_path, planned(write_series(tmp_path / "in", **count)))
    assert account(outcome) == [("accepted", "", "magnitude", "", 8, 8, [])]


def test_slices_of_a_volume_are_counted_once_for_every_echo(tmp_path):
    echoes = [{"EchoTime": te, "EchoNumbers": n} for n, te in ((1, 10), (2, 30))]
    slices = {"private": {GE_LOCATIONS: 6}}
    whole = write_parts(tmp_path / "whole", echoes, **slices)
    outcome, _ = convert(tmp_path / "a", planned(tmp_path / "whole"))
    assert [row[:2] for row in account(outcome)] == [
        ("accepted", ""),
        ("rejected", "extra_output"),
    ]
    assert outcome.series[0]["warnings"] == ["split"]
    for echo in whole:
        echo[0].unlink()
    outcome, _ = convert(tmp_path / "b", planned(tmp_path / "whole"))
    assert verdicts(outcome) == [("SERIESAA", "rejected", "incomplete")]
    assert outcome.series[0]["limit"] == "12 pictures in the header"


@pytest.mark.parametrize(
    "tags",
    [
        {"InstanceNumber": 7},  # the same everywhere
        {"InstanceNumber": None},
        {"private": {SIEMENS_PROTOCOL: b"sSliceArray.lSize = many"}, "Manufacturer": "SIEMENS"},
    ],
    ids=["one number", "no number", "no count"],
)
def test_counts_that_count_nothing_are_left_alone(tmp_path, tags):
    folder = write_series(tmp_path / "in", pictures(), **tags)
    outcome, _ = convert(tmp_path, planned(folder))
    assert account(outcome) == [("accepted", "", "magnitude", "", 8, 8, [])]


def test_a_count_that_differs_from_file_to_file_is_none(tmp_path):
    folder = write_series(tmp_path / "in", ImagesInAcquisition=(*[40] * 6, *[50] * 6))
    outcome, _ = convert(tmp_path, planned(folder))
    assert account(outcome) == [("accepted", "", "magnitude", "", 8, 8, ["missing_images"])]


def test_files_that_could_not_be_read_at_planning_make_the_series_incomplete(tmp_path):
    series = planned(write_series(tmp_path / "in"), n_unreadable=2)
    outcome, _ = convert(tmp_path, series)
    assert account(outcome) == [("rejected", "incomplete", None, None, 8, None, [])]
    (entry,) = outcome.series
    assert (entry["found"], entry["limit"]) == ("2 files cannot be read", "all files readable")
