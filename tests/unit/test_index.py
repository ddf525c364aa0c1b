import json
import os
from pathlib import Path

import pytest
from indexed import entries_of, index, skipped, write_csv
from tiny_dicom import MR, write_dicom, write_study

from mrmill.index import PlanError
from mrmill.index import parts as index_parts


@pytest.fixture
def export(tmp_path):
    return tmp_path / "export"


# ------------------------------------------------------------------ what a DICOM file is


def test_files_are_grouped_by_uid_over_all_folders(export, tmp_path):
    write_dicom(export / "a" / "1", "1.1", "1.1.1", "1.1.1.1")
    write_dicom(export / "b" / "deep" / "2.dcm", "1.1", "1.1.1", "1.1.1.2")
    write_dicom(export / "b" / "3.IMA", "1.2", "1.1.1", "1.2.1.1")  # same series UID, other study
    studies = entries_of(index(export, tmp_path))
    assert studies.keys() == {"1.1", "1.2"}
    (series,) = studies["1.1"]["series"]
    assert series["folder"] == str(export)
    assert series["files"] == ["a/1", "b/deep/2.dcm"]
    assert (series["n_sop"], series["sop_class"], series["kind"]) == (2, MR, "dicom")
    (other,) = studies["1.2"]["series"]
    assert (other["folder"], other["files"]) == (str(export / "b"), ["3.IMA"])


def test_whatever_is_no_usable_dicom_is_listed_with_its_reason(export, tmp_path):
    good = write_dicom(export / "good.dcm")
    (export / "notes.txt").write_text("hello" * 100)
    (export / "short.txt").write_text("x")
    (export / "empty.dcm").touch()
    (export / "half.dcm").write_bytes(good.read_bytes()[:-40])
    (export / "garbage.dcm").write_bytes(bytes(128) + b"DICM" + b"\xe1\x7a\x13\xd4" * 99)
    write_dicom(export / "nostudy.dcm", study=None)
    write_dicom(export / "noseries.dcm", series=None, instance="1.9")
    write_dicom(export / "DICOMDIR", SOPClassUID="1.2.840.10008.1.3.10")
    (export / "pipe").symlink_to(export / "nowhere")
    (export / "loop").symlink_to(export)
    found = index(export, tmp_path)
    assert skipped(found) == [
        ("DICOMDIR", "dicomdir"),
        ("empty.dcm", "unreadable"),
        ("garbage.dcm", "unreadable"),
        ("half.dcm", "unreadable"),
        ("loop", "linked_folder"),
        ("noseries.dcm", "no_uid"),
        ("nostudy.dcm", "no_uid"),
        ("notes.txt", "not_dicom"),
        ("pipe", "not_a_file"),
        ("short.txt", "not_dicom"),
    ]
    assert found.files == 9
    assert [study.n_files for study in found.studies()] == [1]


def test_a_dicom_file_without_preamble_is_recognised(export, tmp_path):
    path = write_dicom(export / "old.dcm")
    path.write_bytes(path.read_bytes()[132:])
    assert [study.key for study in index(export, tmp_path).studies()] == ["1.1"]


def test_names_that_are_no_utf8_survive(export, tmp_path):
    strange = os.fsdecode(b"HASTA_\xddSIM")
    write_dicom(export / strange / f"{strange}.dcm", PatientID=" P1 ")
    (study,) = index(export, tmp_path).studies()
    (series,) = json.loads(json.dumps(entries_of(index(export, tmp_path))))["1.1"]["series"]
    assert study.patient_id == "P1"
    assert Path(series["folder"], series["files"][0]).is_file()


def test_patient_ids_in_bytes_of_unknown_encoding_stay_apart(export, tmp_path):
    for study, raw in (("1.1", b"P\xfd"), ("1.2", b"P\xfe")):
        path = write_dicom(export / study, study, f"{study}.1", f"{study}.1.1", patient="P#")
        path.write_bytes(path.read_bytes().replace(b"P#", raw))
    assert len({study.patient_id for study in index(export, tmp_path).studies()}) == 2


# ------------------------------------------------------------------ reading once


@pytest.fixture
def reads(monkeypatch):
    paths = []
    read = index_parts.read_header
    monkeypatch.setattr(index_parts, "read_header", lambda path: paths.append(path) or read(path))
    return paths


def test_nothing_is_read_twice(export, tmp_path, reads):
    write_study(export / "a", "1.1", "P1")
    (export / "a" / "notes.txt").write_text("hello")
    first = entries_of(index(export, tmp_path))
    assert len(reads) == 7
    again = index(export, tmp_path)
    assert entries_of(again) == first
    assert (len(reads), again.read, again.files) == (7, 0, 7)
    assert len(list((tmp_path / "index").iterdir())) == 1


