import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_dicom import MR, REPORT, write_dicom, write_study

from mrmill import index_dicom, index_parts
from mrmill.config import Input
from mrmill.index import PlanError, index_export


def index(path, tmp_path, kind="dicom", workers=1, **more):
    settings = Input.model_construct(kind=kind, path=path, series_table=None, **more)
    return index_export(settings, tmp_path / "index", workers, lambda *_: None)


def entries_of(found):
    """All studies' entries, with UIDs in the place of pseudonyms."""
    placed = [(study, ("batch00", "shard0000")) for study in found.studies()]
    merged = {}
    for shards in found.entries(placed, str):
        for studies in shards.values():
            merged |= studies
    return merged


def skipped(found):
    return sorted((Path(skip.folder, skip.name).name, skip.reason) for skip in found.skips())


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


# ------------------------------------------------------------------ grouping


def test_a_study_exported_twice_is_planned_once_and_the_copies_counted(export, tmp_path):
    write_study(export / "first", "1.1", "P1")
    shutil.copytree(export / "first", export / "second")
    whole = entries_of(index(export / "first", tmp_path / "other"))
    found = index(export, tmp_path)
    twice = entries_of(found)
    assert found.dropped["duplicate"] == 6
    n_sop = [series["n_sop"] for series in whole["1.1"]["series"]]
    assert [series["n_sop"] for series in twice["1.1"]["series"]] == n_sop == [3, 3]


def test_of_two_copies_the_larger_is_used(export, tmp_path):
    write_dicom(export / "a" / "cut.dcm")
    whole = write_dicom(export / "b" / "whole.dcm")
    whole.write_bytes(whole.read_bytes() + bytes(100))
    (series,) = entries_of(index(export, tmp_path))["1.1"]["series"]
    assert series["files"] == ["whole.dcm"]


def test_two_series_with_the_same_instance_uids_both_stay(export, tmp_path):
    for series in ("1.1.1", "1.1.2"):
        for number in ("1", "2"):
            write_dicom(export / series / number, series=series, instance=f"9.{number}")
    found = index(export, tmp_path)
    assert [s["n_sop"] for s in entries_of(found)["1.1"]["series"]] == [2, 2]
    assert found.dropped["duplicate"] == 0


def test_a_study_of_two_patients_is_rejected(export, tmp_path):
    write_dicom(export / "1", instance="1", patient="P1")
    write_dicom(export / "2", instance="2", patient="P2")
    found = index(export, tmp_path)
    (study,) = found.studies()
    assert (study.reject, study.patient_id) == ("mixed_patients", "")
    assert found.warnings["mixed_patients"] == 1


def test_a_patient_id_missing_in_some_files_is_taken_from_the_others(export, tmp_path):
    write_dicom(export / "1", instance="1", patient="P1")
    write_dicom(export / "2", instance="2", patient=None)
    (study,) = index(export, tmp_path).studies()
    assert (study.reject, study.patient_id) == ("", "P1")


def test_a_patient_with_and_without_issuer_is_pointed_out(export, tmp_path):
    write_dicom(export / "1", "1.1")
    write_dicom(export / "2", "1.2", IssuerOfPatientID="HOSPITAL")
    found = index(export, tmp_path)
    assert {study.issuer for study in found.studies()} == {"", "HOSPITAL"}
    assert found.warnings["patient_id_with_and_without_issuer"] == 1


def test_a_series_of_reports_is_kept_as_rejected(export, tmp_path):
    write_dicom(export / "report", SOPClassUID=REPORT)
    (series,) = entries_of(index(export, tmp_path))["1.1"]["series"]
    assert (series["reject"], series["n_sop"]) == ("no_images", 1)


def test_a_report_among_images_is_left_out_and_counted(export, tmp_path):
    write_dicom(export / "image", instance="1")
    write_dicom(export / "report", instance="2", SOPClassUID=REPORT)
    found = index(export, tmp_path)
    (series,) = entries_of(found)["1.1"]["series"]
    assert (series["files"], "reject" in series) == (["image"], False)
    assert found.dropped["no_pixels"] == 1


@pytest.mark.parametrize(
    ("sop_class", "image"),
    [
        (MR, True),
        ("1.2.840.10008.5.1.4.1.1.4.1", True),  # enhanced MR
        ("1.2.840.10008.5.1.4.1.1.7", True),  # secondary capture: an image, though not MR
        ("1.3.46.670589.11.0.0.12.1", True),  # unknown and private: for convert to find out
        ("1.2.840.10008.5.1.4.1.1.66", False),  # raw data
        ("1.2.840.10008.5.1.4.1.1.11.1", False),  # presentation state
        ("1.2.840.10008.5.1.4.1.1.4.2", False),  # spectroscopy
        ("1.3.12.2.1107.5.9.1", False),  # Siemens phoenix
        ("", True),
    ],
)
def test_sop_classes_without_image_are_known(sop_class, image):
    assert index_dicom.holds_image(sop_class) is image


