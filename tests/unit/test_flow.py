"""The flow adds up at every step, or there is none; and it can be looked at."""

import io
import random

import pytest
from recorded import ALL, random_run
from rich.console import Console

from mrmill.catalog import write_table
from mrmill.layout import WorkTree
from mrmill.ledger import ledger_rows
from mrmill.ledger.flow import (
    BRANCHES,
    SOURCE,
    Flow,
    FlowError,
    Flows,
    Step,
    combined,
    files_left_out,
    flow,
    flow_table,
    read_flows,
)
from mrmill.ledger.picture import OTHERS, draw_flow, drawn_losses
from mrmill.records import write_json


def row(uid, stage, state="accepted", reason="", key="K", found="", coreg=None, atlas=None):
    """A ledger's row; the spaces follow from the state unless they are given."""
    inside = "yes" if state == "accepted" else reason
    if reason == "study_rejected":
        inside = found
    told = {"study_uid": uid, "series_key": key, "stage": stage, "state": state}
    return {
        **told,
        **{"reason": reason, "found": found, "native": inside},
        "coreg": inside if coreg is None else coreg,
        "atlas": inside if atlas is None else atlas,
    }


def lost(uid, stage, reason, **more):
    return row(uid, stage, "rejected", reason, **more)


def told(found):
    return {step.name: (step.series, step.studies, dict(step.lost)) for step in found.steps}


ROWS = [
    row("A", "package-native", key="1"),
    row("A", "package-native", key="2", coreg="reg_failed", atlas="reg_failed"),
    lost("A", "curate", "localizer", key="3"),
    lost("A", "deface", "needs_review", key="4"),
    lost("B", "convert", "incomplete"),
    lost("C", "plan", "study_rejected", found="mixed_patients"),
    lost("D", "curate", "study_rejected", found="no_center"),
    row("E", "package-native", "failed", "error", coreg="yes", atlas="yes"),
]


def test_every_series_is_counted_where_it_was_lost():
    assert told(flow(ROWS)) == {
        "seen": (8, 5, {}),
        "converted": (6, 3, {"incomplete": 1, "mixed_patients": 1}),
        "accepted": (4, 2, {"localizer": 1, "no_center": 1}),
        "defaced": (3, 2, {"needs_review": 1}),
        "packaged, native": (2, 1, {"error": 1}),
        "registered, coreg": (2, 2, {"reg_failed": 1}),
        "registered, atlas": (2, 2, {"reg_failed": 1}),
    }


def test_a_study_without_series_is_seen_as_a_study_alone():
    found = flow([*ROWS, lost("F", "plan", "study_rejected", found="excluded", key="")])
    assert told(found)["seen"][:2] == (8, 6)
    assert told(found)["converted"] == told(flow(ROWS))["converted"]


def test_a_space_that_is_not_made_has_no_step():
    rows = [{**entry, "coreg": "", "atlas": ""} for entry in ROWS]
    assert [step.name for step in flow(rows).steps] == list(SOURCE)[:5]


def test_series_of_an_adopted_release_are_never_lost_before_defacing():
    rows = [row("A", "deface"), lost("A", "deface", "not_defaced", key="2")]
    assert told(flow(rows))["accepted"] == (2, 1, {})
    assert told(flow(rows))["packaged, native"] == (1, 1, {})


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_the_flow_is_that_of_the_records(seed):
    plan, records, expected = random_run(random.Random(seed), 40)
    found = flow(ledger_rows(plan, records))
    behind = {"convert": 0, "curate": 1, "deface": 2, "package-native": 3}
    for number, name in enumerate(("converted", "accepted", "defaced", "packaged, native"), 1):
        passed = [
            key
            for key, (state, stage) in expected.items()
            if state == "accepted" or behind[stage] >= number
        ]
        assert found[name].series == len(passed)
        assert found[name].studies == len({key.split("-")[0] for key in passed})


@pytest.mark.parametrize("seed", range(5))
def test_the_flows_of_batches_add_up_to_the_flow_of_all(seed):
    plan, records, _ = random_run(random.Random(seed), 40)
    rows = ledger_rows(plan, records)
    uids = sorted({entry["study_uid"] for entry in rows})
    halves = [uids[:25], uids[25:], []]
    parts = [flow([entry for entry in rows if entry["study_uid"] in half]) for half in halves]
    assert combined(parts) == flow(rows)
    random.Random(seed).shuffle(rows)
    assert combined(parts) == flow(rows)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stage": "curate"},  # accepted before it was defaced
        {"stage": "somewhere"},
        {"native": "reg_failed"},
        {"state": "rejected", "reason": "error"},  # and in native space all the same
        {"stage": "convert", "state": "rejected", "reason": "not_3d", "native": "not_3d"},
    ],
)
def test_a_row_that_contradicts_itself_is_named_by_its_study(wrong):
    rows = [row("GOOD", "package-native"), row("BAD", "package-native") | wrong]
    with pytest.raises(FlowError, match="study BAD: a series' row contradicts itself"):
        flow(rows)


