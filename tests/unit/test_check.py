"""What a look before a run says of the site's tables of identities."""

import pytest
from tiny_dicom import write_study

from mrmill.catalog import write_table
from mrmill.check import check
from mrmill.config import checked
from mrmill.layout import ReleaseTree
from mrmill.ledger import COLUMNS
from mrmill.plan import make_plan
from mrmill.plan.identity import new_key

MAPPING = "Accession,Anon Patient ID,Anonymized Study Date\n"


@pytest.fixture
def site(tmp_path):
    new_key(tmp_path / "pseudonym.key")
    write_study(tmp_path / "export" / "1", "1.1", "P1", n_series=1, n_files=1)
    return tmp_path


def settings(site, **identity):
    deface = {"backend": "deepbet", "device": "cpu"}
    return checked({"deface": deface, "spaces": ["native"], "identity": identity}, site)


def found(config, words):
    """Level and text of the findings in which some words stand."""
    said = [(f.level, f"{f.what}. {f.advice}") for f in check(config)]
    return [(level, text) for level, text in said if words in text]


def write(path, text, mode=0o600):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path.name


def test_good_tables_are_fine(site):
    config = settings(
        site,
        mapping=write(site / "mapping.csv", f"{MAPPING}A1,X,2020-01-31\n"),
        opt_out=write(site / "out.csv", "PatientID\nP2\nP3\n"),
    )
    assert found(config, "identity.") == [
        ("ok", f"identity.mapping {site}/mapping.csv: 1 rows. "),
        ("ok", f"identity.opt_out {site}/out.csv: 2 rows. "),
    ]


def test_without_tables_nothing_is_said_of_them(site):
    assert found(settings(site), "identity.") == []


@pytest.mark.parametrize(
    ("setting", "text", "words"),
    [
        ("mapping", "Accession,Anon Patient ID\nA1,X\n", "no column Anonymized Study Date"),
        ("mapping", f"{MAPPING}A1,X,2020-01-31\nA1,Y,2020-01-31\n", "line 3: line 2 says"),
        ("mapping", f"{MAPPING}A1,../X,2020-01-31\n", "line 2: Anon Patient ID is not"),
        ("opt_out", "Patient\nP1\n", "neither a column PatientID nor AccessionNumber"),
    ],
)
def test_a_table_with_a_mistake_is_a_problem(site, setting, text, words):
    config = settings(site, **{setting: write(site / "table.csv", text)})
    assert [level for level, _ in found(config, words)] == ["problem"]


def test_a_table_that_is_not_there_is_a_problem(site):
    assert [level for level, _ in found(settings(site, opt_out="none.xlsx"), "none.xlsx")] == [
        "problem"
    ]


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_table_that_others_can_read_is_a_warning(site, mode):
    config = settings(site, opt_out=write(site / "out.csv", "PatientID\nP1\n", mode))
    ((level, text),) = found(config, "can be read by others")
    assert level == "warning"
    assert f"chmod 600 {site}/out.csv" in text


def test_a_table_in_the_release_is_a_problem(site):
    write(site / "release" / "out.csv", "PatientID\nP1\n")
    config = settings(site, opt_out="release/out.csv")
    assert [level for level, _ in found(config, "lies in the release")] == ["problem"]


def test_opt_outs_that_match_no_planned_study_are_counted_by_line_and_not_quoted(site):
    write_study(site / "export" / "2", "1.2", "0815", n_series=1, n_files=1)
    config = settings(site, opt_out=write(site / "out.csv", "PatientID\nP1\nCanary\n815\n"))
    assert found(config, "match no") == []  # nothing is planned yet
    make_plan(config)
    ((level, text),) = found(config, "match no")
    assert level == "warning"
    assert "1 rows of identity.opt_out match no planned study: line 3." in text
    assert "Canary" not in text
    ((level, text),) = found(config, "but for leading zeros")
    assert level == "warning"
    assert ": line 4." in text
    assert "815" not in text


@pytest.mark.parametrize("block", ["deface", "register"])
def test_decisions_are_held_against_the_series_there_are(site, block):
    rows = "S,t2w-raw-axi,admit\nS,t2w-raw-sag,reject\n"
    table = write(site / "decisions.csv", f"study_uid,series_id,decision\n{rows}")
    blocks = {"deface": {"backend": "deepbet", "device": "cpu"}, "register": {}}
    blocks[block] = blocks[block] | {"decisions": table}
    config = checked({**blocks, "spaces": ["native"]}, site)
    assert found(config, f"{block}.decisions") == []  # before the first run nothing is known
    known = {"study_uid": "S", "series_id": "t2w-raw-axi"}
    write_table(ReleaseTree(config.release, config.dataset.name).ledger, COLUMNS, [known])
    ((level, text),) = found(config, f"{block}.decisions")
    assert level == "problem"
    assert "S t2w-raw-sag is no series" in text


@pytest.mark.parametrize("block", ["deface", "register"])
@pytest.mark.parametrize(
    ("text", "words"), [(None, "No such file"), ("study_uid,series_id\nS,a\n", "line 2: needs")]
)
def test_decisions_that_cannot_be_read_are_a_problem(site, block, text, words):
    if text:
        write(site / "decisions.csv", text)
    blocks = {"deface": {"backend": "deepbet", "device": "cpu"}, "register": {}}
    blocks[block] = blocks[block] | {"decisions": "decisions.csv"}
    config = checked({**blocks, "spaces": ["native"]}, site)
    ((level, said),) = found(config, f"{block}.decisions")
    assert (level, words in said) == ("problem", True)
