"""The benchmarks run: a small round of each gives the figures that its page tells of."""

import json
import subprocess
import sys

import pytest
from benchmarks.registration.summary import summarised
from benchmarks.scale.__main__ import LIMITS
from conftest import ROOT, environment


def bench(*arguments):
    """Run a benchmark as its page says; return what it prints."""
    command = [sys.executable, "-m", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_planning_counts_what_it_planned():
    table = bench("benchmarks.planning", "--studies", 200)
    (studies,) = [line for line in table.splitlines() if line.startswith("| studies |")]
    assert studies == "| studies | 200 | 200 | 202 | 200 |"


def test_curation_curates_every_series():
    found = json.loads(bench("benchmarks.curation", "--series", 700, "--processes", 1))
    assert found["series"] == sum(found["reasons"].values()) >= 700
    assert found["series_per_cpu_s"] > 0


@pytest.mark.slow
def test_scale_measures_a_plan_a_finished_batch_and_a_few_jobs(tmp_path):
    out = tmp_path / "out.json"
    bench("benchmarks.scale", "--shrink", 500, "--json", out)
    found = json.loads(out.read_text())
    assert found.keys() >= LIMITS.keys()
    stages, tables = 7, 28 + 2  # of every batch, of the release, and what asks for all
    assert found["jobs"] == stages * found["shards"] + tables
    assert found["manifests"] + found["open_journals"] == stages * found["shards"]
    assert 35 <= found["bookkeeping_files_per_shard"] <= 40
    assert found["bookkeeping_files_per_1000_series"] <= 120


def test_indexing_is_held_against_pydicom(tmp_path):
    bench("benchmarks.indexing", "--files", 40, "--out", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert "pydicom" in json.dumps(found)


@pytest.fixture
def headers(tmp_path):
    """Two labelled series, one of which a rule by keywords alone would miss."""
    tof = {"ScanningSequence": "GR", "SequenceName": "fl3d1r_t70", "EchoTime": 0.0036,
           "RepetitionTime": 0.022, "FlipAngle": 18, "Manufacturer": "Siemens"}  # fmt: skip
    t2w = {"ScanningSequence": "SE", "EchoTime": 0.1, "RepetitionTime": 5, "FlipAngle": 150,
           "EchoTrainLength": 15, "Manufacturer": "GE"}  # fmt: skip
    rows = [("a", "MRA", tof), ("b", "T2w", t2w)]
    lines = [json.dumps({"id": i, "label": label, "sidecar": s}) for i, label, s in rows]
    (tmp_path / "headers.jsonl").write_text("\n".join(lines))
    return tmp_path / "headers.jsonl"


def test_classification_is_scored_against_the_published_tiers(headers, tmp_path):
    said = bench(
        "benchmarks.classification", "--headers", headers, "--json", tmp_path / "scores.json"
    )
    assert "published" in said
    assert (tmp_path / "scores.json").exists()


def row(case, method, seed, cpu_s, error_mm):
    """What the registration benchmark notes of one registration; it took `cpu_s` twice."""
    return {
        "set": 0, "case": case, "method": method, "seed": seed, "kind": "thick", "rigid": True,
        "cpu_s": {"register": cpu_s, "write": cpu_s}, "tre_mm": {"mean": error_mm, "max": error_mm},
    }  # fmt: skip


def test_registration_fails_a_case_when_any_seed_does():
    rows = [row("P01", "reference", 42, 20, 0.3), row("P02", "reference", 42, 10, 2.5)]
    rows += [row("P01", "mattes", 42, 1, 0.1), row("P01", "mattes", 1, 2, 2.1)]
    rows += [row("P02", "mattes", 42, 0.5, 0.2), row("P02", "mattes", 1, 0.5, 0.2)]
    found = summarised(rows, ["mattes"])
    assert found["failed"] == {"reference": ["P02"], "ours": ["P01"]}
    assert found["failures_by_seed"] == {1: 1}
    assert found["cpu_ratio"] == (20 + 10) / (1.5 + 0.5)
    assert found["tre_mm"] == {"reference": None, "ours": None}  # no case where both succeed
    assert found["tre_mm_all"] == {"reference": 1.4, "ours": 0.65}


@pytest.mark.slow
def test_registration_finds_a_phantom_and_goes_on_where_it_was(tmp_path):
    out, rows = tmp_path / "out.json", tmp_path / "out.jsonl"
    rows.write_text(json.dumps(row("P01", "reference", 42, 10, 0.3)) + "\n")
    arguments = ("--engine", "mattes", "--quick", "--cases", "P01", "--cache", tmp_path)
    bench("benchmarks.registration", *arguments, "--resume", "--json", out)
    found = json.loads(out.read_text())
    assert found["failures"] == {"reference": 0, "ours": 0}
    assert 0 < found["tre_mm"]["ours"] < 1
    assert found["cpu_ratio"] > 1
    measured = rows.read_text()
    table = bench("benchmarks.registration", *arguments, "--resume", "--json", out)
    assert "| P01 | T1w axi <- T2w axi | 20.00 |" in table
    assert rows.read_text() == measured
