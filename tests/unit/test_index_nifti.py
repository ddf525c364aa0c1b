import os
from pathlib import Path

import pytest
from indexed import entries_of, index, skipped, write_csv

from mrmill.index import PlanError


@pytest.fixture
def export(tmp_path):
    return tmp_path / "export"


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
    return index(export, tmp_path, "nifti", series_table=table)


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
    assert found.warnings["study_id_of_two_patients"] == 1
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
        ([table_row("a.nii.gz", StudyDate="1/2/2024")], "line 2: StudyDate is no day"),
        (
            [
                table_row("a.nii.gz", StudyDate="2024-01-31"),
                table_row("b.nii.gz", StudyDate="20240131"),
                table_row("c.nii.gz", StudyDate="20240201"),
            ],
            "line 4: not the StudyDate that the study has in the rows before",
        ),
    ],
)
def test_a_table_that_cannot_be_used_says_where(export, tmp_path, rows, message):
    touch(export, "a.nii.gz")
    with pytest.raises(PlanError, match=message):
        index_with_table(export, tmp_path, rows)


def test_studies_of_two_patients_are_not_one_because_of_a_slash(export, tmp_path):
    touch(export, "a.nii.gz", "b.nii.gz")
    rows = [table_row("a.nii.gz", "P/1", "2"), table_row("b.nii.gz", "P", "1/2")]
    with pytest.raises(PlanError, match="studies of two patients are alike"):
        index_with_table(export, tmp_path, rows)


def test_a_folder_whose_name_is_no_utf_8_is_a_study_like_others(export, tmp_path):
    touch(export, os.fsdecode(b"Kl\xfcnik/t1.nii.gz"), os.fsdecode(b"Kl\xf6nik/t1.nii.gz"))
    found = index(export, tmp_path, "nifti")
    assert {study.key.encode() for study in found.studies()} == {b"/Kl\\udcfcnik", b"/Kl\\udcf6nik"}
    assert {Path(e["series"][0]["folder"]).is_dir() for e in entries_of(found).values()} == {True}


def test_a_table_in_another_encoding_is_refused(export, tmp_path):
    touch(export, "a.nii.gz")
    table = tmp_path / "series.csv"
    table.write_bytes("path,patient_id,study_id\na.nii.gz,Ü,1\n".encode("latin-1"))
    with pytest.raises(PlanError, match="UTF-8"):
        index(export, tmp_path, "nifti", series_table=table)


# ------------------------------------------------------------------ a release


def write_splits(export, **split_of):
    rows = [{"patient_uid": "P", "study_uid": uid, "split": s} for uid, s in split_of.items()]
    write_csv(export / "splits.csv", [{"batch_id": "batch00", **row} for row in rows])


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
    write_splits(export, AAA="val", CCC="val")
    return export


def test_a_release_keeps_its_uids_splits_and_batches(release, tmp_path):
    found = index(release, tmp_path, "release")
    studies = {s.study_uid: (s.patient_uid, s.split, s.batch) for s in found.studies()}
    assert studies == {"AAA": ("P", "val", "batch00"), "CCC": ("P", "val", "batch03")}
    assert skipped(found) == [
        ("AAA.txt", "not_a_study"),
        ("BBB", "missing_archive"),
        ("DDD.zip", "no_metadata"),
    ]


@pytest.mark.parametrize(
    ("split_of", "said"),
    [
        ({"AAA": "val"}, "study CCC of .*: a split is missing"),
        ({"AAA": "val", "CCC": "holdout"}, "study CCC of .*: a split is not accepted"),
    ],
)
def test_a_split_that_no_table_could_name_is_refused_before_work_begins(
    release, tmp_path, split_of, said
):
    write_splits(release, **split_of)
    with pytest.raises(PlanError, match=said):
        index(release, tmp_path, "release")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("P,CCC,t1w-raw-sag", "two patients, or one series twice"),
        ("Q,CCC,t2w-raw-axi", "two patients, or one series twice"),
        ("P,CCC,../t1w", "a series_id is not accepted"),
    ],
)
def test_a_release_with_a_row_that_cannot_be_is_refused(release, tmp_path, row, said):
    with (release / "metadata" / "batch03_metadata.csv").open("a") as table:
        table.write(f"{row}\n")
    with pytest.raises(PlanError, match=f"study CCC of .*{said}"):
        index(release, tmp_path, "release")


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
