"""A site's mapping and opt-out tables, from the export to the files of the plan."""

import csv
import json
import shutil
import stat

import pytest
from tiny_dicom import write_study

from mrmill.config import checked
from mrmill.index import PlanError
from mrmill.plan import make_plan
from mrmill.plan.identity import Pseudonyms, load_key, new_key

HEADER = "Accession,Anon Patient ID,Anonymized Study Date"


@pytest.fixture
def site(tmp_path):
    """Two patients: P1 with studies A1 and A2, P2 with study A3; all of 31 January 2024."""
    new_key(tmp_path / "pseudonym.key")
    for uid, patient, accession in (("1", "P1", "A1"), ("2", "P1", "A2"), ("3", "P2", "A3")):
        add_study(tmp_path, uid, patient, accession)
    return tmp_path


def add_study(site, uid, patient, accession, **more):
    folder = site / "export" / uid
    write_study(
        folder, f"1.{uid}", patient, n_series=1, n_files=1, AccessionNumber=accession, **more
    )


def settings(site, kind="dicom", **identity):
    values = {
        "input": {"kind": kind, "path": "export"},
        "deface": {"backend": "deepbet", "device": "cpu"},
        "plan": {"studies_per_shard": 1},
        "identity": identity,
    }
    return checked(values, site)


def mapped(site, *rows, **more):
    """Settings with a mapping of these rows."""
    (site / "mapping.csv").write_text("\n".join([HEADER, *rows]))
    return settings(site, mapping="mapping.csv", **more)


def opted_out(site, *rows, columns="PatientID,AccessionNumber", **more):
    """Settings with an opt-out table of these rows."""
    (site / "out.csv").write_text("\n".join([columns, *rows]))
    return settings(site, opt_out="out.csv", **more)


def entries(site):
    """StudyInstanceUID -> its entry in the plan."""
    with (site / "work" / "plan" / "studies.csv").open(newline="") as file:
        uids = {row["study_uid"]: row["StudyInstanceUID"] for row in csv.DictReader(file)}
    found = {}
    for path in (site / "work" / "plan" / "shards").rglob("*.json"):
        for entry in json.loads(path.read_text())["studies"]:
            found[uids[entry["study_uid"]]] = entry
    return found


def rejects(site):
    return {uid: entry["reject"] for uid, entry in entries(site).items()}


def digests(site):
    """Shard -> digest, as the workflow sees it."""
    overview = json.loads((site / "work" / "plan" / "shards.json").read_text())
    return {shard: facts["digest"] for shard, facts in overview["batches"]["batch00"].items()}


GOOD = ("A1,ANON_7,2019-03-04", "A2,ANON_7,20190305", "A3,ANON_8,2018-06-07")


def test_patients_and_dates_of_a_mapping_are_used_and_study_uids_stay_keyed(site):
    summary = make_plan(mapped(site, *GOOD))
    found = entries(site)
    assert {uid: (e["patient_uid"], e["anon_study_date"]) for uid, e in found.items()} == {
        "1.1": ("ANON_7", "2019-03-04"),
        "1.2": ("ANON_7", "2019-03-05"),
        "1.3": ("ANON_8", "2018-06-07"),
    }
    key = Pseudonyms(load_key(site / "pseudonym.key"))
    assert found["1.1"]["study_uid"] == key.study_uid("1.1")
    assert found["1.1"]["split"] == key.split("ANON_7", 3425 / 83425, 5000 / 83425)
    assert (summary.patients, summary.warnings) == (2, {})


def test_without_a_mapping_no_date_is_given(site):
    make_plan(settings(site))
    assert {entry["anon_study_date"] for entry in entries(site).values()} == {""}


