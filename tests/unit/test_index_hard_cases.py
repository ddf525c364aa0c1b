"""The hard cases of grouping: each rule holds where it should, and nowhere else."""

import pytest
from indexed import entries_of, index, skipped, write_csv
from tiny_dicom import MR, write_dicom, write_study

from mrmill.index import Merge, PlanError
from mrmill.index import buckets as index_buckets
from mrmill.index import parts as index_parts

ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"


@pytest.fixture
def export(tmp_path):
    return tmp_path / "export"


def studies_of(found, known=()):
    return {study.key: study for study in found.studies(known)}


def rejects_of(found):
    return {study.key: study.reject for study in found.studies()}


# ------------------------------------------------------------------ numbers are no keys


def test_one_series_number_and_accession_in_two_studies_are_two_series(export, tmp_path):
    for study, date in (("1.1", "20240131"), ("1.2", "20240201")):
        for i in range(1, 5):
            more = {"SeriesNumber": 4, "AccessionNumber": "A", "StudyDate": date}
            write_dicom(export / f"{study}-{i}", study, f"{study}.4", f"{study}.4.{i}", **more)
    found = index(export, tmp_path)
    entries = entries_of(found)
    assert {uid: [s["series_key"] for s in e["series"]] for uid, e in entries.items()} == {
        "1.1": ["1.1.4"],
        "1.2": ["1.2.4"],
    }
    assert list(found.merges()) == []