def test_the_digest_follows_the_content_and_not_the_place(export, tmp_path):
    path = write_dicom(export / "a.dcm")
    (before,) = entries_of(index(export, tmp_path))["1.1"]["series"]
    export.rename(tmp_path / "moved")
    (moved,) = entries_of(index(tmp_path / "moved", tmp_path))["1.1"]["series"]
    os.utime(tmp_path / "moved" / path.name, ns=(1, 1))
    (touched,) = entries_of(index(tmp_path / "moved", tmp_path))["1.1"]["series"]
    assert before["digest"] == moved["digest"] != touched["digest"]


def test_many_small_buckets_give_the_same_entries_as_one(export, tmp_path, monkeypatch):
    for n in range(6):
        write_study(export / str(n), f"1.{n}", f"P{n}", n_series=1, n_files=2)
    found = index(export, tmp_path)
    together = entries_of(found)
    monkeypatch.setattr(index_dicom, "BUCKET_ROWS", 3)
    placed = [(s, ("batch00", f"shard{int(s.key[2:]) // 2:04d}")) for s in found.studies()]
    buckets = list(found.entries(placed, str))
    apart = {
        uid: e for shards in buckets for studies in shards.values() for uid, e in studies.items()
    }
    assert len(buckets) > 1
    assert apart == together
    shards = [shard for shards in buckets for shard in shards]
    assert len(shards) == len(set(shards)) == 3  # every shard comes whole


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


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return path


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


# ------------------------------------------------------------------ NIfTI


def touch(export, *paths):
    for path in paths:
        (export / path).parent.mkdir(parents=True, exist_ok=True)
        (export / path).write_bytes(b"x")


def test_bids_names_give_patient_and_study(export, tmp_path):
    touch(
        export,
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.json",
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "dataset_description.json",
    )
    found = index(export, tmp_path, "nifti")
    studies = {study.key: study.patient_id for study in found.studies()}
    assert studies == {"sub-01/ses-1": "sub-01", "sub-01/ses-2": "sub-01", "sub-02/": "sub-02"}
    assert skipped(found) == [("dataset_description.json", "not_nifti")]
    (series,) = entries_of(found)["sub-01/ses-1"]["series"]
    assert series["files"] == ["sub-01_ses-1_T1w.nii.gz"]
    assert series["sidecar"] == str(export / "sub-01/ses-1/anat/sub-01_ses-1_T1w.json")


def test_a_folder_outside_of_bids_is_a_study_of_its_own_patient(export, tmp_path):
    touch(export, "case1/t1.nii.gz", "case1/t2.nii.gz", "case2/t1.nii.gz")
    found = index(export, tmp_path, "nifti")
    assert {(study.patient_id, study.n_series) for study in found.studies()} == {("", 2), ("", 1)}
    assert found.warnings["missing_patient_id"] == 2


def table_row(path, patient="P1", study="baseline", **more):
    return {"path": path, "patient_id": patient, "study_id": study, **more}


def index_with_table(export, tmp_path, rows):
    table = write_csv(tmp_path / "series.csv", rows)
    settings = Input.model_construct(kind="nifti", path=export, series_table=table)
    return index_export(settings, tmp_path / "index", 1, lambda *_: None)


def test_with_a_table_its_rows_are_the_series(export, tmp_path):
    touch(export, "a/t1.nii.gz", "b/t1.nii.gz", "b/extra.nii.gz", "notes.txt")
    rows = [
        table_row("a/t1.nii.gz", "P1", SeriesNumber="5", modality="T1w", StudyDate="20240131"),
        table_row("b/t1.nii.gz", "P2", SeriesNumber="", modality="", StudyDate=""),
        table_row("b/gone.nii.gz", "P2", SeriesNumber="", modality="", StudyDate=""),
    ]
    found = index_with_table(export, tmp_path, rows)
    studies = {study.key: study for study in found.studies()}
    assert studies.keys() == {"P1/baseline", "P2/baseline"}  # one name, two studies
    assert studies["P1/baseline"].study_date == "20240131"
    assert skipped(found) == [
        ("extra.nii.gz", "not_in_table"),
        ("gone.nii.gz", "missing_file"),
        ("notes.txt", "not_nifti"),
    ]
    (series,) = entries_of(found)["P1/baseline"]["series"]
    assert series["table"] == {"SeriesNumber": 5, "modality": "T1w", "StudyDate": "20240131"}
    (series,) = entries_of(found)["P2/baseline"]["series"]
    assert series["table"] == {}


