"""What a person decided: the tables, what is refused in them, and what they redo."""

import pytest

from mrmill.config import ConfigError, Deface, Register
from mrmill.decisions import read_decisions

HEAD = "study_uid,series_id,decision\n"


@pytest.fixture
def read(tmp_path):
    def from_text(content, setting="deface.decisions"):
        table = tmp_path / "decisions.csv"
        table.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_decisions(table, setting)

    return from_text


def test_without_a_table_nothing_is_decided():
    assert read_decisions(None, "deface.decisions") == {}


def test_decisions_are_told_by_study_and_series(read):
    rows = "S,a,admit\nS,b,reject\nT,a,admit\nS,a,admit\n"  # said twice is no harm
    assert read(HEAD + rows) == {"S": {"a": "admit", "b": "reject"}, "T": {"a": "admit"}}


def test_blanks_around_the_cells_mean_nothing(read):
    assert read(HEAD + " S , t1w-raw-axi-0\t, Admit \n") == {"S": {"t1w-raw-axi-0": "admit"}}


def test_a_spreadsheets_mark_at_the_start_of_the_file_means_nothing(read):
    assert read(b"\xef\xbb\xbf" + (HEAD + "S,a,admit\n").encode()) == {"S": {"a": "admit"}}


@pytest.mark.parametrize(
    "content",
    [
        f"{HEAD}S,a,admit\n,a,admit\n",
        f"{HEAD}S,a,admit\nS, ,admit\n",
        f"{HEAD}S,a,admit\nS,a\n",
        f"{HEAD}S,a,admit\nS,b,maybe\n",
        "study_uid,decision\n\nS,admit\n",
        "study_uid;series_id;decision\n\nS;a;admit\n",
    ],
    ids=["no study", "no series", "a short row", "another word", "no column", "semicolons"],
)
def test_a_row_that_decides_nothing_is_an_error_with_its_line(read, content):
    with pytest.raises(ConfigError, match="line 3: needs study_uid, series_id, decision"):
        read(content)


@pytest.mark.parametrize("setting", ["deface.decisions", "register.decisions"])
def test_two_decisions_about_one_series_are_an_error(read, setting):
    with pytest.raises(ConfigError, match=f"{setting}: decisions.csv, line 3: another line"):
        read(f"{HEAD}S,a,admit\nS,a,reject\n", setting)


def test_a_table_in_another_encoding_is_an_error(read):
    with pytest.raises(ConfigError, match="not UTF-8"):
        read((HEAD + "S,a,admit\n").encode("utf-16"))


@pytest.mark.parametrize("block", [Deface, Register])
def test_a_table_counts_for_its_own_studies_alone(tmp_path, block):
    """So it is in no stage's settings: the job holds it against each study (`per_study`)."""
    table = tmp_path / "decisions.csv"
    table.write_text(f"{HEAD}S,a,admit\n")
    assert block(decisions=table).key_settings() == block().key_settings()
