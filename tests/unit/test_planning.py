import json
import shutil
import stat
from collections import Counter

import pytest
from tiny_dicom import write_dicom, write_study

from mrmill import plan as planning
from mrmill.config import checked
from mrmill.index import PlanError
from mrmill.index import parts as index_parts
from mrmill.plan import make_plan
from mrmill.plan.identity import IdentityError, Pseudonyms, load_key, new_key
from mrmill.plan.placement import free_places

ENTRY = {
    *("study_uid", "patient_uid", "split", "reject", "series"),
    *("StudyDate", "date_shift_days", "anon_study_date"),
}
SERIES = {
    *("series_key", "SeriesInstanceUID", "kind", "folder", "files"),
    *("n_sop", "sop_class", "sidecar", "table"),
}


@pytest.fixture
def site(tmp_path):
    """A folder with a key and the settings of a small dicom run."""
    new_key(tmp_path / "pseudonym.key")
    return tmp_path


def settings(site, kind="dicom", **plan):
    values = {
        "input": {"kind": kind, "path": "export"},
        "deface": {"backend": "deepbet", "device": "cpu"},
        "plan": {"studies_per_batch": 5, "studies_per_shard": 2, **plan},
    }
    return checked(values, site)


def export_patients(site, numbers):
    for n in numbers:
        write_study(site / "export" / f"{n}a", f"1.{n}.1", f"P{n}", n_series=1, n_files=2)
        if n % 3 == 0:
            write_study(site / "export" / f"{n}b", f"1.{n}.2", f"P{n}", n_series=1, n_files=1)


def files_of(site):
    """Every file of the plan but the index, with its bytes."""
    plan = site / "work" / "plan"
    return {
        str(path.relative_to(plan)): path.read_bytes()
        for path in sorted(plan.rglob("*"))
        if path.is_file() and "index" not in path.relative_to(plan).parts
    }


def entries_of(site):
    """study_uid -> its entry, with its place."""
    shards = site / "work" / "plan" / "shards"
    return {
        entry["study_uid"]: entry | {"place": (path.parent.name, path.stem)}
        for path in shards.rglob("*.json")
        for entry in json.loads(path.read_text())["studies"]
    }


def overview_of(site):
    return json.loads((site / "work" / "plan" / "shards.json").read_text())


def fixed(entry):
    return {name: entry[name] for name in ("patient_uid", "split", "date_shift_days", "place")}


def test_an_entry_says_what_the_stages_need(site):
    export_patients(site, [1])
    make_plan(settings(site))
    (entry,) = entries_of(site).values()
    names = Pseudonyms(load_key(site / "pseudonym.key"))
    assert entry.keys() == ENTRY | {"place"}
    assert entry["study_uid"] == names.study_uid("1.1.1")
    assert entry["patient_uid"] == names.patient_uid("", "P1")
    assert (entry["StudyDate"], entry["reject"]) == ("20240131", "")
    (series,) = entry["series"]
    assert series.keys() == SERIES | {"digest"}
    assert series["series_key"] == names.series_key("1.1.1.1")
    assert series["SeriesInstanceUID"] == "1.1.1.1"
    assert series["folder"] == str(site / "export" / "1a" / "s1")


def test_shards_and_batches_are_filled_in_the_order_of_the_uids(site):
    export_patients(site, range(10))  # 10 patients, 4 of them with two studies
    summary = make_plan(settings(site))
    entries = entries_of(site)
    places = [entries[uid]["place"] for uid in sorted(entries)]
    assert places == sorted(places)
    assert Counter(places).most_common() == [
        (("batch00", "shard0000"), 2),
        (("batch00", "shard0001"), 2),
        (("batch01", "shard0000"), 2),
        (("batch01", "shard0001"), 2),
        (("batch02", "shard0000"), 2),
        (("batch02", "shard0001"), 2),
        (("batch00", "shard0002"), 1),
        (("batch01", "shard0002"), 1),
    ]
    assert (summary.patients, summary.studies, summary.series) == (10, 14, 14)
    assert (summary.batches, summary.shards, summary.new_studies) == (3, 8, 14)


