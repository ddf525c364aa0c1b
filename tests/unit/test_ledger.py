"""The ledger says what became of every series, or refuses to say anything."""

import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recorded import (
    ALL,
    PACKAGES,
    both,
    in_all_stages,
    no,
    ok,
    random_run,
    records_of,
    study,
    whole_way,
)

from mrmill.ledger import (
    COLUMNS,
    TWIN_COLUMNS,
    LedgerError,
    ledger_rows,
    read_identities,
    stages_of,
    summary,
    twin_rows,
)
from mrmill.records import Outcome

CANARY = "CANARY^NAME"


def as_told(rows, *columns):
    return [tuple(row[column] for column in columns) for row in rows]


def test_a_series_that_went_all_the_way_is_in_every_space():
    (row,) = ledger_rows([study("S", "A")], whole_way())
    assert row == {
        "batch": "batch00",
        "study_uid": "S",
        "series_key": "A",
        "series_id": "t1w-raw-a",
        "stage": "package-native",
        "state": "accepted",
        "reason": "",
        "found": "",
        "limit": "",
        "native": "yes",
        "coreg": "yes",
        "atlas": "yes",
    }
    assert tuple(row) == COLUMNS


def test_every_output_of_the_converter_has_a_row_of_its_own():
    records = whole_way(keys=("A",))
    records["convert"]["S"].outcome.series = [ok("A"), no("A-2", "extra_output"), no("B", "not_3d")]
    rows = ledger_rows([study("S", "A", "B")], records)
    assert as_told(rows, "series_key", "state", "stage", "reason", "native") == [
        ("A", "accepted", "package-native", "", "yes"),
        ("A-2", "rejected", "convert", "extra_output", "extra_output"),
        ("B", "rejected", "convert", "not_3d", "not_3d"),
    ]


def test_a_study_rejected_as_a_whole_keeps_each_series_own_reason():
    entries = [
        ok("A", series_id="t2w-raw-axi"),
        no("B", "fov_out_of_range", found="88 mm", limit="140-350 mm"),
    ]
    records = records_of(
        "S",
        convert=[ok("A"), ok("B")],
        curate=Outcome("rejected", "no_center", series=entries),
    )
    rows = ledger_rows([study("S", "A", "B")], in_all_stages(records))
    columns = ("stage", "state", "reason", "found", "limit", "native", "atlas")
    assert as_told(rows, *columns) == [
        ("curate", "rejected", "study_rejected", "no_center", "", "no_center", "no_center"),
        (
            *("curate", "rejected", "fov_out_of_range", "88 mm", "140-350 mm"),
            *("fov_out_of_range", "fov_out_of_range"),
        ),
    ]


def test_a_series_said_to_share_its_studys_fate_shows_the_studys_reason():
    entries = [no("A", "study_rejected")]
    records = records_of("S", convert=Outcome("rejected", "no_center", series=entries))
    rows = ledger_rows([study("S", "A")], in_all_stages(records))
    assert as_told(rows, "reason", "found", "coreg") == [
        ("study_rejected", "no_center", "no_center")
    ]


def test_a_study_rejected_by_the_plan_needs_no_record():
    rows = ledger_rows([study("S", "A", reject="mixed_patients")], in_all_stages({}))
    assert as_told(rows, "stage", "state", "reason", "found") == [
        ("plan", "rejected", "study_rejected", "mixed_patients")
    ]


@pytest.mark.parametrize(
    ("outcome", "reason", "found"),
    [
        (
            Outcome("failed", "error", error="ValueError deface.py:12"),
            "error",
            "ValueError deface.py:12",
        ),
        (Outcome("failed", "killed"), "killed", ""),
    ],
)
def test_a_failed_study_fails_the_series_that_were_still_under_way(outcome, reason, found):
    records = records_of(
        "S", convert=[ok("A"), ok("B")], curate=[ok("A"), no("B", "derived")], deface=outcome
    )
    rows = ledger_rows([study("S", "A", "B")], in_all_stages(records))
    assert as_told(rows, "state", "stage", "reason", "found", "native") == [
        ("failed", "deface", reason, found, reason),
        ("rejected", "curate", "derived", "", "derived"),
    ]


def test_one_failed_series_leaves_its_siblings_accepted():
    records = whole_way(keys=("B",))
    entry = no("A", "error", state="failed", error="EOFError volumes.py:7")
    records["convert"]["S"].outcome.series = [entry, ok("B")]
    rows = ledger_rows([study("S", "A", "B")], records)
    assert as_told(rows, "state", "found") == [
        ("failed", "EOFError volumes.py:7"),
        ("accepted", ""),
    ]


def test_a_failed_registration_costs_its_space_and_not_the_series():
    records = whole_way(keys=("A", "B"))
    records["register"]["S"].outcome.series = [*both("A"), *both("B", coreg="reg_failed")]
    rows = ledger_rows([study("S", "A", "B")], records)
    assert as_told(rows, "state", "native", "coreg", "atlas") == [
        ("accepted", "yes", "yes", "yes"),
        ("accepted", "yes", "reg_failed", "yes"),
    ]


