"""The status view and the summary of a run, read from a work tree that other jobs write."""

import csv
import io
import json
import os
import subprocess
import sys
import time

import pytest
from conftest import environment
from rich.console import Console

from mrmill.catalog import write_table
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.lease import SILENT_S, Lease
from mrmill.ledger import COLUMNS, stages_of
from mrmill.records import Journal, Outcome, Record, manifest_of, signed, write_json
from mrmill.status import StatusReader, pace, read_status, stage_seconds, write_failures
from mrmill.status import live as live_module
from mrmill.status import text as text_module
from mrmill.status.live import watch
from mrmill.status.text import status_line, status_table, summary_text

OK = Outcome()
NO = Outcome("rejected", "no_center")
BROKEN = Outcome("failed", "error", error="ValueError deface.py:12")


@pytest.fixture
def work(tmp_path):
    tree = WorkTree(tmp_path / "work")
    shards = {name: {"n_studies": 4, "digest": name} for name in ("s0", "s1")}
    write_json(tree.shards, {"batches": {"batch00": shards}})
    return tree


def write(work, stage, shard, finished=True, ended=0.0, **outcomes):
    """Put down the records of a shard, and its manifest if it is finished."""
    records = [Record(uid, "key", o, usage={"ended": ended}) for uid, o in outcomes.items()]
    journal = journal_of(work, stage, shard)
    for record in records:
        journal.append("start", record.study_uid)
        journal.write(record)
    if finished:
        write_json(work.manifest("batch00", stage, shard), manifest_of(records))


def journal_of(work, stage, shard):
    return Journal(work.journal("batch00", stage, shard))


def lease_of(work, stage, shard):
    return Lease(work.lease("batch00", stage, shard))


def counts(work):
    return {
        row.stage: (row.shards_done, row.shards, row.accepted, row.rejected, row.failed, row.to_do)
        for row in read_status(work).stages
    }


def shown(renderable):
    console = Console(file=io.StringIO(), width=150)
    console.print(renderable)
    return console.file.getvalue()


def test_nothing_is_shown_before_the_first_plan(tmp_path):
    status = read_status(WorkTree(tmp_path))
    assert (status.stages, status.failures) == ((), ())
    assert "nothing is planned yet" in shown(status_table(status))


def test_finished_and_running_shards_add_up_to_the_studies_planned(work):
    write(work, "convert", "s0", A=OK, B=OK, C=NO, D=OK)
    write(work, "convert", "s1", finished=False, E=OK, F=BROKEN)
    assert counts(work) == {"convert": (1, 2, 4, 1, 1, 2)}


def test_only_studies_that_can_still_come_are_to_do_in_a_later_stage(work):
    write(work, "convert", "s0", A=OK, B=OK, C=NO, D=OK)
    write(work, "convert", "s1", finished=False, E=OK, F=BROKEN)  # two of four still to do
    write(work, "curate", "s0", finished=False, A=NO)
    # s0: B and D of three; s1: E and the two that convert has yet to decide
    assert counts(work)["curate"] == (0, 2, 0, 1, 0, 2 + 3)


def test_a_study_in_flight_runs_as_long_as_its_job_lives(work):
    write(work, "convert", "s0", finished=False, A=OK)
    journal_of(work, "convert", "s0").append("start", "B")
    with lease_of(work, "convert", "s0"):
        status = read_status(work)
        (row,) = status.stages
        assert (row.running, row.shards_running, row.to_do) == (1, 1, 6)
        assert status.running
    status = read_status(work)
    (row,) = status.stages
    assert (row.running, row.shards_running, row.to_do) == (0, 0, 7)
    assert not status.running


def test_the_job_of_another_machine_lives_while_its_heart_beats(work):
    write(work, "convert", "s0", finished=False, A=OK)
    lease = work.lease("batch00", "convert", "s0")
    lease.write_text(json.dumps({"token": "x", "host": "elsewhere", "pid": 1, "born": "1"}))
    before = sorted(work.root.rglob("*"))
    assert read_status(work).running
    silent = time.time() - SILENT_S - 5
    os.utime(lease, (silent, silent))
    assert not read_status(work).running
    assert sorted(work.root.rglob("*")) == before, "whoever looks on leaves nothing behind"