def test_a_study_without_any_image_still_has_its_series(export, tmp_path):
    write_dicom(export / "1", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    (series,) = entries_of(index(export, tmp_path))["1.1"]["series"]
    assert series["reject"] == "no_images"


# ------------------------------------------------------------------ two patients in a folder


def write_mixed(export):
    write_study(export / "shared", "1.1", "P1", n_series=1)
    write_dicom(export / "shared" / "s1" / "stray", "1.2", "1.2.1", "1.2.1.1", "P2")
    write_study(export / "own", "1.2", "P2", n_series=1)
    write_study(export / "third", "1.3", "P3", n_series=1)


def test_studies_that_share_a_folder_with_another_patient_are_quarantined(export, tmp_path):
    write_mixed(export)
    found = index(export, tmp_path)
    assert rejects_of(found) == {"1.1": "quarantined", "1.2": "quarantined", "1.3": ""}
    assert found.warnings["quarantined"] == 2
    assert len(entries_of(found)["1.2"]["series"]) == 1  # in the ledger with its reason


def test_where_a_patient_is_in_doubt_is_listed_file_by_folder(export, tmp_path):
    write_mixed(export)
    found = index(export, tmp_path)
    found.studies()
    listed = list(found.mixed())
    assert {row.StudyInstanceUID for row in listed} == {"1.1", "1.2"}
    for row in listed:
        assert row.n_files > 0
        assert (export / row.folder).is_dir()


def test_a_flat_export_can_be_accepted_as_it_is(export, tmp_path):
    write_mixed(export)
    found = index(export, tmp_path, mixed_folders="accept")
    assert set(rejects_of(found).values()) == {""}
    assert found.warnings["quarantined"] == 0


@pytest.mark.parametrize(
    ("first", "second", "quarantined"),
    [
        ({"PatientID": "P1"}, {"PatientID": "P1"}, False),
        ({"PatientID": "P1"}, {"PatientID": "P2"}, True),
        ({"PatientID": "P1"}, {"PatientID": None}, True),  # whose is it?
        ({"PatientID": None}, {"PatientID": None}, True),
        ({"IssuerOfPatientID": "A"}, {"IssuerOfPatientID": "B"}, True),
        ({"IssuerOfPatientID": "A"}, {"IssuerOfPatientID": "A"}, False),
    ],
)
def test_a_patient_is_an_id_and_its_issuer(export, tmp_path, first, second, quarantined):
    write_dicom(export / "1", "1.1", "1.1.1", "1.1.1.1", **first)
    write_dicom(export / "2", "1.2", "1.2.1", "1.2.1.1", **second)
    expected = "quarantined" if quarantined else ""
    assert set(rejects_of(index(export, tmp_path)).values()) == {expected}


def test_a_study_that_says_less_in_some_files_is_no_other_patient(export, tmp_path):
    write_dicom(export / "1", instance="1", IssuerOfPatientID="A")
    write_dicom(export / "2", instance="2", patient=None)
    assert rejects_of(index(export, tmp_path)) == {"1.1": ""}


def test_a_study_of_two_patients_is_called_that_and_quarantines_its_neighbour(export, tmp_path):
    write_dicom(export / "1", "1.1", instance="1", patient="P1")
    write_dicom(export / "2", "1.1", instance="2", patient="P2")
    write_dicom(export / "3", "1.2", "1.2.1", "3", patient="P1")
    assert rejects_of(index(export, tmp_path)) == {"1.1": "mixed_patients", "1.2": "quarantined"}


def test_folders_are_told_apart_in_every_part(export, tmp_path, monkeypatch):
    monkeypatch.setattr(index_parts, "PART_ROWS", 2)
    write_mixed(export)
    assert rejects_of(index(export, tmp_path)) == {
        "1.1": "quarantined",
        "1.2": "quarantined",
        "1.3": "",
    }


# ------------------------------------------------------------------ a scanner is restarted


def write_restarted(export, **second):
    write_study(export / "a", "1.5", "P1", n_series=1, AccessionNumber="A")
    write_study(export / "b", "1.9", "P1", n_series=2, **{"AccessionNumber": "A", **second})


def test_two_studies_of_one_accession_patient_and_day_are_one(export, tmp_path, monkeypatch):
    monkeypatch.setattr(index_buckets, "BUCKET_ROWS", 1)
    write_restarted(export)
    write_study(export / "c", "1.7", "P2")
    found = index(export, tmp_path)
    studies = studies_of(found)
    assert studies.keys() == {"1.5", "1.7"}
    assert (studies["1.5"].n_series, studies["1.5"].n_files) == (3, 9)
    entries = entries_of(found)
    assert [series["series_key"] for series in entries["1.5"]["series"]] == [
        "1.5.1",
        "1.9.1",
        "1.9.2",
    ]
    assert found.warnings["merged_accession"] == 1
    assert list(found.merges()) == [Merge("merged_accession", "1.5", "1.9", "1.5", 6)]


@pytest.mark.parametrize(
    "other",
    [
        {"AccessionNumber": "B"},
        {"StudyDate": "20240201"},
        {"StudyDate": None},
        {"PatientID": "P2"},
        {"PatientID": None},
        {"IssuerOfPatientID": "elsewhere"},
    ],
)
def test_studies_that_differ_in_any_of_the_three_stay_two(export, tmp_path, other):
    write_restarted(export, **other)
    found = index(export, tmp_path)
    assert studies_of(found).keys() == {"1.5", "1.9"}
    assert list(found.merges()) == []


@pytest.mark.parametrize("same", [{"AccessionNumber": None}, {"StudyDate": None}])
def test_what_both_studies_miss_they_do_not_share(export, tmp_path, same):
    write_study(export / "a", "1.5", "P1", **{"AccessionNumber": "A", **same})
    write_study(export / "b", "1.9", "P1", **{"AccessionNumber": "A", **same})
    assert studies_of(index(export, tmp_path)).keys() == {"1.5", "1.9"}


def test_merging_by_accession_can_be_switched_off(export, tmp_path):
    write_restarted(export)
    found = index(export, tmp_path, one_study_per_accession=False)
    assert studies_of(found).keys() == {"1.5", "1.9"}


@pytest.mark.parametrize(
    ("known", "keys"),
    [
        ({"1.9"}, {"1.9"}),  # planned first: what is planned is never given up
        ({"1.5", "1.9"}, {"1.5", "1.9"}),  # planned apart
        ({"1.1"}, {"1.5"}),
    ],
)
def test_what_is_planned_keeps_its_study_when_more_is_found(export, tmp_path, known, keys):
    write_restarted(export)
    found = index(export, tmp_path)
    assert studies_of(found, known).keys() == keys
    entries = entries_of(found, known)
    assert entries.keys() == keys
    assert sum(len(entry["series"]) for entry in entries.values()) == 3


def test_a_merged_study_is_rejected_if_one_of_its_parts_is(export, tmp_path):
    write_restarted(export)
    write_dicom(export / "b" / "s1" / "stray", "1.6", "1.6.1", "1.6.1.1", "P2")
    assert rejects_of(index(export, tmp_path)) == {"1.5": "quarantined", "1.6": "quarantined"}


def test_restarted_numbering_does_not_make_slices_of_scouts(export, tmp_path):
    for study in ("1.5", "1.6", "1.7"):  # each with one image in series 1
        write_dicom(export / study, study, f"{study}.1", f"{study}.1.1", AccessionNumber="A")
    found = index(export, tmp_path)
    assert len(entries_of(found)["1.5"]["series"]) == 3


# ------------------------------------------------------------------ a series UID per slice


def write_slices(folder, numbers, series_number=7, **more):
    for n in numbers:
        write_dicom(
            folder / str(n),
            "1.1",
            f"1.1.{n}",
            f"1.1.{n}.1",
            **{"SeriesNumber": series_number, **more},
        )


def test_series_of_one_slice_each_become_one_flagged_series(export, tmp_path):
    write_slices(export, range(10, 14))
    write_slices(export, [30], series_number=8)
    found = index(export, tmp_path)
    merged, alone = entries_of(found)["1.1"]["series"]
    assert (merged["series_key"], merged["files"]) == ("1.1.10", ["10", "11", "12", "13"])
    assert (merged["warnings"], merged["n_sop"]) == (["merged_series_uids"], 4)
    assert (alone["series_key"], alone["files"], "warnings" in alone) == ("1.1.30", ["30"], False)
    assert found.warnings["merged_series_uids"] == 1
    assert list(found.merges()) == [
        Merge("merged_series_uids", "1.1", f"1.1.{n}", "1.1.10", 1) for n in (11, 12, 13)
    ]


def test_entries_asked_for_twice_name_every_merge_once(export, tmp_path):
    write_slices(export, range(10, 14))
    found = index(export, tmp_path)
    entries = entries_of(found)
    merges = list(found.merges())
    assert entries_of(found) == entries
    assert list(found.merges()) == merges
    assert len(merges) == 3


def test_copies_of_slices_are_dropped_after_merging(export, tmp_path):
    write_slices(export / "a", range(10, 14))
    write_slices(export / "b", range(10, 13))
    found = index(export, tmp_path)
    (series,) = entries_of(found)["1.1"]["series"]
    assert (series["n_sop"], found.dropped["duplicate"]) == (4, 3)


@pytest.mark.parametrize(
    "apart",
    [
        {"SeriesNumber": None},
        {"SOPClassUID": ENHANCED_MR, "NumberOfFrames": 30},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"},
    ],
)
def test_single_images_that_are_no_slices_stay_apart(export, tmp_path, apart):
    write_slices(export, range(10, 14), **apart)
    found = index(export, tmp_path)
    assert len(entries_of(found)["1.1"]["series"]) == 4
    assert list(found.merges()) == []


def test_two_single_images_are_too_few_to_be_a_stack(export, tmp_path):
    write_slices(export, [10, 11])
    assert len(entries_of(index(export, tmp_path))["1.1"]["series"]) == 2


def test_a_number_that_also_stands_for_a_whole_series_merges_nothing(export, tmp_path):
    write_slices(export, range(10, 14))
    for i in (1, 2):
        write_dicom(export / f"whole{i}", "1.1", "1.1.20", f"1.1.20.{i}", SeriesNumber=7)
    assert len(entries_of(index(export, tmp_path))["1.1"]["series"]) == 5


# ------------------------------------------------------------------ what is lost or shared


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-40])