def test_a_study_that_fails_in_register_stays_in_native_space():
    records = whole_way()
    records["register"]["S"].outcome = Outcome("failed", "error", error="X y.py:1")
    records |= {"package-coreg": {}, "package-atlas": {}}
    rows = ledger_rows([study("S", "A")], records)
    assert as_told(rows, "state", "reason", *ALL) == [("accepted", "", "yes", "error", "error")]


def test_a_space_that_is_not_made_has_an_empty_column():
    records = {s: r for s, r in whole_way().items() if s in stages_of(["native"])}
    assert as_told(ledger_rows([study("S", "A")], records), *ALL) == [("yes", "", "")]


def test_series_of_an_adopted_release_are_native_when_adopted():
    entries = [ok("t1w-raw-axi"), no("t2w-raw-axi", "unreadable_image")]
    records = records_of(
        "S", deface=entries, register=both("t1w-raw-axi"), package_atlas=[ok("t1w-raw-axi")]
    )
    rows = ledger_rows([study("S", "t1w-raw-axi", "t2w-raw-axi", rows=[])], records)
    assert as_told(rows, "series_id", "state", *ALL) == [
        ("t1w-raw-axi", "accepted", "yes", "", "yes"),
        ("t2w-raw-axi", "rejected", "unreadable_image", "", "unreadable_image"),
    ]


@pytest.mark.parametrize("stage", stages_of(ALL))
def test_a_missing_record_is_named_with_its_study_and_stage(stage):
    records = whole_way("LOST")
    records[stage] = {}
    with pytest.raises(LedgerError, match=rf"1 of 1 series, in 1 of 1 studies: LOST \({stage}\)"):
        ledger_rows([study("LOST", "A")], records)


@pytest.mark.parametrize("stage", stages_of(ALL))
def test_a_series_that_an_accepted_study_says_nothing_about_is_a_hole(stage):
    records = whole_way(keys=("A", "B"))
    series = records[stage]["S"].outcome.series
    records[stage]["S"].outcome.series = [entry for entry in series if entry["series_key"] != "B"]
    with pytest.raises(LedgerError, match=rf"S \({stage}\)"):
        ledger_rows([study("S", "A", "B")], records)


def test_a_study_without_series_does_not_vanish():
    with pytest.raises(LedgerError, match=r"EMPTY \(convert\)"):
        ledger_rows([study("EMPTY")], in_all_stages({}))


@pytest.mark.parametrize(
    ("plan", "records", "stage", "found"),
    [
        (study("EMPTY", reject="excluded"), {}, "plan", "excluded"),
        (
            study("EMPTY"),
            records_of("EMPTY", convert=Outcome("rejected", "no_accepted_series")),
            "convert",
            "no_accepted_series",
        ),
    ],
)
def test_a_study_without_series_has_one_row_that_is_no_series(plan, records, stage, found):
    rows = ledger_rows([plan], in_all_stages(records))
    assert as_told(rows, "series_key", "stage", "state", "found") == [
        ("", stage, "rejected", found)
    ]
    counts = summary(rows)
    assert counts["series"]["seen"] == 0
    assert counts["studies"] == {"seen": 1, "accepted": 0, "rejected": 1, "failed": 0}


def test_a_record_without_a_planned_study_is_refused():
    with pytest.raises(LedgerError, match="not in the plan: STRANGER"):
        ledger_rows([study("S", "A", reject="mixed_patients")], whole_way("STRANGER"))


def test_a_reason_outside_the_closed_list_is_refused():
    records = in_all_stages(records_of("S", convert=[no("A", "DOE^JOHN")]))
    with pytest.raises(LedgerError, match="study S: convert recorded"):
        ledger_rows([study("S", "A")], records)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_every_series_seen_is_counted_once(seed):
    plan, records, expected = random_run(random.Random(seed), 40)
    rows = ledger_rows(plan, records)
    assert {row["series_key"]: (row["state"], row["stage"]) for row in rows} == expected
    assert len(rows) == len(expected)
    counts = summary(rows)
    assert counts["studies"]["seen"] == len(plan)
    for kind in ("series", "studies"):
        states = counts[kind]
        assert states["seen"] == states["accepted"] + states["rejected"] + states["failed"]
    seen = Counter(state for state, _ in expected.values())
    assert {s: counts["series"][s] for s in seen} == seen


def test_the_order_of_plan_and_records_does_not_change_the_ledger():
    plan, records, _ = random_run(random.Random(9), 20)
    backwards = {stage: dict(reversed(found.items())) for stage, found in records.items()}
    assert ledger_rows(plan, records) == ledger_rows(plan[::-1], backwards)


