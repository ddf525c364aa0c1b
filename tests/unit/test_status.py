"""The status view and the summary of a run, read from a work tree that other jobs write."""

import io
import json

import pytest
from rich.console import Console

from mrmill import status as module
from mrmill.catalog import write_table
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.ledger import COLUMNS
from mrmill.records import Journal, Outcome, Record, manifest_of, write_json
from mrmill.status import read_status, stage_seconds, status_table, summary_text

OK = Outcome()
NO = Outcome("rejected", "no_center")
BROKEN = Outcome("failed", "error", error="ValueError deface.py:12")


@pytest.fixture
def work(tmp_path):
    tree = WorkTree(tmp_path / "work")
    shards = {name: {"n_studies": 4, "digest": name} for name in ("s0", "s1")}
    write_json(tree.shards, {"batches": {"batch00": shards}})
    return tree


def write(work, stage, shard, finished=True, wall_s=1.5, **outcomes):
    """Put down the records of a shard, and its manifest if it is finished."""
    records = [Record(uid, "key", o, usage={"wall_s": wall_s}) for uid, o in outcomes.items()]
    journal = Journal(work.journal("batch00", stage, shard))
    for record in records:
        journal.append("start", record.study_uid)
        journal.write(record)
    if finished:
        write_json(work.manifest("batch00", stage, shard), manifest_of(records))


def counts(work):
    return {
        row.stage: (row.shards_done, row.shards, row.accepted, row.rejected, row.failed, row.to_do)
        for row in read_status(work).stages
    }


def shown(renderable):
    console = Console(file=io.StringIO(), width=100)
    console.print(renderable)
    return console.file.getvalue()


def test_nothing_is_shown_before_the_first_plan(tmp_path):
    status = read_status(WorkTree(tmp_path))
    assert (status.stages, status.failures) == ((), ())
    assert "nothing has begun yet" in shown(status_table(status))


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


def test_a_study_in_flight_is_to_do(work):
    write(work, "convert", "s0", finished=False, A=OK)
    Journal(work.journal("batch00", "convert", "s0")).append("start", "B")
    assert counts(work)["convert"] == (0, 2, 1, 0, 0, 7)


def test_the_spaces_stand_beside_each_other(work):
    for shard, uids in (("s0", "ABCD"), ("s1", "EFGH")):
        write(work, "deface", shard, **dict.fromkeys(uids, OK))
    write(work, "register", "s0", A=OK, B=BROKEN, C=OK, D=OK)
    for space in ("native", "coreg"):
        write(work, f"package-{space}", "s0", finished=False)
        Journal(work.journal("batch00", f"package-{space}", "s0")).append("start", "A")
    assert counts(work)["package-native"][-1] == 8
    assert counts(work)["package-coreg"][-1] == 3 + 4


def test_a_journal_is_not_read_once_there_is_a_manifest(work):
    write(work, "convert", "s0", A=OK, B=OK, C=OK, D=OK)
    work.journal("batch00", "convert", "s0").unlink()
    assert counts(work) == {"convert": (1, 2, 4, 0, 0, 4)}


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
    alone = read_status(work, "batch01")
    assert [(row.batch, row.to_do) for row in alone.stages] == [("batch01", 4)]
    assert alone.failures == ()
    assert len(read_status(work).stages) == 2


def test_failures_are_named_with_the_class_and_line_of_their_error(work):
    write(work, "deface", "s0", A=OK, B=BROKEN, C=NO, D=Outcome("failed", "killed"))
    status = read_status(work)
    told = {(f.study_uid, f.stage, f.error) for f in status.failures}
    assert told == {("B", "deface", "ValueError deface.py:12"), ("D", "deface", "killed")}
    assert "B  deface  ValueError deface.py:12" in shown(status_table(status))


def test_only_the_last_failures_are_shown(work, monkeypatch):
    monkeypatch.setattr(module, "SHOWN_FAILURES", 2)
    write(work, "convert", "s0", A=BROKEN, B=BROKEN, C=BROKEN, D=BROKEN)
    status = read_status(work)
    assert len(status.failures) == 2
    assert status.stages[0].failed == 4


def test_scripts_get_the_same_numbers_as_json(work):
    write(work, "convert", "s0", A=OK, B=BROKEN, C=NO, D=OK)
    found = json.loads(json.dumps(read_status(work).as_dict()))
    (stage,) = found["stages"]
    assert stage == {
        **{"batch": "batch00", "stage": "convert", "shards_done": 1, "shards": 2},
        **{"accepted": 2, "rejected": 1, "failed": 1, "to_do": 4},
    }
    assert found["failures"][0]["study_uid"] == "B"


def test_seconds_of_a_stage_count_the_last_record_of_each_study(work):
    write(work, "deface", "s0", finished=False, wall_s=100, A=OK)
    write(work, "deface", "s0", wall_s=2, A=OK, B=OK)
    write(work, "register", "s1", wall_s=0.5, E=OK)
    assert stage_seconds(work) == {"deface": 4, "register": 0.5}


def test_the_summary_of_a_run_says_what_became_of_everything(work):
    release = ReleaseTree(work.root.parent / "release", "TINY")
    write(work, "deface", "s0", wall_s=61, A=OK)
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