def test_studies_that_a_mapping_lacks_stop_the_plan_and_are_listed(site):
    add_study(site, "4", "P4", None)
    add_study(site, "5", "P5", "0815")
    config = mapped(site, GOOD[0], GOOD[2], "815,ANON_9,2018-01-01")
    with pytest.raises(PlanError) as error:
        make_plan(config)
    said = str(error.value)
    assert "3 of 5 studies are missing from identity.mapping" in said
    assert "1 of them have no AccessionNumber" in said
    assert "1 of them have a row but for leading zeros" in said
    assert "Nothing was planned" in said
    assert not {"P1", "P4", "A2", "0815"} & set(said.replace(".", " ").split())
    listed = site / "work" / "plan" / "not_in_mapping.csv"
    assert str(listed) in said
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600
    assert listed.read_text().splitlines() == [
        "PatientID,AccessionNumber,StudyDate,StudyInstanceUID",
        "P1,A2,20240131,1.2",
        "P4,,20240131,1.4",
        "P5,0815,20240131,1.5",
    ]
    assert not (site / "work" / "plan" / "studies.parquet").exists()
    assert not (site / "work" / "plan" / "shards.json").exists()


def test_studies_that_a_mapping_lacks_can_be_left_out_until_they_are_added(site):
    summary = make_plan(mapped(site, *GOOD[:2], unmapped="reject"))
    assert rejects(site) == {"1.1": "", "1.2": "", "1.3": "not_in_mapping"}
    assert summary.warnings == {"not_in_mapping": 1}
    before = entries(site)
    summary = make_plan(mapped(site, *GOOD, unmapped="reject"))
    assert rejects(site) == {"1.1": "", "1.2": "", "1.3": ""}
    assert entries(site)["1.3"]["patient_uid"] == "ANON_8"
    assert {uid: entries(site)[uid] for uid in ("1.1", "1.2")} == {
        uid: before[uid] for uid in ("1.1", "1.2")
    }
    assert summary.warnings == {}


def test_a_planned_study_that_drops_out_of_the_mapping_keeps_its_names(site):
    make_plan(mapped(site, *GOOD))
    before = entries(site)["1.3"]
    summary = make_plan(mapped(site, *GOOD[:2], unmapped="reject"))
    assert entries(site)["1.3"] == {**before, "reject": "not_in_mapping"}
    assert summary.warnings == {"not_in_mapping": 1}
    with pytest.raises(PlanError, match="line 4: the study is planned under another"):
        make_plan(mapped(site, *GOOD[:2], "A3,ANON_9,2018-06-07", unmapped="reject"))


def test_studies_that_stay_out_anyway_need_no_row(site):
    add_study(site, "4", "P4", None)
    write_study(site / "export" / "4b", "1.4", "P5", n_series=1, n_files=1)
    (site / "out.csv").write_text("PatientID\nP2\n")
    make_plan(mapped(site, *GOOD[:2], opt_out="out.csv"))
    assert rejects(site)["1.3"] == "excluded"
    assert rejects(site)["1.4"] == "mixed_patients"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            ("A1,ANON_7,2019-03-04", "A2,ANON_8,2019-03-05", "A3,ANON_9,2018-06-07"),
            "line 2, line 3: one patient has several Anon Patient ID",
        ),
        (
            ("A1,ANON_7,2019-03-04", "A2,ANON_7,2019-03-05", "A3,ANON_7,2018-06-07"),
            "line 2, line 4: several patients have one Anon Patient ID",
        ),
        (
            (*GOOD[:2], "A3,p1,2018-06-07"),
            "line 4: Anon Patient ID is a PatientID or AccessionNumber of the export",
        ),
        ((*GOOD[:2], "A3,ANON_8,"), "line 4: Anonymized Study Date is empty"),
        (
            ("A1,ANON_7,2024-01-31", "A2,ANON_7,20240131", GOOD[2]),
            "2 rows have the true StudyDate as Anonymized Study Date, the first of them line 2",
        ),
    ],
)
def test_a_mapping_that_mixes_up_or_gives_away_patients_is_refused(site, rows, words):
    with pytest.raises(PlanError) as error:
        make_plan(mapped(site, *rows))
    assert words in str(error.value)
    assert not (site / "work" / "plan" / "studies.parquet").exists()


def test_the_accession_number_of_a_study_is_no_public_name(site):
    rows = ("A1,X,2019-03-04", "A2,X,2019-03-05", "A3,Y,2018-06-07", "B1,a4,2018-06-07")
    add_study(site, "4", "P4", "A4")
    add_study(site, "5", "P5", "B1")
    with pytest.raises(PlanError, match=r"line 5: Anon Patient ID is a PatientID or"):
        make_plan(mapped(site, *rows, unmapped="reject"))