def test_only_new_and_changed_files_are_read(export, tmp_path, reads):
    write_study(export / "a", "1.1", "P1", n_series=1)
    index(export, tmp_path)
    reads.clear()
    write_dicom(export / "a" / "s1" / "new.dcm", "1.1", "1.1.1", "1.1.1.4")
    write_dicom(export / "a" / "s1" / "1.dcm", "1.1", "1.1.7", "1.1.7.1", AccessionNumber="longer")
    (export / "a" / "s1" / "2.dcm").unlink()
    found = index(export, tmp_path)
    assert {Path(path).name for path in reads} == {"new.dcm", "1.dcm"}
    files = sorted(series["files"] for series in entries_of(found)["1.1"]["series"])
    assert files == [["1.dcm"], ["3.dcm", "new.dcm"]]


def test_a_folder_that_vanished_no_longer_counts_and_comes_back_unread(export, tmp_path, reads):
    write_study(export / "a", "1.1", "P1")
    write_study(export / "b", "1.2", "P2")
    index(export, tmp_path)
    (export / "b").rename(tmp_path / "b")
    assert [study.key for study in index(export, tmp_path).studies()] == ["1.1"]
    (tmp_path / "b").rename(export / "b")
    reads.clear()
    assert len(index(export, tmp_path).studies()) == 2
    assert reads == []


def test_a_killed_index_goes_on_where_it_was(export, tmp_path, reads, monkeypatch):
    for n in range(5):
        write_study(export / str(n), f"1.{n}", f"P{n}", n_series=1, n_files=2)
    monkeypatch.setattr(index_parts, "PART_ROWS", 4)
    expected = entries_of(index(export, tmp_path / "uninterrupted"))
    reads.clear()
    write = index_parts.Parts.flush

    def die_at_the_second_part(parts):
        if parts._count == 1:
            raise KeyboardInterrupt
        write(parts)

    with monkeypatch.context() as patch:
        patch.setattr(index_parts.Parts, "flush", die_at_the_second_part)
        with pytest.raises(KeyboardInterrupt):
            index(export, tmp_path)
    (tmp_path / "index" / "part-00001.writing").write_bytes(b"half")
    reads.clear()
    assert entries_of(index(export, tmp_path)) == expected
    assert len(reads) == 6  # the four files of the first part are known


def test_a_file_that_could_not_be_opened_is_tried_again(export, tmp_path, monkeypatch):
    write_study(export / "a", "1.1", "P1", n_series=1)
    read = index_parts.read_header

    def disk_trouble(path):
        if path.endswith("2.dcm"):
            raise OSError(5, "Input/output error")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(index_parts, "read_header", disk_trouble)
        found = index(export, tmp_path)
    assert (skipped(found), found.studies()[0].n_files) == ([("2.dcm", "unreadable")], 2)
    found = index(export, tmp_path)
    assert (skipped(found), found.studies()[0].n_files, found.read) == ([], 3, 1)


def test_processes_give_the_same_parts_as_one(export, tmp_path, monkeypatch):
    for n in range(4):
        write_study(export / str(n), f"1.{n}", f"P{n}", n_series=1, n_files=3)
    monkeypatch.setattr(index_parts, "TASK_FILES", 2)  # folders larger than a task, too
    index(export, tmp_path / "one")
    index(export, tmp_path / "two", workers=2)
    (one,) = (tmp_path / "one" / "index").iterdir()
    (two,) = (tmp_path / "two" / "index").iterdir()
    assert one.read_bytes() == two.read_bytes()


# ------------------------------------------------------------------ a table of folders


def test_a_csv_of_folders_is_walked_below_each_of_them_once(export, tmp_path):
    write_study(export / "a", "1.1", "P1")
    write_study(export / "b", "1.2", "P2")
    write_study(export / "c", "1.3", "P3")
    rows = [{"FolderPath": f} for f in ("export/a", "export/a/s1", str(export / "b"), "none")]
    found = index(write_csv(tmp_path / "folders.csv", rows), tmp_path)
    assert {study.key: study.n_files for study in found.studies()} == {"1.1": 6, "1.2": 6}
    assert skipped(found) == [("none", "missing_folder")]


def test_a_csv_without_the_column_says_which_it_needs(tmp_path):
    with pytest.raises(PlanError, match="no column FolderPath"):
        index(write_csv(tmp_path / "folders.csv", [{"Folder": "a"}]), tmp_path)


@pytest.mark.parametrize("kind", ["dicom", "nifti", "release"])
def test_a_missing_export_says_what_to_correct(tmp_path, kind):
    with pytest.raises(PlanError, match=r"does not exist(.|\n)*correct input\.path"):
        index(tmp_path / "none", tmp_path, kind)