def test_studies_of_a_patient_share_uid_split_and_shift(site):
    export_patients(site, range(0, 30, 3))
    make_plan(settings(site, val_fraction=0.3, test_fraction=0.3))
    patients = {}
    for entry in entries_of(site).values():
        patients.setdefault(entry["patient_uid"], []).append(fixed(entry))
    assert len(patients) == 10
    assert all(len(studies) == 2 for studies in patients.values())
    assert all(a["split"] == b["split"] for a, b in patients.values())
    assert all(a["date_shift_days"] == b["date_shift_days"] for a, b in patients.values())


def test_the_overview_is_small_and_names_every_shard(site):
    export_patients(site, range(5))
    make_plan(settings(site))
    overview = overview_of(site)
    key = load_key(site / "pseudonym.key")
    assert (overview["format"], overview["kind"]) == (1, "dicom")
    assert overview["key_fingerprint"] == Pseudonyms(key).fingerprint
    assert sum(s["n_studies"] for b in overview["batches"].values() for s in b.values()) == 7
    assert overview["batches"]["batch00"]["shard0000"].keys() == {
        "n_studies",
        "n_series",
        "digest",
    }


def test_progress_is_told_to_the_end(site):
    export_patients(site, range(4))
    told = []
    make_plan(settings(site), progress=lambda *state: told.append(state))
    assert [state for state in told if state[0] == "files"][-1] == ("files", 10, None)
    assert told[-1] == ("shards", 4, 4)


def test_planning_an_unchanged_export_again_reads_nothing_and_changes_nothing(site, monkeypatch):
    export_patients(site, range(6))
    make_plan(settings(site))
    before = files_of(site)
    times = {path: path.stat().st_mtime_ns for path in (site / "work").rglob("*.json")}

    def refuse(path):
        raise AssertionError("a file was read again")

    monkeypatch.setattr(index_parts, "read_header", refuse)
    summary = make_plan(settings(site))
    assert files_of(site) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (summary.read, summary.new_studies, summary.files) == (0, 0, 14)


def test_the_same_export_and_key_give_the_same_plan_in_another_place(site, tmp_path):
    export_patients(site, range(4))
    make_plan(settings(site))
    before = files_of(site)
    shutil.rmtree(site / "work")
    make_plan(settings(site))
    assert files_of(site) == before


def test_more_patients_move_nobody(site):
    export_patients(site, range(20))
    config = settings(site, val_fraction=0.2, test_fraction=0.2)
    make_plan(config)
    before = {uid: fixed(entry) for uid, entry in entries_of(site).items()}
    digests = overview_of(site)["batches"]
    export_patients(site, [20, 21])
    summary = make_plan(config)
    after = {uid: fixed(entry) for uid, entry in entries_of(site).items()}
    assert {uid: after[uid] for uid in before} == before
    assert summary.new_studies == len(after) - len(before) == 3
    assert all(
        after[uid]["place"] >= max(b["place"] for b in before.values())
        for uid in after.keys() - before.keys()
    )
    changed = [
        (batch, shard)
        for batch, shards in digests.items()
        for shard, facts in shards.items()
        if overview_of(site)["batches"][batch][shard] != facts
    ]
    assert changed in ([], [max(b["place"] for b in before.values())])


def test_changed_settings_move_nobody_either(site):
    export_patients(site, range(6))
    make_plan(settings(site))
    before = {uid: fixed(entry) for uid, entry in entries_of(site).items()}
    export_patients(site, [6, 7])
    write_study(site / "export" / "0c", "1.0.3", "P0")
    config = settings(site, studies_per_batch=3, val_fraction=0.9, test_fraction=0.0)
    make_plan(
        config.model_copy(
            update={"identity": config.identity.model_copy(update={"max_date_shift_days": 5})}
        )
    )
    after = {uid: fixed(entry) for uid, entry in entries_of(site).items()}
    assert {uid: after[uid] for uid in before} == before
    key = Pseudonyms(load_key(site / "pseudonym.key"))
    patient = key.patient_uid("", "P0")  # known: a further study follows the earlier ones
    assert len({e["date_shift_days"] for e in after.values() if e["patient_uid"] == patient}) == 1
    assert len({e["split"] for e in after.values() if e["patient_uid"] == patient}) == 1