def test_the_id_of_a_patient_who_left_the_export_is_no_public_name(site):
    make_plan(mapped(site, *GOOD))
    shutil.rmtree(site / "export" / "3")
    add_study(site, "4", "P4", "A4")
    with pytest.raises(PlanError, match="line 5: Anon Patient ID is a PatientID or"):
        make_plan(mapped(site, *GOOD, "A4,p2,2018-06-08"))


def test_patient_ids_of_two_issuers_may_have_one_or_two_public_names(site):
    add_study(site, "4", "P2", "A4", IssuerOfPatientID="other")
    make_plan(mapped(site, *GOOD, "A4,ANON_9,2018-06-08"))
    assert entries(site)["1.4"]["patient_uid"] == "ANON_9"
    shutil.rmtree(site / "work")
    make_plan(mapped(site, *GOOD, "A4,ANON_8,2018-06-08"))
    assert entries(site)["1.4"]["patient_uid"] == "ANON_8"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((*GOOD[:2], "A3,ANON_9,2018-06-07"), "line 4: the study is planned under another"),
        ((*GOOD, "A4,ANON_9,2018-06-07"), "line 5: one patient has several"),
    ],
)
def test_a_mapping_that_renames_what_is_planned_is_refused(site, rows, words):
    make_plan(mapped(site, *GOOD))
    before = entries(site)
    add_study(site, "4", "P2", "A4")
    with pytest.raises(PlanError, match=words):
        make_plan(mapped(site, *rows, unmapped="reject"))
    assert entries(site) == before


def test_a_corrected_date_is_taken_over(site):
    make_plan(mapped(site, *GOOD))
    before, shards = entries(site), digests(site)
    make_plan(mapped(site, *GOOD[:2], "A3,ANON_8,2018-06-08"))
    assert entries(site)["1.3"] == {**before["1.3"], "anon_study_date": "2018-06-08"}
    assert sum(digests(site)[shard] != digest for shard, digest in shards.items()) == 1


@pytest.mark.parametrize("first", ["keyed", "mapped"])
def test_one_work_tree_has_keyed_or_mapped_patients_and_not_both(site, first):
    both = {"keyed": settings(site), "mapped": mapped(site, *GOOD)}
    make_plan(both.pop(first))
    with pytest.raises(PlanError, match=f"planned with {first} patients"):
        make_plan(*both.values())


def test_a_nifti_study_is_mapped_by_its_id(site):
    shutil.rmtree(site / "export")
    for path in ("sub-1/ses-1/anat/a_T1w.nii", "sub-2/ses-1/anat/a_T1w.nii", "case7/t1.nii"):
        (site / "export" / path).parent.mkdir(parents=True)
        (site / "export" / path).write_bytes(b"x")
    rows = ("sub-1/ses-1,X,2019-03-04", "sub-2/ses-1,Y,2019-03-04", "case7,Z,2019-03-04")
    make_plan(mapped(site, *rows, kind="nifti"))
    found = {uid: entry["patient_uid"] for uid, entry in entries(site).items()}
    assert found == {"sub-1/ses-1": "X", "sub-2/ses-1": "Y", "/case7": "Z"}
    shutil.rmtree(site / "work")
    with pytest.raises(PlanError, match="  line 2: several patients have one"):
        make_plan(mapped(site, "ses-1,X,2019-03-04", "case7,Z,2019-03-04", kind="nifti"))


@pytest.mark.parametrize(
    ("row", "excluded"),
    [("P1,", {"1.1", "1.2"}), (",A2", {"1.2"}), (" P2 ,A1", {"1.1", "1.3"}), ("P9,A9", set())],
)
def test_studies_of_an_opt_out_are_excluded(site, row, excluded):
    summary = make_plan(opted_out(site, row))
    assert {uid for uid, reason in rejects(site).items() if reason == "excluded"} == excluded
    assert summary.warnings.get("excluded", 0) == len(excluded)
    assert summary.warnings.get("opt_out_unmatched", 0) == (row == "P9,A9")