def test_stages_that_have_not_begun_are_to_do(work):
    write(work, "convert", "s0", A=OK, B=NO, C=OK, D=OK)
    status = read_status(work, stages_of(["native"]))
    assert {row.stage: row.to_do for row in status.stages} == {
        **{"convert": 4, "curate": 7, "deface": 7, "package-native": 7}
    }


def test_the_spaces_stand_beside_each_other(work):
    for shard, uids in (("s0", "ABCD"), ("s1", "EFGH")):
        write(work, "deface", shard, **dict.fromkeys(uids, OK))
    write(work, "register", "s0", A=OK, B=BROKEN, C=OK, D=OK)
    for space in ("native", "coreg"):
        journal_of(work, f"package-{space}", "s0").append("start", "A")
    assert counts(work)["package-native"][-1] == 8
    assert counts(work)["package-coreg"][-1] == 3 + 4


def test_a_journal_is_not_read_once_there_is_a_manifest(work):
    write(work, "convert", "s0", A=OK, B=OK, C=OK, D=OK)
    work.journal("batch00", "convert", "s0").unlink()
    assert counts(work) == {"convert": (1, 2, 4, 0, 0, 4)}


def test_a_look_goes_on_where_the_last_one_ended(work):
    reader = StatusReader(work)
    write(work, "convert", "s0", finished=False, A=OK)
    path = work.journal("batch00", "convert", "s0")
    assert reader.read().stages[0].accepted == 1
    record = signed(Record("B", "key", NO).to_line()) + b"\n"
    with path.open("ab") as file:
        file.write(record[:50])
    assert reader.read().stages[0].rejected == 0  # half a line says nothing
    with path.open("ab") as file:
        file.write(record[50:])
    write(work, "convert", "s0", finished=False, C=BROKEN)
    (row,) = reader.read().stages
    assert (row.accepted, row.rejected, row.failed) == (1, 1, 1)
    path.unlink()
    write(work, "convert", "s0", finished=False, A=NO)
    (row,) = reader.read().stages
    assert (row.accepted, row.rejected, row.failed) == (0, 1, 0)


def test_a_finished_shard_is_not_read_again_before_it_changes(work, monkeypatch):
    write(work, "convert", "s0", A=OK, B=OK, C=OK, D=OK)
    reader = StatusReader(work)
    first = reader.read()
    manifest = work.manifest("batch00", "convert", "s0")
    text, stat = manifest.read_text(), manifest.stat()
    manifest.write_text("unreadable")
    os.utime(manifest, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert reader.read() == first
    manifest.write_text(text.replace("accepted", "rejected", 2))
    assert reader.read() != first


def test_a_changed_manifest_is_seen_at_the_next_look(work):
    write(work, "convert", "s0", A=OK, B=OK, C=OK, D=OK)
    assert counts(work)["convert"][2] == 4
    write(work, "convert", "s0", A=OK, B=OK, C=OK, D=NO)
    assert counts(work)["convert"][2:4] == (3, 1)


def test_one_batch_is_shown_alone(work):
    shards = {"batch00": {"s0": {"n_studies": 4}}, "batch01": {"s0": {"n_studies": 4}}}
    write_json(work.shards, {"batches": shards})
    (work.root / "batch01" / "convert").mkdir(parents=True)
    write(work, "convert", "s0", A=OK, B=BROKEN, C=NO, D=OK)
    alone = read_status(work, only_batch="batch01")
    assert [(row.batch, row.to_do) for row in alone.stages] == [("batch01", 4)]
    assert alone.failures == ()
    assert len(read_status(work).stages) == 2


@pytest.mark.parametrize("finished", [True, False])
def test_failures_are_named_with_the_class_and_line_of_their_error_and_the_log(work, finished):
    series = [
        {"series_key": "S1", "state": "failed", "reason": "error", "error": "OSError x.py:3"},
        {"series_key": "S2", "state": "accepted", "reason": ""},
    ]
    outcomes = {"A": Outcome(series=series), "B": BROKEN, "D": Outcome("failed", "killed")}
    write(work, "deface", "s0", finished, **outcomes, C=NO)
    status = read_status(work)
    told = {(f.study_uid, f.series_key, f.stage, f.reason, f.error) for f in status.failures}
    assert told == {
        ("A", "S1", "deface", "error", "OSError x.py:3"),
        ("B", "", "deface", "error", "ValueError deface.py:12"),
        ("D", "", "deface", "killed", ""),
    }
    assert {f.log for f in status.failures} == {"logs/batch00/deface/s0.log"}
    text = shown(status_table(status))
    assert "A/S1  batch00  deface  OSError x.py:3  logs/batch00/deface/s0.log" in text
    assert "D  batch00  deface  killed" in text


def test_studies_of_a_job_that_gave_up_are_still_told_of(work):
    """Too many failed: they are open again, and yet a person wants to know why."""
    write(work, "deface", "s0", finished=False, A=OK, B=BROKEN, C=BROKEN)
    for uid in "ABC":  # an accepted one too: it no longer reaches this stage
        journal_of(work, "deface", "s0").append("reopen", uid)
    status = read_status(work)
    assert status.stages[0].failed == 0
    assert {(f.study_uid, f.reopened) for f in status.failures} == {("B", True), ("C", True)}
    assert "the next run tries again" in shown(status_table(status))
    journal_of(work, "deface", "s0").append("start", "B")
    assert [f.study_uid for f in read_status(work).failures] == ["C"]


def test_the_table_of_failures_has_no_name_of_a_file_of_the_export(work):
    write(work, "deface", "s0", A=BROKEN, B=OK)
    write(work, "convert", "s1", finished=False, E=Outcome("failed", "killed"))
    write_failures(work, read_status(work).failures)
    with work.failures.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {
            **{"study_uid": "A", "series_key": "", "batch": "batch00", "stage": "deface"},
            **{"shard": "s0", "reason": "error", "error": "ValueError deface.py:12"},
            **{"log": "logs/batch00/deface/s0.log", "reopened": "False"},
        },
        {
            **{"study_uid": "E", "series_key": "", "batch": "batch00", "stage": "convert"},
            **{"shard": "s1", "reason": "killed", "error": ""},
            **{"log": "logs/batch00/convert/s1.log", "reopened": "False"},
        },
    ]
    assert work.failures.stat().st_mode & 0o777 == 0o600