def test_unreadable_files_among_those_of_one_series_are_held_against_it(export, tmp_path):
    write_study(export / "a", "1.1", "P1", n_series=2, n_files=4)
    for n in (2, 3):
        cut_short(export / "a" / "s1" / f"{n}.dcm")
    found = index(export, tmp_path)
    broken, whole = entries_of(found)["1.1"]["series"]
    assert (broken["n_unreadable"], broken["n_sop"]) == (2, 2)
    assert "n_unreadable" not in whole
    assert found.warnings["unreadable_files"] == 0
    assert len(skipped(found)) == 2


@pytest.mark.parametrize(("name", "counts"), [("00017.dcm", True), ("DONE", False)])
def test_an_empty_file_counts_if_it_is_named_like_a_slice(export, tmp_path, name, counts):
    write_study(export / "a", "1.1", "P1", n_series=1)
    (export / "a" / "s1" / name).touch()
    (series,) = entries_of(index(export, tmp_path))["1.1"]["series"]
    assert series.get("n_unreadable") == (1 if counts else None)


def test_unreadable_files_that_could_be_of_any_series_are_counted_apart(export, tmp_path):
    for n in range(1, 5):
        write_dicom(export / f"{n}.dcm", series=f"1.1.{n % 2}", instance=f"1.{n}")
    cut_short(export / "4.dcm")
    (export / "alone").mkdir()
    (export / "alone" / "5.dcm").write_bytes((export / "4.dcm").read_bytes())
    found = index(export, tmp_path)
    entries = entries_of(found)["1.1"]["series"]
    assert all("n_unreadable" not in series for series in entries)
    assert found.warnings["unreadable_files"] == 2