def test_a_changed_sidecar_or_row_changes_the_digest_of_its_series_alone(export, tmp_path):
    touch(export, "a.nii.gz", "a.json", "b.nii.gz")

    def digests(modality):
        rows = [table_row("a.nii.gz", modality="T1w"), table_row("b.nii.gz", modality=modality)]
        series = entries_of(index_with_table(export, tmp_path, rows))["P1/baseline"]["series"]
        return [entry["digest"] for entry in series]

    a, b = digests("T1w")
    (export / "a.json").write_bytes(b"{}")
    changed_a, same_b = digests("T1w")
    same_a, changed_b = digests("T2w")
    assert (changed_a != a, same_b == b) == (True, True)
    assert (same_a == changed_a, changed_b != b) == (True, True)


@pytest.mark.parametrize("path", ["../outside.nii.gz", "a/../../x.nii.gz", "/etc/x.nii.gz", ""])
def test_a_table_that_leads_out_of_the_export_is_refused(export, tmp_path, path):
    touch(export, "a/t1.nii.gz")
    touch(tmp_path, "outside.nii.gz")
    with pytest.raises(PlanError, match=r"line 3: path must be relative") as error:
        index_with_table(export, tmp_path, [table_row("a/t1.nii.gz"), table_row(path)])
    assert "P1" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"path": "a.nii.gz", "study_id": "1"}], "no column patient_id"),
        ([table_row("a.nii.gz"), table_row("./a.nii.gz")], "line 3: the path stands .* twice"),
        ([table_row("a.nii.gz", study=" ")], "line 2: study_id is empty"),
    ],
)
def test_a_table_that_cannot_be_used_says_where(export, tmp_path, rows, message):
    touch(export, "a.nii.gz")
    with pytest.raises(PlanError, match=message):
        index_with_table(export, tmp_path, rows)


def test_a_table_in_another_encoding_is_refused(export, tmp_path):
    touch(export, "a.nii.gz")
    table = tmp_path / "series.csv"
    table.write_bytes("path,patient_id,study_id\na.nii.gz,Ü,1\n".encode("latin-1"))
    settings = Input.model_construct(kind="nifti", path=export, series_table=table)
    with pytest.raises(PlanError, match="UTF-8"):
        index_export(settings, tmp_path, 1, lambda *_: None)


# ------------------------------------------------------------------ a release


@pytest.fixture
def release(export):
    def metadata(uid, patient, *series):
        return [{"patient_uid": patient, "study_uid": uid, "series_id": s} for s in series]

    touch(export, "mri/batch00/AAA.zip", "mri/batch03/CCC/img/CCC_t1w-raw-sag.nii.gz")
    touch(export, "mri/batch03/DDD.zip", "mri/batch03/AAA.txt")
    (export / "metadata").mkdir()
    rows = metadata("AAA", "P", "t1w-raw-sag", "flair-raw-axi") + metadata("BBB", "P", "x")
    write_csv(export / "metadata" / "batch00_metadata.csv", rows)
    rows = metadata("CCC", "P", "t1w-raw-sag")
    write_csv(export / "metadata" / "batch03_metadata.csv", rows)
    splits = [{"batch_id": "batch00", "patient_uid": "P", "study_uid": "AAA", "split": "val"}]
    write_csv(export / "splits.csv", splits)
    return export


def test_a_release_keeps_its_uids_splits_and_batches(release, tmp_path):
    found = index(release, tmp_path, "release")
    studies = {s.study_uid: (s.patient_uid, s.split, s.batch) for s in found.studies()}
    assert studies == {"AAA": ("P", "val", "batch00"), "CCC": ("P", "", "batch03")}
    assert found.warnings["study_without_split"] == 1
    assert skipped(found) == [
        ("AAA.txt", "not_a_study"),
        ("BBB", "missing_archive"),
        ("DDD.zip", "no_metadata"),
    ]


def test_a_study_of_a_release_has_its_rows_and_its_archive(release, tmp_path):
    found = index(release, tmp_path, "release")
    placed = [(study, (study.batch, "shard0000")) for study in found.studies()]
    entries = {
        uid: e for s in found.entries(placed, str) for x in s.values() for uid, e in x.items()
    }
    assert entries["AAA"]["source"] == str(release / "mri" / "batch00" / "AAA.zip")
    assert entries["CCC"]["source"] == str(release / "mri" / "batch03" / "CCC")
    keys = [series["series_key"] for series in entries["AAA"]["series"]]
    assert keys == ["flair-raw-axi", "t1w-raw-sag"]
    assert [row["series_id"] for row in entries["AAA"]["rows"]] == ["t1w-raw-sag", "flair-raw-axi"]


def test_a_release_without_its_metadata_says_what_is_missing(release, tmp_path):
    (release / "metadata" / "batch03_metadata.csv").unlink()
    with pytest.raises(PlanError, match=r"batch03_metadata\.csv: No such file"):
        index(release, tmp_path, "release")