def test_more_files_change_the_entry_and_not_the_place(site):
    export_patients(site, range(4))
    make_plan(settings(site))
    before = entries_of(site)
    write_study(site / "export" / "1a", "1.1.1", "P1", n_series=1, n_files=3)
    make_plan(settings(site))
    after = entries_of(site)
    uid = Pseudonyms(load_key(site / "pseudonym.key")).study_uid("1.1.1")
    assert fixed(after[uid]) == fixed(before[uid])
    assert after[uid]["series"][0]["digest"] != before[uid]["series"][0]["digest"]
    assert {u: e for u, e in after.items() if u != uid} == {
        u: e for u, e in before.items() if u != uid
    }


def test_a_series_table_speaks_of_dicom_series_by_their_uid(site):
    write_study(site / "export" / "1", "1.7", "P7", n_series=2, n_files=1)
    (site / "series.csv").write_text("SeriesInstanceUID,is_derived,PatientAge\n1.7.2,false,\n")
    config = settings(site)
    said = config.input.model_copy(update={"series_table": site / "series.csv"})
    make_plan(config.model_copy(update={"input": said}))
    (entry,) = entries_of(site).values()
    key = Pseudonyms(load_key(site / "pseudonym.key")).series_key("1.7.2")
    tables = {series["series_key"]: series["table"] for series in entry["series"]}
    assert tables.pop(key) == {"is_derived": "false"}
    assert list(tables.values()) == [{}]


def test_a_study_that_vanished_stays_planned_and_is_reported(site):
    export_patients(site, range(6))
    make_plan(settings(site))
    before = files_of(site)
    shutil.rmtree(site / "export" / "2a")
    shutil.rmtree(site / "export" / "4a")
    summary = make_plan(settings(site))
    assert (summary.vanished_studies, summary.studies, summary.new_studies) == (2, 8, 0)
    assert files_of(site) == before


def test_a_mixed_study_is_rejected_until_its_patients_are_separated(site):
    export_patients(site, [1])
    write_study(site / "export" / "stray", "1.1.1", "P9", n_series=1, n_files=3)
    summary = make_plan(settings(site))
    (entry,) = entries_of(site).values()
    assert entry["reject"] == "mixed_patients"
    assert summary.warnings["mixed_patients"] == 1
    shutil.rmtree(site / "export" / "stray")
    make_plan(settings(site))
    (mended,) = entries_of(site).values()
    key = Pseudonyms(load_key(site / "pseudonym.key"))
    assert (mended["reject"], mended["patient_uid"]) == ("", key.patient_uid("", "P1"))
    assert mended["study_uid"] == entry["study_uid"]


def test_a_study_whose_patient_changes_keeps_the_first_and_says_so(site):
    export_patients(site, [1])
    make_plan(settings(site))
    (before,) = entries_of(site).values()
    write_study(site / "export" / "1a", "1.1.1", "corrected", n_series=1, n_files=2)
    summary = make_plan(settings(site))
    (after,) = entries_of(site).values()
    assert fixed(after) == fixed(before)
    assert summary.warnings == {"patient_changed": 1}


def test_studies_without_patient_id_are_patients_of_their_own(site):
    write_study(site / "export" / "a", "1.1", None)
    write_study(site / "export" / "b", "1.2", "")
    summary = make_plan(settings(site))
    assert (summary.patients, summary.warnings) == (2, {"missing_patient_id": 2})


def test_every_merge_is_written_down(site):
    write_study(site / "export" / "a", "1.5", "P1", n_series=1, AccessionNumber="A")
    write_study(site / "export" / "b", "1.9", "P1", n_series=1, AccessionNumber="A")
    for n in range(3):
        write_dicom(site / "export" / "c" / f"{n}", "1.7", f"1.7.{n}", f"1.7.{n}.1")
    summary = make_plan(settings(site))
    assert (summary.studies, summary.series) == (2, 3)
    assert (site / "work" / "plan" / "merges.csv").read_text().splitlines() == [
        "kind,study,merged_uid,into_uid,n_files",
        "merged_accession,1.5,1.9,1.5,3",
        "merged_series_uids,1.7,1.7.1,1.7.0,1",
        "merged_series_uids,1.7,1.7.2,1.7.0,1",
    ]
    assert summary.warnings == {"merged_accession": 1, "merged_series_uids": 1}


