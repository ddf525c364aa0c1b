"""The study engine: whatever happens, every study ends in one state and nothing is half there."""

import errno
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from functools import partial

import pytest

from mrmill import shards
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.lease import Lease, LeaseTaken
from mrmill.reasons import Rejected
from mrmill.records import Journal, Outcome, read_signed, signed
from mrmill.shards import ShardFailed, ShardJob, guarded, process_shard

UIDS = ("STUDYA", "STUDYB", "STUDYC", "STUDYD")


@pytest.fixture
def tree(tmp_path):
    work = WorkTree(tmp_path / "work")
    plan = work.shard_plan("batch00", "shard0000")
    plan.parent.mkdir(parents=True)
    studies = [{"study_uid": u, "patient_uid": f"P{u}", "series": [u.lower()]} for u in UIDS]
    plan.write_text(json.dumps({"studies": studies}))
    return work


def job_on(work, stage="convert", needs=(), workers=1, **params):
    return ShardJob(
        work=work,
        release=ReleaseTree(work.root.parent / "release", "X"),
        batch="batch00",
        shard="shard0000",
        stage=stage,
        params=params,
        needs=needs,
        workers=workers,
    )


def write_name(study, scratch, calls=None):
    """Write a file that depends on the study alone."""
    if calls is not None:
        calls.append(study.study_uid)
    (scratch / "img").mkdir()
    (scratch / "img" / "name.txt").write_text(study.study_uid * 1000)
    return Outcome(series=[{"series_key": "S", "state": "accepted", "reason": ""}])


def snapshot(work):
    """Every file that must not depend on what happened on the way, with its bytes."""
    return {
        str(p.relative_to(work.root)): p.read_bytes()
        for p in work.root.rglob("*")
        if p.is_file() and p.suffix != ".jsonl"
    }


def in_child(function):
    """Run a function in a process of its own that may die; return its exit code."""
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join()
    return child.exitcode


def manifest(work, stage="convert"):
    return json.loads(work.manifest("batch00", stage, "shard0000").read_text())


@pytest.fixture
def undisturbed(tree, tmp_path):
    process_shard(job_on(tree), write_name)
    found = snapshot(tree)
    for path in (tree.root / "batch00").rglob("*"):
        if path.is_file():
            path.unlink()
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_every_study_has_its_files_a_record_and_a_line_in_the_manifest(tree, workers):
    process_shard(job_on(tree, workers=workers), write_name)
    assert manifest(tree)["counts"] == {"accepted": 4, "rejected": 0, "failed": 0}
    for uid in UIDS:
        assert (tree.study("batch00", "convert", uid) / "img/name.txt").read_text() == uid * 1000
    usage = job_on(tree).journal.records()["STUDYA"].usage
    assert usage["wall_s"] >= 0
    assert usage["peak_rss_mb"] > 1


def test_a_second_run_does_nothing(tree):
    process_shard(job_on(tree), write_name)
    before, calls = snapshot(tree), []
    process_shard(job_on(tree), partial(write_name, calls=calls))
    assert calls == []
    assert snapshot(tree) == before


def test_a_changed_setting_redoes_every_study(tree):
    process_shard(job_on(tree, buffer_mm=10), write_name)
    calls = []
    process_shard(job_on(tree, buffer_mm=12), partial(write_name, calls=calls))
    assert sorted(calls) == sorted(UIDS)


def test_a_changed_input_redoes_its_study_only(tree):
    process_shard(job_on(tree), write_name)
    plan = tree.shard_plan("batch00", "shard0000")
    changed = json.loads(plan.read_text())
    changed["studies"][1]["series"].append("late")
    plan.write_text(json.dumps(changed))
    calls = []
    process_shard(job_on(tree), partial(write_name, calls=calls))
    assert calls == ["STUDYB"]


def test_what_is_said_of_one_study_redoes_that_study_only(tree):
    process_shard(job_on(tree), write_name)
    calls = []
    job = replace(job_on(tree), per_study={"STUDYB": "admit"})
    process_shard(job, partial(write_name, calls=calls))
    assert calls == ["STUDYB"]


def test_a_missing_file_redoes_its_study_only(tree):
    process_shard(job_on(tree), write_name)
    (tree.study("batch00", "convert", "STUDYC") / "img/name.txt").unlink()
    calls = []
    process_shard(job_on(tree), partial(write_name, calls=calls))
    assert calls == ["STUDYC"]


def test_files_without_a_record_are_made_again(tree):
    folder = tree.study("batch00", "convert", "STUDYA")
    folder.mkdir(parents=True)
    (folder / "left-over.txt").write_text("half a study")
    process_shard(job_on(tree), write_name)
    assert [p.name for p in folder.rglob("*.txt")] == ["name.txt"]


