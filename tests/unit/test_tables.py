"""Schemas of the tables: what a cell may hold, and what happens to one that holds another thing."""

import json
import os
import random
import time
from pathlib import Path

import pytest
from pydicom.datadict import tag_for_keyword

from mrmill import ledger, tables
from mrmill.columns import Column, load_columns, published
from mrmill.curate.classify import load_rules
from mrmill.headers import sidecar_header
from mrmill.tables import (
    CellError,
    Field,
    TablesError,
    bad_cells,
    cell,
    load_table,
    read_table,
    validated,
    write_checked,
    write_table,
)

DATA = Path(os.environ.get("MRMILL_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
COLUMNS = {column.name: column for column in load_columns()}
CANARY = "CANARY^NAME"

FIELDS = {
    "boolean": Field(name="b", description="", type="boolean", required=True),
    "date": Field(name="d", description="", type="date"),
    "integer": Field(name="i", description="", type="integer", minimum=0, maximum=99),
    "number": Field(name="n", description="", type="number", minimum=-1, maximum=3000),
    "numbers": Field(name="l", description="", type="numbers", length=3, minimum=0, maximum=9),
    "text": Field(name="t", description="", type="text", values=["a", "B"], pattern="x[0-9]"),
    "codes": Field(name="c", description="", type="codes", values=["SE", "IR"]),
    "reason": Field(name="r", description="", type="text", values=["yes"], values_of="reasons"),
}


@pytest.mark.parametrize(
    ("field", "right", "wrong"),
    [
        ("boolean", ["True", "False"], ["", "true", "1", "No"]),
        ("date", ["", "2024-01-31"], ["20240131", "2024-13-01", "2024-01-31 10:00", "31.01.2024"]),
        ("integer", ["", "0", "99", "7.0"], ["100", "-1", "7.5", "x", "1e9", "nan", "0x1"]),
        ("number", ["", "-1", "2.5", "3e3", "1e-05"], ["3001", "inf", "NaN", "2,5", "1 2", "True"]),
        ("numbers", ["", "[1, 2, 3]", "[0.5, 9, 1e-05]"], ["[1, 2]", "1, 2, 3", "[1, 2, 10]", "["]),
        ("text", ["", "a", "B", "x7"], ["b", "A", "x77", "ax7", "a ", "x7\n"]),
        ("codes", ["", "SE", "SE\\IR"], ["SE/IR", "SE\\", "SE\\Smith"]),
        ("reason", ["", "yes", "localizer"], ["no", "some_reason"]),
    ],
)
def test_a_cell_is_held_against_type_words_and_bounds(field, right, wrong):
    assert [text for text in [*right, *wrong] if FIELDS[field].accepts(text)] == right


def test_whatever_a_header_says_its_released_cell_is_accepted():
    texts = ["", " ", "SIEMENS", "GR_IR", "*tfl3d1_16ns", "0.75", "045Y", "1e400", "00", CANARY]
    numbers = [0, -1, 7, 2.89362, 1e-7, 1e9, 8.000000001, float("inf")]
    lists = [[1, 0, 0, 0, 1, 0], [0.5, 0.5], [1], ["ORIGINAL", "DR SMITH", "M"], [0, 256, 192, 0]]
    for column in published(load_columns()):
        for raw in (*texts, *numbers, *lists, True, None, b"x") if not column.computed else ():
            released = cell(column.released(column.cleaned(raw)))
            assert column.accepts(released), (column.name, raw)
            assert CANARY not in released


@pytest.mark.skipif(not DATA.is_dir(), reason=f"real headers are not in {DATA}")
def test_every_released_cell_of_real_headers_is_accepted():
    lines = (DATA / "series_headers" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    headers = [sidecar_header(json.loads(line)["sidecar"], {}) for line in lines]
    read = [column for column in published(load_columns()) if not column.computed]
    cells = [[cell(c.released(header.get(c.name))) for c in read] for header in headers]
    assert list(bad_cells(read, cells)) == []
    assert sum(text != "" for row in cells for text in row) > 8000  # and much is written


def test_a_rewritten_word_is_accepted_as_it_stands():
    for column in load_columns():
        for word in column.rewrite.values():
            assert column.accepts(word), (column.name, word)


def test_a_header_text_is_accepted_by_its_allow_list_alone():
    model = COLUMNS["Manufacturer'sModelName"]
    assert [model.accepts(t) for t in ("Prisma_fit", "St Mary", "Prisma_fit " * 9)] == [
        True,
        False,
        False,
    ]


def test_every_dicom_keyword_of_the_columns_exists():
    keywords = {keyword for column in load_columns() for keyword in column.dicom}
    assert [keyword for keyword in keywords if tag_for_keyword(keyword) is None] == []


def test_what_classification_says_fits_its_columns():
    rules = load_rules()
    said = {
        "classified_modality": {
            rules.released(m) for m in rules.modalities if m not in ("UNKNOWN", "localizer")
        },
        "classification_rule": {f"{rules.tiers[r.tier].name}:{r.name}" for r in rules.rules},
        "sequence_family": {rule.sequence_family for rule in rules.rules},
        "dwi_sub_type": {rule.dwi_sub_type for rule in rules.rules},
    }
    for name, words in said.items():
        assert [word for word in words if not COLUMNS[name].accepts(word)] == []


def test_the_ledger_s_schema_has_the_ledger_s_columns():
    assert [field.name for field in load_table("ledger")] == list(ledger.COLUMNS)


def test_a_schema_with_an_unknown_key_or_a_column_twice_is_refused():
    row = {"name": "x", "description": "", "type": "text"}
    with pytest.raises(TablesError, match=r"column 2.patern: Extra inputs[\s\S]*x: named twice"):
        validated([row, {**row, "patern": "a"}, row], Field)


GOOD = {"study_uid": "S1", "series_id": "t1w-raw-axi", "Manufacturer": "GE", "is_derived": False}


@pytest.mark.parametrize(
    ("bad", "accepted"),
    [
        (
            {"Manufacturer": CANARY},
            "Manufacturer holds .* accepted: Siemens, Philips, .* or nothing",
        ),
        ({"is_derived": None}, "is_derived holds .* accepted: True or False. "),
    ],
)
def test_a_bad_cell_stops_the_table_and_is_not_repeated(tmp_path, monkeypatch, bad, accepted):
    monkeypatch.setattr(tables, "CHUNK_ROWS", 2)
    fields = [COLUMNS[name] for name in GOOD]
    path = tmp_path / "table.csv"
    with pytest.raises(CellError, match=f"study S2 t1w-raw-axi: its {accepted}") as refused:
        write_checked(path, fields, [GOOD, GOOD, GOOD, {**GOOD, "study_uid": "S2", **bad}])
    assert CANARY not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    write_checked(path, fields, [GOOD] * 5)
    assert path.read_text().splitlines() == [",".join(GOOD), *["S1,t1w-raw-axi,GE,False"] * 5]


def test_a_path_that_is_no_utf_8_stands_in_the_twin_byte_for_byte(tmp_path):
    folder = os.fsdecode(b"Kl\xfcnik")
    write_table(tmp_path / "twin.csv", ["folder"], [{"folder": folder}])
    assert (tmp_path / "twin.csv").read_bytes() == b"folder\nKl\xfcnik\n"
    assert list(read_table(tmp_path / "twin.csv")) == [{"folder": folder}]


def random_cell(column, chance):
    """A cell the column accepts, made another way than by its schema's own rules."""
    if column.type == "boolean":
        return chance.choice(["True", "False"])
    low, high = (round(bound) for bound in (max(column.minimum, 1), min(column.maximum, 300)))
    if column.type == "integer":
        return str(chance.randint(low, high))
    if column.type == "number":
        return f"{chance.uniform(low, high):.4f}"
    if column.type == "numbers":
        return json.dumps([chance.randint(low, high) for _ in range(column.length)])
    known = {"patient_uid": "P1", "study_uid": "S1", "series_id": "t1w-raw-axi"}
    known |= {"classification_rule": "physics:t1", "anon_study_date": "2020-01-31"}
    return known.get(column.name) or next(iter(column.values), "")


def test_a_large_table_is_checked_at_700_000_rows_in_three_minutes():
    columns, chance = published(load_columns()), random.Random(0)
    rows = [[random_cell(column, chance) for column in columns] for _ in range(4000)]
    started = time.process_time()
    assert list(bad_cells(columns, rows)) == []
    assert time.process_time() - started < 180 * len(rows) / 700_000


def test_the_pages_tell_tags_bounds_and_words():
    field = Column(
        **{"name": "TE_ms", "description": "Echo | time", "type": "number", "unit": "ms"},
        **{"dicom": ["EchoTime"], "bids": ["EchoTime"], "minimum": 0, "maximum": 5000},
        private=["0019, MAKER, 0C"],
    )
    headings = ("column", "type", "unit", "accepted", "empty", "source", "meaning")
    head, _, row = tables.described([field], *headings).splitlines()
    assert head == f"| {' | '.join(headings)} |"
    assert row == (
        "| `TE_ms` | number | ms | 0 to 5000 |  | (0018,0081) EchoTime; (0019,xx0c) MAKER; "
        "BIDS EchoTime | Echo \\| time |"
    )