def test_a_study_that_is_planned_takes_in_what_belongs_to_it(site):
    write_study(site / "export" / "b", "1.9", "P1", n_series=1, AccessionNumber="A")
    make_plan(settings(site))
    (before,) = entries_of(site).values()
    write_study(site / "export" / "a", "1.5", "P1", n_series=1, AccessionNumber="A")
    assert make_plan(settings(site)).new_studies == 0
    (after,) = entries_of(site).values()
    assert fixed(after) == fixed(before)
    assert (len(before["series"]), len(after["series"])) == (1, 2)


@pytest.mark.parametrize("survivors", [0, 1, 3, 6])
def test_a_plan_killed_between_its_files_is_completed_by_the_next(site, monkeypatch, survivors):
    export_patients(site, range(6))
    make_plan(settings(site))
    export_patients(site, range(6, 12))
    shutil.copytree(site / "work", site / "before")
    make_plan(settings(site))
    uninterrupted = files_of(site)
    shutil.rmtree(site / "work")
    (site / "before").rename(site / "work")
    written = []
    write = planning._write_if_changed

    def die(path, content):
        if len(written) == survivors:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(planning, "_write_if_changed", die)
        with pytest.raises(KeyboardInterrupt):
            make_plan(settings(site))
    assert files_of(site) != uninterrupted
    make_plan(settings(site))
    assert files_of(site) == uninterrupted


