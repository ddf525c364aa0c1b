"""Files whose time changed and whose bytes did not keep the digest they were planned with."""

import os

import pytest

from mrmill.layout import ReleaseTree, WorkTree
from mrmill.plan.touched import settled
from mrmill.records import Journal, Outcome, Record
from mrmill.shards import ShardJob, Study
from mrmill.stamps import digest_of_content, digest_of_files


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"one")
    (tmp_path / "b.dcm").write_bytes(b"two")
    return tmp_path


def planned(folder, **more):
    names = ["a.dcm", "b.dcm"]
    digest = digest_of_files(folder, names)
    series = {"series_key": "S", "folder": str(folder), "files": names, "digest": digest}
    return {"study_uid": "A", "patient_uid": "P", "reject": "", "series": [{**series, **more}]}


def converted(folder, tmp_path):
    """A journal that says which bytes were converted."""
    journal = Journal(tmp_path / "convert.jsonl")
    (series,) = planned(folder)["series"]
    entry = {"series_key": "S", "source": "S", "source_sha256": digest_of_content(series)}
    outcome = Outcome(series=[{**entry, "state": "accepted", "reason": ""}])
    journal.write(Record("A", "key", outcome))
    return journal


def touch(folder, name="a.dcm"):
    os.utime(folder / name, ns=(5, 5))


def settle(now, before, journal):
    (study,) = settled([now], {"A": before}, journal)
    return study


def test_a_touched_series_keeps_its_digest_and_says_what_it_looks_like(folder, tmp_path):
    before, journal = planned(folder), converted(folder, tmp_path)
    touch(folder)
    now = planned(folder)
    kept = settle(now, before, journal)
    assert kept["series"] == before["series"]
    assert kept["stamps"] == {"S": now["series"][0]["digest"]}
    again = settle(planned(folder), kept, Journal(tmp_path / "none.jsonl"))  # no bytes are read
    assert again == kept


def test_touched_back_it_is_as_it_was_planned(folder, tmp_path):
    stat = (folder / "a.dcm").stat()
    before, journal = planned(folder), converted(folder, tmp_path)
    touch(folder)
    kept = settle(planned(folder), before, journal)
    os.utime(folder / "a.dcm", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert settle(planned(folder), kept, journal) == before


def test_other_bytes_of_the_same_size_are_another_series(folder, tmp_path):
    before, journal = planned(folder), converted(folder, tmp_path)
    (folder / "a.dcm").write_bytes(b"ONE")
    touch(folder)
    now = planned(folder)
    assert settle(now, before, journal) == now != before


def test_what_was_never_converted_is_planned_anew(folder, tmp_path):
    before = planned(folder)
    touch(folder)
    now = planned(folder)
    assert settle(now, before, Journal(tmp_path / "none.jsonl")) == now


@pytest.mark.parametrize("what", ["another table", "another place"])
def test_whatever_else_changes_counts(folder, tmp_path, what):
    before, journal = planned(folder, table={}), converted(folder, tmp_path)
    touch(folder)
    changed = {"table": {"a": 1}} if what == "another table" else {"table": {}, "n_sop": 3}
    now = planned(folder, **changed)
    assert settle(now, before, journal) == now


def test_of_what_the_plan_rejects_the_bytes_do_not_matter(folder, tmp_path):
    before = {**planned(folder), "reject": "mixed_patients"}
    touch(folder)
    now = {**planned(folder), "reject": "mixed_patients"}
    kept = settle(now, before, Journal(tmp_path / "none.jsonl"))
    assert kept["series"] == before["series"]


def test_what_files_look_like_redoes_no_study(folder, tmp_path):
    job = ShardJob(WorkTree(tmp_path), ReleaseTree(tmp_path, "X"), "b", "s", "convert", {})
    plain, touched = planned(folder), {**planned(folder), "stamps": {"S": "x"}}
    assert job.key(Study("A", "P", "b", plan=plain)) == job.key(Study("A", "P", "b", plan=touched))