def test_the_summary_counts_reasons_spaces_and_studies():
    def row(uid, state, reason="", coreg=""):
        told = {"study_uid": uid, "series_key": "K", "state": state, "reason": reason}
        return told | {"native": reason or "yes", "coreg": coreg, "atlas": ""}

    rows = [
        row("A", "accepted", coreg="yes"),
        row("A", "rejected", "derived"),
        row("B", "rejected", "derived"),
        row("B", "failed", "error"),
        row("C", "rejected", "localizer"),
        row("C", "rejected", "needs_review"),
        row("A", "accepted", coreg="reg_needs_review"),
    ]
    assert summary(rows) == {
        "series": {"seen": 7, "accepted": 2, "rejected": 4, "failed": 1},
        "studies": {"seen": 3, "accepted": 1, "rejected": 1, "failed": 1},
        "reasons": {
            "rejected": {"derived": 2, "localizer": 1, "needs_review": 1},
            "failed": {"error": 1},
        },
        "waiting": {"needs_review": 1, "reg_needs_review": 1},
        "spaces": {
            "native": {"series": 2, "studies": 1},
            "coreg": {"series": 1, "studies": 1},
            "atlas": {"series": 0, "studies": 0},
        },
    }


def test_stages_follow_from_the_spaces_and_the_input():
    assert stages_of(["native"]) == ["convert", "curate", "deface", "package-native"]
    assert stages_of(["atlas"], adopted=True) == ["deface", "register", "package-atlas"]
    assert stages_of(ALL) == ["convert", "curate", "deface", "register", *PACKAGES]
    assert stages_of(ALL, adopted=True) == ["deface", "register", *PACKAGES]


@pytest.fixture
def studies(tmp_path):
    """The plan's table of two studies in two shards."""
    rows = [
        {
            **{"study_uid": uid, "batch": "batch00", "shard": shard, "PatientID": CANARY},
            **{"AccessionNumber": f"ACC{uid}", "StudyInstanceUID": f"1.2.{uid}", "split": "val"},
        }
        for uid, shard in (("A", "s0"), ("B", "s1"))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "studies.parquet")
    return tmp_path / "studies.parquet"


def test_identities_are_those_of_the_shards_asked_for(studies):
    assert read_identities(studies, "batch00", {"A": study("A")}, ["s0"]) == {
        "A": {"PatientID": CANARY, "AccessionNumber": "ACCA", "StudyInstanceUID": "1.2.A"}
    }


@pytest.mark.parametrize("in_shards", [["A"], ["A", "B", "C"]])
def test_a_study_in_only_one_half_of_the_plan_is_named(studies, in_shards):
    plan = {uid: study(uid) for uid in in_shards}
    (odd,) = {"A", "B"} ^ set(in_shards)
    with pytest.raises(LedgerError, match=rf"1 studies are only in one of .*: {odd}\."):
        read_identities(studies, "batch00", plan, ["s0", "s1"])


def test_the_twin_has_the_same_rows_with_who_and_where(studies):
    records = whole_way("A", keys=("K",))
    header = {"SeriesNumber": 7, "SeriesDescription": CANARY, "ProtocolName": "p"}
    facts = {"n_sop": 4, "n_slices": 2, "suffix": "_e2", "warnings": ["w1", "w2"], "exit_code": 0}
    made = {"source": "K", **facts}
    records["convert"]["A"].outcome.series = [
        ok("K", header=header, **made),
        no("K-2", "extra_output", **made),
    ]
    plan = {"A": study("A", "K", "L")}
    plan["A"]["series"][0] |= {"folder": f"/in/{CANARY}", "files": ["a", "b", "c", "d"]}
    plan["A"]["series"][1] |= {"folder": "/in/else", "files": ["z"]}
    records["convert"]["A"].outcome.series.append(no("L", "no_images", source="L"))
    rows = ledger_rows(plan.values(), records)
    identities = read_identities(studies, "batch00", plan, ["s0"])
    twin = list(twin_rows(rows, plan, records["convert"], identities))
    assert [{name: row[name] for name in COLUMNS} for row in twin] == rows
    assert all(set(row) == set(TWIN_COLUMNS) for row in twin)
    told = as_told(twin, "series_key", "PatientID", "folder", "first_file", "n_files", "warnings")
    assert told == [
        ("K", CANARY, f"/in/{CANARY}", "a", 4, "w1 w2"),
        ("K-2", CANARY, f"/in/{CANARY}", "a", 4, "w1 w2"),
        ("L", CANARY, "/in/else", "z", 1, ""),
    ]
    assert as_told(twin, "SeriesDescription", "n_sop", "suffix", "exit_code") == [
        (CANARY, 4, "_e2", 0),
        (CANARY, 4, "_e2", 0),
        (None, None, None, None),
    ]


def test_series_that_the_plan_rejected_are_in_the_twin_too(studies):
    plan = {"A": study("A", "K", reject="excluded")}
    plan["A"]["series"][0] |= {"folder": "/in", "files": ["a"]}
    rows = ledger_rows(plan.values(), in_all_stages({}))
    (row,) = twin_rows(rows, plan, {}, read_identities(studies, "batch00", plan, ["s0"]))
    assert as_told([row], "found", "AccessionNumber", "first_file") == [("excluded", "ACCA", "a")]
