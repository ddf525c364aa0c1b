"""The benchmarks run: a small round of each gives the figures that its page tells of."""

import json
import subprocess
import sys

import pytest
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