@pytest.mark.parametrize("space", ALL)
def test_a_series_that_is_nowhere_without_a_reason_is_named_by_its_study(space):
    rows = [row("GOOD", "package-native"), row("HOLE", "package-native") | {space: ""}]
    with pytest.raises(FlowError, match=f"study HOLE: .* in {space} space"):
        flow(rows)


@pytest.mark.parametrize(("series", "studies", "n_lost"), [(9, 5, 0), (9, 5, 2), (9, 6, 1)])
def test_a_flow_that_does_not_add_up_cannot_be_made(series, studies, n_lost):
    steps = Step("seen", 10, 5, {}), Step("converted", series, studies, {"not_3d": n_lost})
    with pytest.raises(FlowError, match="does not close at converted"):
        Flow(steps)


def work_with(tmp_path, *finished):
    """A work tree with two planned batches, some of them finished with the flow of ROWS."""
    work = WorkTree(tmp_path)
    write_json(work.shards, {"batches": {"batch00": {}, "batch01": {}}})
    for batch in finished:
        write_json(work.part(batch, "flow.json"), flow(ROWS).as_dict())
        write_json(work.catalog(batch), {})
    skips = [{"reason": "not_dicom"}, {"reason": "truncated"}, {"reason": "not_dicom"}]
    write_table(work.skipped, ["folder", "name", "reason"], skips)
    return work


def test_only_finished_batches_have_a_flow(tmp_path):
    work = work_with(tmp_path, "batch01")
    write_json(work.part("batch00", "flow.json"), flow(ROWS).as_dict())  # left by an older run
    flows = read_flows(work)
    assert flows.batches == {"batch01": flow(ROWS)}
    assert flows.title == "flow of 1 of 2 batches"
    assert flows.left_out == {"not_dicom": 2, "truncated": 1}


def test_one_batch_can_be_asked_for_and_has_to_be_planned(tmp_path):
    work = work_with(tmp_path, "batch00", "batch01")
    assert read_flows(work).total == combined([flow(ROWS)] * 2)
    assert read_flows(work, "batch01").total == flow(ROWS)
    assert read_flows(work, "batch01").left_out == {}
    with pytest.raises(FlowError, match="there is no batch02; planned: batch00, batch01"):
        read_flows(work, "batch02")


def test_before_the_first_plan_there_is_nothing(tmp_path):
    flows = read_flows(WorkTree(tmp_path))
    assert (flows.batches, flows.total.steps, flows.left_out) == ({}, (), {})
    assert files_left_out(tmp_path / "skipped.csv") == {}


def test_a_tampered_flow_is_refused(tmp_path):
    work = work_with(tmp_path, "batch00")
    path = work.part("batch00", "flow.json")
    path.write_text(path.read_text().replace('"incomplete": 1', '"incomplete": 2'))
    with pytest.raises(FlowError, match="does not close at converted"):
        read_flows(work)


def test_the_table_begins_with_the_files_of_no_study(tmp_path):
    console = Console(file=io.StringIO(), width=120)
    console.print(flow_table(read_flows(work_with(tmp_path, "batch00"))))
    lines = console.file.getvalue().splitlines()
    body = [line.replace("│", " ").split() for line in lines if line.startswith("│")]
    assert body[0][-5:] == ["3", "not_dicom", "2,", "truncated", "1"]
    assert body[1] == ["seen", "8", "5"]
    assert body[2] == ["converted", "6", "3", "2", "incomplete", "1,", "mixed_patients", "1"]


def test_the_smallest_reasons_are_drawn_as_one_and_none_is_lost():
    many = {f"reason_{number}": number for number in range(1, 26)}
    drawn = drawn_losses(many)
    assert sum(drawn.values()) == sum(many.values())
    assert len(drawn) == 8
    assert next(iter(drawn)) == "reason_25"
    assert list(drawn)[-1] == OTHERS


def texts(path):
    return path.read_text(encoding="utf-8")


def test_the_picture_says_every_number(tmp_path):
    flows = read_flows(work_with(tmp_path, "batch00"))
    draw_flow(flows, tmp_path / "flow.svg")
    drawn = texts(tmp_path / "flow.svg")
    for words in ("What became of 8 series", "not dicom 2", *BRANCHES.values()):
        assert words in drawn
    for step in flows.total.steps:
        assert f"{step.series} series" in drawn
        assert all(f"{code.replace('_', ' ')} {n}" in drawn for code, n in step.lost.items())


def test_the_picture_is_the_same_twice(tmp_path):
    flows = Flows({"batch00": flow(ROWS)}, 1, {})
    for suffix in ("png", "svg"):
        for name in ("a", "b"):
            draw_flow(flows, tmp_path / f"{name}.{suffix}")
        first, second = ((tmp_path / f"{n}.{suffix}").read_bytes() for n in ("a", "b"))
        assert first == second


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(FlowError, match=r"flow\.pdf: a picture of the flow is a \.png or a \.svg"):
        draw_flow(Flows({}, 1, {}), tmp_path / "flow.pdf")
    with pytest.raises(FlowError, match="no flow to draw yet: no batch is finished"):
        draw_flow(Flows({}, 1, {}), tmp_path / "flow.png")
