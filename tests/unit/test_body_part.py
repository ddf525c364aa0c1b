"""Body part: headers of five vendors in five languages, and what must not be guessed."""

import json
import os
import time
from pathlib import Path

import pytest
from evidence_cases import CASES, assert_all_right, header

from mrmill.columns import load_columns
from mrmill.curate.body_part import body_part
from mrmill.curate.evidence import TABLE, EvidenceError, load_evidence
from mrmill.headers import sidecar_header, with_series_table

EVIDENCE = load_evidence()
COLUMNS = {column.name: column for column in load_columns()}
DATA = Path(os.environ.get("MRMILL_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
HEADERS = DATA / "series_headers" / "dev.jsonl"
HEAD = ("AXIAL", [210, 240, 150])


def told(row):
    view = CASES["views"][row["view"]]
    return body_part(header(row), view["plane"], view["fov_mm"], EVIDENCE)


@pytest.mark.parametrize(("held_back", "fewest"), [(True, 28), (False, 64)])
def test_labelled_headers_are_told_right_or_not_at_all(held_back, fewest):
    rows = [row for row in CASES["body_part"] if row.get("held_back", False) == held_back]
    pairs = [(row, told(row)) for row in rows]
    assert_all_right(pairs, ("brain", "spine", "other", "unknown"), fewest)


def test_what_tells_is_written_as_codes():
    said = body_part({"BodyPartExamined": "HEAD", "SeriesDescription": "brain t2"}, *HEAD, EVIDENCE)
    assert said.evidence == "word:SeriesDescription+tag:BodyPartExamined"
    said = body_part(
        {"SeriesDescription": "t2 sag HWS", "BodyPartExamined": "KNEE"}, *HEAD, EVIDENCE
    )
    assert said.evidence == "conflict:word:SeriesDescription+tag:BodyPartExamined"
    assert body_part({}, *HEAD, EVIDENCE).evidence == "none"


def test_evidence_fits_the_released_column_and_repeats_nothing_of_the_header():
    for row in CASES["body_part"]:
        said = told({**row, "description": f"CANARY {row['description']}"})
        assert COLUMNS["body_part_evidence"].accepts(said.evidence), said
        assert COLUMNS["body_part"].accepts(said.value)
        assert "canary" not in said.evidence.lower()


@pytest.mark.parametrize("value", ["", "UNKNOWN", "EXTREMITY", "HEADNECK", "WHOLEBODY", "?"])
def test_a_vague_tag_says_nothing(value):
    assert body_part({"BodyPartExamined": value}, *HEAD, EVIDENCE).value == "unknown"


@pytest.mark.parametrize(("plane", "fov_mm"), [("SAGITTAL", [64, 380, 380]), ("AXIAL", [380] * 3)])
def test_geometry_alone_tells_no_part(plane, fov_mm):
    assert body_part({}, plane, fov_mm, EVIDENCE).value == "unknown"


def test_a_person_wins_and_is_named_as_the_evidence():
    given = with_series_table({"BodyPartExamined": "HEAD"}, {"body_part": "Spine"}, load_columns())
    said = body_part(given, *HEAD, EVIDENCE)
    assert (said.value, said.evidence) == ("spine", "series_table")
    with pytest.raises(ValueError, match="brain, spine, other, unknown"):
        body_part({"body_part": "toe"}, *HEAD, EVIDENCE)


@pytest.mark.skipif(not HEADERS.exists(), reason=f"no labelled headers at {DATA}")
def test_real_heads_are_told_as_brains_or_not_at_all():
    sidecars = [json.loads(line)["sidecar"] for line in HEADERS.read_text().splitlines()]
    values = [body_part(sidecar_header(s, {}), *HEAD, EVIDENCE).value for s in sidecars]
    assert {*values} <= {"brain", "unknown"}
    assert values.count("brain") >= 0.5 * len(values)


def test_a_series_takes_a_fraction_of_a_millisecond():
    rows = CASES["body_part"] * 20
    start = time.perf_counter()
    for row in rows:
        told(row)
    assert (time.perf_counter() - start) / len(rows) < 0.5e-3


@pytest.mark.parametrize(
    ("found", "written", "problem"),
    [
        ("  default: brain", "  default: brain\n  coils: [x]", "body_part.coils: Extra inputs"),
        ("  default: brain", "  default: head", "body_part.default: Input should be"),
        ("[SeriesDescription, ProtocolName]", "[SeriesName]", "no column called SeriesName"),
        ("  other_routes: [", '  other_routes: ["(", ', "not a regular expression"),
        ("    spine: [hws, bws, lws]\n", "", "codes: nothing is said of spine"),
        ("body_part:", "body_part: [", "cannot be read"),
    ],
)
def test_a_table_with_a_mistake_is_refused_and_says_where(tmp_path, found, written, problem):
    text = TABLE.read_text(encoding="utf-8")
    assert found in text
    path = tmp_path / "evidence.yaml"
    path.write_text(text.replace(found, written), encoding="utf-8")
    with pytest.raises(EvidenceError) as refused:
        load_evidence(path)
    assert problem in str(refused.value)