def test_a_study_whose_files_have_two_accession_numbers_is_excluded_by_either(site):
    write_study(site / "export" / "1", "1.1", "P1", 1, 1, AccessionNumber="A0")
    write_study(site / "export" / "1b", "1.1", "P1", 1, 2, AccessionNumber="A1")
    make_plan(opted_out(site, ",A0"))
    assert rejects(site)["1.1"] == "excluded"
    make_plan(opted_out(site, ",A1"))
    assert rejects(site)["1.1"] == "excluded"
    make_plan(opted_out(site, ",A2"))
    assert rejects(site)["1.1"] == ""


def test_an_opt_out_changes_the_plan_of_its_shards_and_of_no_other(site):
    make_plan(settings(site))
    before = digests(site)
    make_plan(opted_out(site, "P1,"))
    changed = {shard for shard, digest in digests(site).items() if digest != before[shard]}
    assert len(changed) == 2
    assert rejects(site) == {"1.1": "excluded", "1.2": "excluded", "1.3": ""}
    summary = make_plan(settings(site))
    assert digests(site) == before
    assert summary.warnings == {"readmitted": 2}


def test_an_opt_out_reaches_studies_that_have_left_the_export(site):
    make_plan(settings(site))
    before = entries(site)
    shutil.rmtree(site / "export" / "1")
    summary = make_plan(opted_out(site, "P1,"))
    assert rejects(site) == {"1.1": "excluded", "1.2": "excluded", "1.3": ""}
    assert entries(site)["1.1"]["series"] == before["1.1"]["series"]
    assert summary.warnings == {"excluded": 2}
    make_plan(opted_out(site, "P2,"))  # it stays out: nothing is left that could be released anew
    assert rejects(site) == {"1.1": "excluded", "1.2": "", "1.3": "excluded"}


def test_an_opt_out_that_a_spreadsheet_has_damaged_is_told_from_one_of_a_stranger(site):
    add_study(site, "4", "007", "A4")
    summary = make_plan(opted_out(site, "7,", "P9,"))
    assert summary.warnings == {"excluded": 1, "opt_out_unmatched": 1, "opt_out_nearly": 1}
    assert rejects(site)["1.4"] == "excluded"  # better one too many than one too few


def test_an_opt_out_holds_when_the_hospital_gives_its_patient_another_id(site):
    make_plan(opted_out(site, "P2,"))
    shutil.rmtree(site / "export" / "3")
    add_study(site, "3", "P2-joined", "A3-joined")
    for _ in range(2):
        summary = make_plan(opted_out(site, "P2,"))
        assert rejects(site) == {"1.1": "", "1.2": "", "1.3": "excluded"}
        assert summary.warnings == {"excluded": 1}
    make_plan(settings(site))
    key = Pseudonyms(load_key(site / "pseudonym.key"))
    assert entries(site)["1.3"]["reject"] == ""
    assert entries(site)["1.3"]["patient_uid"] == key.patient_uid("", "P2-joined")


def test_an_opt_out_holds_in_a_nifti_export(site):
    shutil.rmtree(site / "export")
    for path in ("sub-1/ses-1/anat/a_T1w.nii", "sub-2/ses-1/anat/a_T1w.nii"):
        (site / "export" / path).parent.mkdir(parents=True)
        (site / "export" / path).write_bytes(b"x")
    make_plan(opted_out(site, "sub-2,", kind="nifti"))
    assert rejects(site) == {"sub-1/ses-1": "", "sub-2/ses-1": "excluded"}


def test_the_table_of_who_is_who_can_be_read_by_a_person_and_by_nobody_else(site):
    add_study(site, "4", 'P,"4', "A4")
    make_plan(settings(site))
    path = site / "work" / "plan" / "studies.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="") as file:
        rows = {row["StudyInstanceUID"]: row for row in csv.DictReader(file)}
    key = Pseudonyms(load_key(site / "pseudonym.key"))
    assert {uid: row["study_uid"] for uid, row in rows.items()} == {
        f"1.{n}": key.study_uid(f"1.{n}") for n in "1234"
    }
    assert (rows["1.4"]["PatientID"], rows["1.4"]["AccessionNumber"]) == ('P,"4', "A4")