def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_c(study, scratch):
    if study.study_uid == "STUDYC":
        die()
    return write_name(study, scratch)


def full(study, scratch):
    raise OSError(errno.ENOSPC, "No space left on device")


STEPS = {
    "before the first study": (shards, "_start"),
    "after its start line": (shards, "_work"),
    "with half of its files": (shards, "checksums"),
    "before its rename": (shards.shutil, "rmtree"),
    "after its rename, before its record": (shards, "write_collected"),
    "before the manifest": (shards, "write_json"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_job_killed_at_any_step_resumes_to_the_same_bytes(tree, undisturbed, monkeypatch, step):
    with monkeypatch.context() as patched:
        patched.setattr(*STEPS[step], die)
        assert in_child(lambda: process_shard(job_on(tree), write_name)) == -signal.SIGKILL
    process_shard(job_on(tree), write_name)
    assert snapshot(tree) == undisturbed


def test_work_done_before_a_kill_is_kept(tree):
    in_child(lambda: process_shard(job_on(tree), die_at_c))
    calls = []
    process_shard(job_on(tree), partial(write_name, calls=calls))
    assert sorted(calls) == ["STUDYC", "STUDYD"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_study_that_kills_its_process_twice_is_failed_and_the_others_finish(tree, workers):
    for _ in range(3):
        in_child(lambda: process_shard(job_on(tree, workers=workers), die_at_c))
    assert manifest(tree)["counts"] == {"accepted": 3, "rejected": 0, "failed": 1}
    assert manifest(tree)["studies"]["STUDYC"]["reason"] == "killed"


def test_a_polite_end_does_not_count_as_a_death(tree):
    def end_at_c(study, scratch):
        if study.study_uid == "STUDYC":
            os.kill(os.getpid(), signal.SIGTERM)
        return write_name(study, scratch)

    for _ in range(3):
        assert in_child(lambda: process_shard(job_on(tree), end_at_c)) == 128 + signal.SIGTERM
    assert job_on(tree).journal.history()["STUDYC"].deaths == 0
    process_shard(job_on(tree), write_name)
    assert manifest(tree)["counts"]["accepted"] == 4


def test_a_torn_last_line_is_ignored_and_written_after(tree):
    process_shard(job_on(tree), write_name)
    path = job_on(tree).journal.path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    calls = []
    process_shard(job_on(tree), partial(write_name, calls=calls))
    assert calls == ["STUDYD"]
    assert manifest(tree)["counts"]["accepted"] == 4


@pytest.mark.parametrize("line", [{"event": "start", "study_uid": "A"}, {"event": "x", "é": [1]}])
def test_a_line_of_a_journal_with_any_byte_changed_counts_as_not_written(line):
    raw = signed(line) + b"\n"
    assert read_signed(raw).items() >= line.items()
    for place in range(len(raw) - 4):  # after it come only the end of the string and the line
        changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        assert read_signed(changed) is None
    for length in range(len(raw) - 3):
        assert read_signed(raw[:length]) is None


def test_a_study_whose_record_was_changed_on_the_disk_is_done_again(tree):
    process_shard(job_on(tree), write_name)
    before = snapshot(tree)
    journal = tree.journal("batch00", "convert", "shard0000")
    record = journal.read_bytes().replace(b'"state": "accepted"', b'"state": "rejected"', 1)
    journal.write_bytes(record)
    calls = []
    process_shard(job_on(tree), partial(write_name, calls=calls))
    assert len(calls) == 1
    assert snapshot(tree) == before


def test_rejected_and_failed_studies_are_recorded_and_the_shard_goes_on(tree):
    def poisoned(study, scratch):
        if study.study_uid == "STUDYA":
            raise Rejected("no_center")
        if study.study_uid == "STUDYB":
            raise ValueError("text with a /secret/path")
        return write_name(study, scratch)

    process_shard(job_on(tree), poisoned)
    assert manifest(tree)["counts"] == {"accepted": 2, "rejected": 1, "failed": 1}
    failed = job_on(tree).journal.records()["STUDYB"].outcome
    assert failed.error.startswith("ValueError test_shards.py:")
    assert "secret" not in job_on(tree).journal.path.read_text()


def test_too_many_failures_fail_the_job_and_are_tried_again(tree):
    def broken(study, scratch):
        raise RuntimeError

    with pytest.raises(ShardFailed, match="4 of 4"):
        process_shard(job_on(tree), broken)
    assert not tree.manifest("batch00", "convert", "shard0000").exists()
    process_shard(job_on(tree), write_name)
    assert manifest(tree)["counts"]["accepted"] == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_the_job_and_blames_no_study(tree, workers):
    with pytest.raises(OSError, match="No space left"):
        process_shard(job_on(tree, workers=workers), full)
    assert job_on(tree).journal.records() == {}
    process_shard(job_on(tree, workers=workers), write_name)
    assert manifest(tree)["counts"]["accepted"] == 4


def read_upstream(study, scratch, calls):
    calls.append(study.study_uid)
    (scratch / "b").write_bytes((study.folders["convert"] / "img/name.txt").read_bytes())
    return Outcome()


def test_a_later_stage_sees_accepted_studies_only_and_forgets_the_others(tree):
    def without_a(study, scratch):
        if study.study_uid == "STUDYA":
            raise Rejected("no_center")
        return write_name(study, scratch)

    calls = []
    second = job_on(tree, stage="curate", needs=("convert",))
    process_shard(job_on(tree), write_name)
    process_shard(second, partial(read_upstream, calls=calls))
    assert sorted(calls) == sorted(UIDS)
    process_shard(job_on(tree, limit=1), without_a)
    process_shard(second, partial(read_upstream, calls=calls))
    assert list(manifest(tree, "curate")["studies"]) == ["STUDYB", "STUDYC", "STUDYD"]
    assert not tree.study("batch00", "curate", "STUDYA").exists()


def test_a_redone_stage_with_equal_results_redoes_nothing_after_it(tree):
    calls = []
    second = job_on(tree, stage="curate", needs=("convert",))
    process_shard(job_on(tree, limit=1), write_name)
    process_shard(second, partial(read_upstream, calls=calls))
    process_shard(job_on(tree, limit=2), write_name)
    process_shard(second, partial(read_upstream, calls=calls))
    assert len(calls) == len(UIDS)


def with_cell(study, scratch, cell):
    (scratch / "a").write_text(study.study_uid)
    row = {"TE_ms": cell}
    return Outcome(series=[{"series_key": "S", "state": "accepted", "reason": "", "row": row}])


def test_a_cell_of_a_table_row_redoes_no_later_stage_but_changes_the_manifest(tree):
    calls = []
    first, second = job_on(tree), job_on(tree, stage="curate", needs=("convert",))
    process_shard(first, partial(with_cell, cell=1))
    before = manifest(tree)
    process_shard(second, partial(count, calls=calls))
    process_shard(replace(first, params={"new": 1}), partial(with_cell, cell=2))
    process_shard(second, partial(count, calls=calls))
    assert len(calls) == len(UIDS)
    assert manifest(tree)["studies"] != before["studies"]


def count(study, scratch, calls):
    calls.append(study.study_uid)
    return Outcome()


def test_one_bad_series_does_not_touch_its_siblings():
    entries = [{"series_key": k} for k in "abc"]
    for entry in entries:
        with guarded(entry):
            if entry["series_key"] == "a":
                raise Rejected("too_few_voxels", found="8", limit="16")
            if entry["series_key"] == "b":
                raise ZeroDivisionError
    assert [e["state"] for e in entries] == ["rejected", "failed", "accepted"]
    assert entries[0]["limit"] == "16"
    assert entries[1]["error"].startswith("ZeroDivisionError")


def test_a_reason_outside_the_closed_list_is_a_defect():
    with pytest.raises(KeyError, match="no_such_reason"):
        Rejected("no_such_reason")


def test_a_lease_is_refused_while_its_holder_lives_and_taken_when_it_is_gone(tmp_path):
    path = tmp_path / "x.lease"
    with Lease(path):
        with pytest.raises(LeaseTaken, match=str(os.getpid())):
            Lease(path).__enter__()
        code = in_child(lambda: Lease(path).__enter__())
        assert code != 0
    assert not path.exists()

    def take_and_die():
        Lease(path).__enter__()
        die()

    in_child(take_and_die)
    assert path.exists()
    with Lease(path) as lease:
        assert lease.held()


def test_scratch_of_dead_jobs_is_swept_and_that_of_other_shards_is_left(tree):
    stage = tree.study("batch00", "convert", "x").parent
    for name in (".STUDYA.1234.part", ".OTHER.1234.part"):
        (stage / name).mkdir(parents=True)
    process_shard(job_on(tree), write_name)
    assert [p.name for p in stage.glob(".*.part")] == [".OTHER.1234.part"]


def test_the_same_study_gives_the_same_record_content_whatever_the_order(tree):
    process_shard(job_on(tree, workers=2), write_name)
    contents = {u: r.content for u, r in Journal(job_on(tree).journal.path).records().items()}
    job_on(tree).journal.path.unlink()
    process_shard(job_on(tree), write_name)
    assert contents == {u: r.content for u, r in job_on(tree).journal.records().items()}
