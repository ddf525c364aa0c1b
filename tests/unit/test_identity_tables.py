import datetime

import openpyxl
import pytest

from mrmill.index import FoundStudy, PlanError
from mrmill.plan.identity_tables import OptOut, SiteNames, read_mapping, read_opt_out
from mrmill.plan.spreadsheets import read_cells

HEADER = ("Accession", "Anon Patient ID", "Anonymized Study Date")


def write_csv(path, *rows):
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return path


def write_xlsx(path, *rows, sheets=()):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for cells in sheets:
        book.create_sheet().append(cells)
    book.save(path)
    return path


WRITERS = {".csv": write_csv, ".xlsx": write_xlsx}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """Write a table as CSV and as XLSX."""
    return lambda *rows: WRITERS[request.param](tmp_path / f"table{request.param}", *rows)


def study(accession="", patient="", key="1.2.3", date=""):
    return FoundStudy(key, patient, accession_number=accession, study_date=date)


def test_a_mapping_gives_patient_and_date_by_accession(write):
    mapping = read_mapping(
        write(HEADER, ("A1", "ANON-1", "2019-03-04"), (" A2 ", "ANON_2 ", "20200131")), "dicom"
    )
    assert mapping.of(study("A1")) == SiteNames("line 2", "ANON-1", "2019-03-04")
    assert mapping.of(study("A2 ")) == SiteNames("line 3", "ANON_2", "2020-01-31")
    assert mapping.of(study("A3")) is None
    assert mapping.of(study("")) is None


def test_columns_may_stand_in_any_order_among_others(write):
    header = ("Patient Name", "Anonymized Study Date", "Accession", "Anon Patient ID", "Notes")
    mapping = read_mapping(write(header, ("Canary", "20200131", "A1", "X", "")), "dicom")
    assert mapping.rows == {"A1": SiteNames("line 2", "X", "2020-01-31")}


def test_cells_of_a_spreadsheet_may_be_numbers_and_dates(tmp_path):
    table = write_xlsx(
        tmp_path / "mapping.xlsx",
        HEADER,
        (4711, 17, datetime.date(2020, 1, 31)),
        (4712.0, 18.0, datetime.datetime(2020, 2, 1, 13, 30)),
        ("4713", "19", 20200202),
    )
    rows = read_mapping(table, "dicom").rows
    found = {name: (row.patient_uid, row.anon_study_date) for name, row in rows.items()}
    assert found == {
        "4711": ("17", "2020-01-31"),
        "4712": ("18", "2020-02-01"),
        "4713": ("19", "2020-02-02"),
    }


def test_an_accession_that_was_written_as_a_decimal_number_is_found(tmp_path):
    table = write_csv(tmp_path / "m.csv", HEADER, ("4711.0", "X", "2020-01-31 00:00:00"))
    assert read_mapping(table, "dicom").of(study("4711")).patient_uid == "X"


def test_leading_zeros_are_not_guessed(write):
    mapping = read_mapping(write(HEADER, ("4711", "X", "2020-01-31")), "dicom")
    assert mapping.of(study("0004711")) is None