def test_only_the_last_failures_are_shown(work, monkeypatch):
    monkeypatch.setattr(text_module, "SHOWN_FAILURES", 1)
    write(work, "convert", "s0", finished=False, ended=1000.0, A=BROKEN, B=OK)
    write(work, "convert", "s1", finished=False, ended=2000.0, E=BROKEN)
    text = shown(status_table(read_status(work)))
    assert "E  batch00" in text
    assert "A  batch00" not in text
    assert "failed: 2, the last ones" in text


def test_the_pace_is_that_of_the_last_hour_while_something_runs(work):
    now = time.time()
    for minute, uid in enumerate("ABCD"):
        write(work, "convert", "s0", finished=False, ended=now - 600 + 60 * minute, **{uid: OK})
    for minute, uid in enumerate("EF", 4):
        write(work, "convert", "s1", finished=False, ended=now - 600 + 60 * minute, **{uid: OK})
    assert read_status(work).stages[0].per_hour is None  # nothing is at work
    with lease_of(work, "convert", "s1"):
        (row,) = read_status(work).stages
    assert row.per_hour == pytest.approx(5 * 6, rel=0.02)  # five after the first, in ten minutes
    assert row.to_do == 2
    assert row.left_s == pytest.approx(2 / 30 * 3600, rel=0.02)


def test_studies_of_yesterday_say_nothing_about_the_pace():
    day = 24 * 3600.0
    assert pace([(0, 100), (60, 100)], now=day) is None
    assert pace([(0, 100), *((day - t, 1) for t in range(60, 420, 60))], now=day) == 5 * 10


def test_the_time_left_is_not_known_before_every_stage_has_a_pace(work):
    now = time.time()
    uids = dict.fromkeys("ABCD", OK)
    for shard in ("s0", "s1"):
        write(work, "convert", shard, **uids)
    write(work, "curate", "s0", finished=False, ended=now - 10, **uids)
    with Lease(work.run_lease):
        status = read_status(work, ["convert", "curate"])
        assert status.left_s is None
        assert "not known yet" in shown(status_table(status))
        for n, uid in enumerate("EF"):
            write(work, "curate", "s1", finished=False, ended=now - 1 - n, **{uid: OK})
        status = read_status(work, ["convert", "curate"])
        assert status.left_s is not None
        assert status.left_s == status.totals[1].left_s > 0
        assert "time left: 1 min" in status_line(status)