def test_a_series_that_stands_in_two_studies_is_pointed_out(export, tmp_path):
    write_study(export / "a", "1.1", "P1", n_series=2)
    for n in (1, 2, 3):  # sent again under another patient
        write_dicom(export / "b" / str(n), "1.2", "1.2.1", f"1.1.1.{n}", "P2")
    write_study(export / "c", "1.3", "P3")
    found = index(export, tmp_path)
    assert studies_of(found).keys() == {"1.1", "1.2", "1.3"}
    assert found.warnings["shared_instances"] == 2


def test_an_ordinary_export_gives_no_warning(export, tmp_path):
    for n in range(3):
        write_study(export / str(n), f"1.{n}", f"P{n}")
    found = index(export, tmp_path)
    entries_of(found)
    assert (+found.warnings, list(found.merges())) == ({}, [])


# ------------------------------------------------------------------ a table of series


def index_with(export, tmp_path, *rows):
    return index(export, tmp_path, series_table=write_csv(tmp_path / "series.csv", rows))


def row(series, **more):
    return {"SeriesInstanceUID": series, "StudyDate": "", **more}


@pytest.mark.parametrize("date", ["20200101", "2020-01-01"])
def test_a_date_in_the_table_is_that_of_the_whole_study(export, tmp_path, date):
    write_study(export / "a", "1.1", "P1")
    write_study(export / "b", "1.2", "P2")
    found = index_with(export, tmp_path, row("1.1.2", StudyDate=date), row("1.2.1"))
    assert {uid: s.study_date for uid, s in studies_of(found).items()} == {
        "1.1": "20200101",
        "1.2": "20240131",
    }
    entries = entries_of(found)
    assert [s["table"] for s in entries["1.1"]["series"]] == [{"StudyDate": "20200101"}] * 2
    assert [s["table"] for s in entries["1.2"]["series"]] == [{}, {}]


def test_dates_of_the_table_decide_what_is_one_examination(export, tmp_path):
    write_restarted(export)
    apart = index_with(export, tmp_path, row("1.9.1", StudyDate="20240201"))
    assert studies_of(apart).keys() == {"1.5", "1.9"}


def test_one_study_with_two_dates_in_the_table_is_refused(export, tmp_path):
    write_study(export / "a", "1.1", "P1")
    rows = row("1.1.1", StudyDate="20200101"), row("9.9"), row("1.1.2", StudyDate="20200102")
    with pytest.raises(PlanError, match="rows 1, 3") as error:
        index_with(export, tmp_path, *rows).studies()
    assert "1.1.2" not in str(error.value)


def test_a_date_that_is_no_day_is_refused_with_its_line(export, tmp_path):
    write_study(export / "a", "1.1", "P1")
    with pytest.raises(PlanError, match=r"line 3: StudyDate is no day"):
        index_with(export, tmp_path, row("1.1.1"), row("1.1.2", StudyDate="31.01.2024"))


def test_rows_of_the_table_without_a_series_are_counted(export, tmp_path):
    write_study(export / "a", "1.1", "P1")
    found = index_with(export, tmp_path, row("1.1.1"), row("1.1.1 typo"), row("7.7"))
    found.studies()
    assert found.warnings["unmatched_table_rows"] == 2


def test_a_row_for_any_slice_speaks_for_the_merged_series(export, tmp_path):
    write_slices(export, range(10, 14))
    found = index_with(export, tmp_path, row("1.1.12", modality="T1w"))
    (series,) = entries_of(found)["1.1"]["series"]
    assert series["table"] == {"modality": "T1w"}


def test_the_sop_class_of_merged_slices_is_kept(export, tmp_path):
    write_slices(export, range(10, 14))
    (series,) = entries_of(index(export, tmp_path))["1.1"]["series"]
    assert series["sop_class"] == MR