def test_what_a_killed_plan_gave_a_place_keeps_it_when_even_more_is_found(site, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    export_patients(site, range(6))
    with monkeypatch.context() as patch:
        patch.setattr(planning, "_write_shards", die)
        with pytest.raises(KeyboardInterrupt):
            make_plan(settings(site))
    assert entries_of(site) == {}
    decided = planning.read_studies(site / "work" / "plan" / "studies.parquet")
    export_patients(site, range(6, 9))
    make_plan(settings(site))
    after = {uid: entry["place"] for uid, entry in entries_of(site).items()}
    assert {study.study_uid: study.place for study in decided.values()}.items() <= after.items()
    assert len(decided) < len(after)


def test_the_plan_is_for_its_owner_only(site):
    export_patients(site, range(3))
    make_plan(settings(site))
    plan = site / "work" / "plan"
    assert stat.S_IMODE(plan.stat().st_mode) == 0o700
    for path in plan.rglob("*"):
        assert path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_key_is_in_no_file_of_the_plan(site):
    export_patients(site, range(3))
    make_plan(settings(site))
    key = load_key(site / "pseudonym.key")
    for content in files_of(site).values():
        assert key not in content
        assert key.hex().encode() not in content


def test_another_key_is_refused_and_nothing_is_touched(site):
    export_patients(site, range(3))
    make_plan(settings(site))
    before = files_of(site)
    (site / "pseudonym.key").unlink()
    new_key(site / "pseudonym.key")
    with pytest.raises(PlanError, match="another key"):
        make_plan(settings(site))
    assert files_of(site) == before


def test_another_kind_of_input_is_refused(site):
    export_patients(site, range(3))
    make_plan(settings(site))
    with pytest.raises(PlanError, match=r"input\.kind dicom"):
        make_plan(settings(site, kind="nifti"))


def test_a_missing_key_stops_before_anything_is_made(site):
    (site / "pseudonym.key").unlink()
    export_patients(site, range(3))
    with pytest.raises(IdentityError, match="--new-key"):
        make_plan(settings(site))
    assert not (site / "work").exists()


def test_an_empty_export_says_so(site):
    (site / "export").mkdir()
    with pytest.raises(PlanError, match=r"Found: 0 files \(the folder is empty\)"):
        make_plan(settings(site))


def test_a_folder_without_dicom_says_what_was_found_and_where_it_is_listed(site):
    (site / "export").mkdir()
    (site / "export" / "scan.nii").write_bytes(b"x")
    with pytest.raises(
        PlanError, match=r"1 files \(not_dicom: 1\)(.|\n)*input\.kind(.|\n)*skipped"
    ):
        make_plan(settings(site))
    listed = (site / "work" / "plan" / "skipped.csv").read_text().splitlines()
    assert listed == ["folder,name,reason", f"{site}/export,scan.nii,not_dicom"]


def test_an_export_that_is_suddenly_empty_does_not_touch_the_plan(site):
    export_patients(site, range(3))
    make_plan(settings(site))
    before = files_of(site)
    shutil.rmtree(site / "export")
    (site / "export").mkdir()
    with pytest.raises(PlanError, match="nothing to plan"):
        make_plan(settings(site))
    assert files_of(site) == before


def test_no_message_or_warning_names_a_patient(site):
    write_study(site / "export" / "a", "1.1", "CANARY-ID", AccessionNumber="CANARY-ACC")
    write_study(site / "export" / "b", "1.1", "CANARY-2", n_files=4)
    summary = make_plan(settings(site))
    assert "CANARY" not in repr(summary)


@pytest.mark.parametrize("name", ["study_uid", "patient_uid", "series_key"])
def test_a_collision_of_pseudonyms_stops_the_plan(site, monkeypatch, name):
    export_patients(site, range(3))
    write_study(site / "export" / "two", "1.9", "P9", n_series=2)
    monkeypatch.setattr(Pseudonyms, name, lambda *_: "AAAAAAAAAA")
    with pytest.raises(PlanError, match="same pseudonym"):
        make_plan(settings(site))
    assert not (site / "work" / "plan" / "shards.json").exists()


def test_a_release_is_planned_without_a_key_and_keeps_its_names(site):
    (site / "pseudonym.key").unlink()
    for batch, uids in (("batch00", "ABC"), ("batch07", "DE")):
        (site / "export" / "mri" / batch).mkdir(parents=True)
        rows = ["patient_uid,study_uid,series_id,note"]
        for uid in uids:
            (site / "export" / "mri" / batch / f"{uid}.zip").write_bytes(b"zip")
            rows.append(f'P{uid},{uid},t1w-raw-sag,"two\nlines"')
        table = site / "export" / "metadata" / f"{batch}_metadata.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text("\n".join(rows))
    splits = "".join(f"batch00,P{uid},{uid},val\n" for uid in "ABCDE")
    (site / "export" / "splits.csv").write_text("batch_id,patient_uid,study_uid,split\n" + splits)
    summary = make_plan(settings(site, kind="release"))
    entries = entries_of(site)
    assert {uid: entry["place"] for uid, entry in entries.items()} == {
        "A": ("batch00", "shard0000"),
        "B": ("batch00", "shard0000"),
        "C": ("batch00", "shard0001"),
        "D": ("batch07", "shard0000"),
        "E": ("batch07", "shard0000"),
    }
    assert {entry["split"] for entry in entries.values()} == {"val"}
    assert entries["A"]["patient_uid"] == "PA"
    assert entries["A"]["rows"][0]["note"] == "two\nlines"
    assert entries["A"]["series"][0]["series_key"] == "t1w-raw-sag"
    assert (summary.studies, summary.series, summary.warnings) == (5, 5, {})


def test_nifti_files_are_planned_under_keyed_names(site):
    for patient in ("sub-1", "sub-2"):
        folder = site / "export" / patient / "anat"
        folder.mkdir(parents=True)
        (folder / f"{patient}_T1w.nii.gz").write_bytes(b"x")
    make_plan(settings(site, kind="nifti"))
    key = Pseudonyms(load_key(site / "pseudonym.key"))
    entry = entries_of(site)[key.study_uid("sub-1/")]
    assert entry["patient_uid"] == key.patient_uid("", "sub-1")
    assert entry["series"][0]["series_key"] == key.series_key("sub-1/anat/sub-1_T1w.nii.gz")


def test_places_go_on_after_the_last_one_in_numbers_not_in_letters():
    taken = [("batch99", "shard9999"), ("batch100", "shard10000")]
    places = free_places(taken, per_batch=2, per_shard=2)
    assert [next(places) for _ in range(2)] == [
        ("batch100", "shard10000"),
        ("batch101", "shard0000"),
    ]