def test_many_batches_are_summed_up_and_those_in_work_follow(work):
    shards = {"s0": {"n_studies": 4}, "s1": {"n_studies": 4}}
    write_json(work.shards, {"batches": {f"batch{n:02}": shards for n in range(4)}})
    write(work, "convert", "s0", A=OK, B=OK, C=NO, D=OK)
    status = read_status(work, ["convert"])
    (total,) = status.totals
    assert (total.batch, total.shards_done, total.shards) == ("", 1, 8)
    assert (total.decided, total.to_do) == (4, 28)
    text = shown(status_table(status))
    assert "all" in text
    assert "batch00" in text
    assert "batch01" not in text


def test_scripts_get_the_same_numbers_as_json(work):
    write(work, "convert", "s0", A=OK, B=BROKEN, C=NO, D=OK)
    found = json.loads(json.dumps(read_status(work).as_dict()))
    (stage,) = found["stages"]
    assert stage == {
        **{"batch": "batch00", "stage": "convert", "shards_done": 1, "shards": 2},
        **{"accepted": 2, "rejected": 1, "failed": 1, "running": 0, "to_do": 4},
        **{"shards_running": 0, "per_hour": None, "left_s": None},
    }
    assert found["totals"] == [{**stage, "batch": ""}]
    assert found["failures"][0]["study_uid"] == "B"
    assert (found["running"], found["left_s"]) == (False, None)


def ends_after(monkeypatch, looks, then):
    """Have a watch sleep not at all, and do something after some looks."""
    count = iter(range(1, looks + 1))
    monkeypatch.setattr(
        live_module.time, "sleep", lambda _: then() if next(count) == looks else None
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_a_watch_ends_with_the_run(work, monkeypatch, terminal):
    write(work, "convert", "s0", finished=False, A=OK)
    console = Console(file=io.StringIO(), width=150, force_terminal=terminal)
    run = Lease(work.run_lease)
    with run:
        ends_after(monkeypatch, 3, work.run_lease.unlink)
        watch(StatusReader(work), "", console, as_json=False)
    text = console.file.getvalue()
    assert "nothing is running" in text
    if not terminal:
        first, _ = text.splitlines()  # nothing changed in between
        assert "convert 1/8; time left: not known yet, too few" in first


def test_a_watch_as_json_is_one_object_per_line_and_ends_on_ctrl_c(work, monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    with Lease(work.run_lease):
        ends_after(monkeypatch, 2, interrupt)
        watch(StatusReader(work), "", Console(), as_json=True)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["running"] for line in lines] == [True, True]


def test_to_look_on_loads_nothing_heavy(work):
    script = (
        "import sys; from pathlib import Path; from mrmill.layout import WorkTree;"
        "from mrmill.status import read_status; from mrmill.status.text import status_table;"
        f"status_table(read_status(WorkTree(Path({str(work.root)!r}))));"
        "print({'torch', 'ants', 'pandas', 'pyarrow', 'nibabel', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert result.stdout.strip() == "set()", result.stdout + result.stderr


def attempt(work, stage, shard, *cpu_s):
    path = work.attempts("batch00", stage, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"stage": stage, "state": "done", "cpu_s": seconds} for seconds in cpu_s]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_seconds_of_a_stage_are_those_of_all_attempts(work):
    attempt(work, "deface", "s0", 100, 2)
    attempt(work, "deface", "s1", 2)
    attempt(work, "register", "s1", 0.5)
    assert stage_seconds(work) == {"deface": 104, "register": 0.5}


def test_the_summary_of_a_run_says_what_became_of_everything(work):
    release = ReleaseTree(work.root.parent / "release", "TINY")
    attempt(work, "deface", "s0", 61)
    told = {"A": ("accepted", ""), "B": ("rejected", "localizer"), "C": ("failed", "killed")}
    rows = [
        {"study_uid": u, "series_key": u, "state": s, "reason": r} for u, (s, r) in told.items()
    ]
    rows[0]["coreg"] = "reg_needs_review"
    write_table(release.ledger, COLUMNS, [*rows, rows[1]])
    text = summary_text(work, release)
    lines = [line.split() for line in text.splitlines()]
    assert ["series", "4", "1", "2", "1"] in lines
    assert ["studies", "3", "1", "1", "1"] in lines
    assert ["2", "localizer"] in lines
    assert ["1", "killed"] in lines
    assert ["61.0", "s", "deface"] in lines
    assert f"mrmill verify {release.root}" in text
    assert "some wait for a person's look (reg_needs_review)" in text