def test_empty_rows_and_a_row_said_twice_do_no_harm(write):
    row = ("A1", "X", "2020-01-31")
    mapping = read_mapping(write(HEADER, ("", "", ""), row, row), "dicom")
    assert mapping.rows == {"A1": SiteNames("line 3", "X", "2020-01-31")}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("A1", "X", "2020-01-31"), ("A1", "Y", "2020-01-31")], "line 3: line 2 says something"),
        ([("A1", "X", "2020-01-31"), ("A1", "X", "2020-02-01")], "line 3: line 2 says something"),
        ([("A1", "X", "31.01.2020")], "line 2: Anonymized Study Date is no day"),
        ([("A1", "X", "2020-02-30")], "line 2: Anonymized Study Date is no day"),
        ([("A1", "X", "01/02/2020")], "line 2: Anonymized Study Date is no day"),
        ([("A1", "a/../b", "2020-01-31")], "line 2: Anon Patient ID is not 1 to 64"),
        ([("A1", "", "2020-01-31")], "line 2: Anon Patient ID is not 1 to 64"),
        ([("A1", "x" * 65, "2020-01-31")], "line 2: Anon Patient ID is not 1 to 64"),
        ([("A1", "Müller", "2020-01-31")], "line 2: Anon Patient ID is not 1 to 64"),
        ([("A1", "-4711", "2020-01-31")], "line 2: Anon Patient ID is not 1 to 64"),
        ([("A1", "a2", "2020-01-31"), ("A2", "Y", "2020-01-31")], "line 2: Anon Patient ID is the"),
        ([("1.23457E+15", "X", "2020-01-31")], "line 2: Accession is a number"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_its_line_alone(write, rows, said):
    with pytest.raises(PlanError) as error:
        read_mapping(write(HEADER, *rows), "dicom")
    assert said in str(error.value)
    cells = {cell for row in rows for cell in row if len(cell) > 2}
    assert not any(cell in str(error.value) for cell in cells)


def test_a_number_of_which_the_spreadsheet_has_lost_digits_is_refused(tmp_path):
    rows = [(10**15 - 1, "X", "2020-01-31"), (12345678901234567, "Y", "2020-01-31")]
    with pytest.raises(PlanError, match=r"line 3: Accession is a number") as error:
        read_mapping(write_xlsx(tmp_path / "m.xlsx", HEADER, *rows), "dicom")
    assert "line 2" not in str(error.value)


def test_of_many_mistakes_the_first_are_named_and_the_others_counted(write):
    rows = [(f"A{n}", "no id", "2020-01-31") for n in range(50)]
    with pytest.raises(PlanError, match="and 30 more") as error:
        read_mapping(write(HEADER, *rows), "dicom")
    assert "line 21:" in str(error.value)
    assert "line 22:" not in str(error.value)


def test_a_missing_column_is_named(write):
    with pytest.raises(PlanError, match=r"has no column Anonymized Study Date\."):
        read_mapping(write(HEADER[:2], ("A1", "X")), "dicom")


@pytest.mark.parametrize("name", ["m.csv", "m.xlsx"])
def test_a_missing_table_is_named(tmp_path, name):
    with pytest.raises(PlanError, match=f"identity.mapping .*{name}: No such file"):
        read_mapping(tmp_path / name, "dicom")


@pytest.mark.parametrize("name", ["m.csv", "m.xlsx"])
def test_a_file_of_another_kind_is_no_table(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe\x00PK\x03\x04 nothing of the kind")
    with pytest.raises(PlanError, match=f"{name} is no"):
        read_mapping(tmp_path / name, "dicom")


def test_an_empty_workbook_lacks_its_columns(tmp_path):
    with pytest.raises(PlanError, match="has no column Accession"):
        read_mapping(write_xlsx(tmp_path / "m.xlsx"), "dicom")


def test_a_second_sheet_with_cells_is_refused_and_an_empty_one_is_not(tmp_path):
    row = ("A1", "X", "2020-01-31")
    one = write_xlsx(tmp_path / "one.xlsx", HEADER, row, sheets=[()])
    assert len(read_mapping(one, "dicom").rows) == 1
    two = write_xlsx(tmp_path / "two.xlsx", HEADER, row, sheets=[("A2", "Y", "2020-01-31")])
    with pytest.raises(PlanError, match="2 sheets"):
        read_mapping(two, "dicom")


def test_lines_of_a_spreadsheet_are_those_a_person_sees(tmp_path):
    table = write_xlsx(tmp_path / "m.xlsx", (), ("a", "b"), (), ("1", "2"))
    assert list(read_cells(table, "t", ("a",))) == [("line 4", {"a": "1", "b": "2"})]


@pytest.mark.parametrize("read", [read_mapping, read_opt_out])
def test_a_release_takes_no_tables_of_identities(tmp_path, read):
    with pytest.raises(PlanError, match=r"input\.kind: release has neither"):
        read(tmp_path / "none.csv", "release")


@pytest.mark.parametrize(
    ("header", "row"), [(("PatientID",), ("P1",)), (("AccessionNumber", "Why"), ("A1", ""))]
)
def test_one_column_is_enough_to_opt_out(write, header, row):
    opt_out = read_opt_out(write(header, row), "dicom")
    assert opt_out.covers(study("A1", "P1"))
    assert not opt_out.covers(study("A2", "P2"))


def test_patient_or_accession_of_a_row_keep_a_study_out(write):
    opt_out = read_opt_out(write(("PatientID", "AccessionNumber"), (" P1 ", "A9 ")), "dicom")
    assert opt_out.covers(study("A1", "P1"))
    assert opt_out.covers(study("A9", "P2"))
    assert not opt_out.covers(study("A1", "P2"))


def test_nobody_opts_out_by_an_empty_cell(write):
    opt_out = read_opt_out(write(("PatientID", "AccessionNumber"), ("P1", ""), ("", "A1")), "dicom")
    assert not opt_out.covers(study("", "", key="1.2.3"))


def test_each_of_several_accession_numbers_counts(write):
    opt_out = read_opt_out(write(("AccessionNumber",), ("A2",)), "dicom")
    assert opt_out.covers(study("A1\\A2"))


def test_a_study_with_two_numbers_and_two_site_names_has_none(write):
    rows = [("A1", "X", "2020-01-31"), ("A2", "Y", "2020-01-31"), ("A3", "X", "2020-01-31")]
    mapping = read_mapping(write(HEADER, *rows), "dicom")
    assert mapping.of(study("A1\\A2")) is None
    assert mapping.of(study("A1\\A3")).patient_uid == "X"


@pytest.mark.parametrize(
    ("key", "patient", "name"),
    [
        ("sub-1/ses-2", "sub-1", "sub-1/ses-2"),
        ("sub-1/ses-2", "sub-1", "ses-2"),
        ("sub-1/", "sub-1", "sub-1"),
        ("/case7", "", "case7"),
        ("a/b/c", "a/b", "c"),
    ],
)
def test_a_nifti_study_goes_by_its_id_alone_or_behind_the_patients(write, key, patient, name):
    opt_out = read_opt_out(write(("AccessionNumber",), (name,)), "nifti")
    assert opt_out.covers(study("", patient, key=key))


def test_without_either_column_nobody_could_opt_out(write):
    with pytest.raises(PlanError, match="neither a column PatientID nor AccessionNumber"):
        read_opt_out(write(("Patient ID",), ("P1",)), "dicom")


def test_an_opt_out_in_a_column_of_another_name_is_no_opt_out(write):
    with pytest.raises(PlanError, match="line 3: neither PatientID nor AccessionNumber") as error:
        read_opt_out(write(("PatientID", "Accession"), ("P1", ""), ("", "A2")), "dicom")
    assert "A2" not in str(error.value)


def test_an_opt_out_table_that_was_cut_to_nothing_is_refused(tmp_path):
    (tmp_path / "out.csv").write_bytes(b"")
    for table in (tmp_path / "out.csv", write_xlsx(tmp_path / "out.xlsx")):
        with pytest.raises(PlanError, match="is empty"):
            read_opt_out(table, "dicom")


def test_rows_whose_id_no_study_has_are_named_and_near_misses_told_apart(write):
    rows = [("P1", ""), ("471", ""), ("", "A1"), ("", "x9"), ("P1", "CT7"), ("P3", "A1")]
    opt_out = read_opt_out(write(("PatientID", "AccessionNumber"), *rows), "dicom")
    studies = [study("A1", "P1"), study("X9", "00471")]
    # CT7 is another study of a patient who is kept out anyway; of P3 only one study is
    assert opt_out.unmatched(studies) == {"line 3": True, "line 5": True, "line 7": False}
    assert opt_out.unmatched([study("A5", "P5")])["line 2"] is False


def test_no_table_keeps_nobody_out():
    assert not OptOut().covers(study("", ""))
    assert OptOut().unmatched([study("A1", "P1")]) == {}
