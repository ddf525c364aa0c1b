"""Who may not be recognised: a patient who opts out, and a site's own names and dates."""

import csv
import shutil

import openpyxl
from conftest import mrmill, project

from mrmill.records import Journal


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(folder, study_uid):
    """Every file of a study below a folder."""
    named = (p for p in folder.rglob("*") if study_uid in str(p.relative_to(folder)))
    return [path for path in named if path.is_file()]


def test_a_study_that_is_opted_out_leaves_release_and_work_tree(finished, tmp_path):
    for name in ("work", "release"):
        shutil.copytree(finished / name, tmp_path / name)
    released = {row["study_uid"] for row in rows(tmp_path / "release/TINY/splits.csv")}
    planned = rows(tmp_path / "work/plan/studies.csv")
    with_images = [row for row in planned if files_of(tmp_path / "work", row["study_uid"])]
    gone = next(row for row in with_images if row["study_uid"] in released)
    study_uid = gone["study_uid"]
    settings = (finished / "config.yaml").read_text()
    config = project(tmp_path)
    config.write_text(f"{settings}identity: {{opt_out: opt_out.csv}}\n")
    (tmp_path / "opt_out.csv").write_text(f"AccessionNumber\n {gone['AccessionNumber']} \n")
    (tmp_path / "opt_out.csv").chmod(0o600)

    result = mrmill("run", "-c", config, "--cores", 2)

    assert result.returncode == 0, result.stdout + result.stderr
    assert files_of(tmp_path / "release", study_uid) == []
    assert files_of(tmp_path / "work", study_uid) == []
    kept = {row["study_uid"] for row in rows(tmp_path / "release/TINY/splits.csv")}
    assert kept == released - {study_uid}
    assert kept
    for path in (tmp_path / "release/TINY/metadata").iterdir():
        assert {row["study_uid"] for row in rows(path)} <= kept
    ledger = [r for r in rows(tmp_path / "release/TINY/ledger.csv") if r["study_uid"] == study_uid]
    assert {(row["state"], row["found"]) for row in ledger} == {("rejected", "excluded")}
    assert mrmill("verify", tmp_path / "release").returncode == 0


def test_a_site_s_own_names_and_dates_are_used_and_none_may_be_missing(tiny_export, tmp_path):
    config = project(
        tmp_path, input={"path": str(tiny_export)}, identity={"mapping": "mapping.xlsx"}
    )
    first = project(tmp_path / "first", input={"path": str(tiny_export)})
    assert mrmill("plan", "-c", first).returncode == 0
    studies = rows(tmp_path / "first/work/plan/studies.csv")
    names = {row["PatientID"]: f"P-{n:03d}" for n, row in enumerate(studies)}
    dates = {row["AccessionNumber"]: f"2001-01-{n + 1:02d}" for n, row in enumerate(studies)}
    book = openpyxl.Workbook()
    book.active.append(["Accession", "Anon Patient ID", "Anonymized Study Date"])
    for row in studies[1:]:
        accession = row["AccessionNumber"]
        book.active.append([accession, names[row["PatientID"]], dates[accession]])
    book.save(tmp_path / "mapping.xlsx")
    (tmp_path / "mapping.xlsx").chmod(0o600)

    refused = mrmill("run", "-c", config, "--cores", 2)

    assert refused.returncode == 2
    assert "not_in_mapping.csv" in refused.stderr
    missing = rows(tmp_path / "work/plan/not_in_mapping.csv")
    assert [row["AccessionNumber"] for row in missing] == [studies[0]["AccessionNumber"]]
    assert not (tmp_path / "work/plan/shards.json").exists()

    config = project(
        tmp_path,
        input={"path": str(tiny_export)},
        identity={"mapping": "mapping.xlsx", "unmapped": "reject"},
    )
    result = mrmill("run", "-c", config, "--cores", 2, "--until", "curate")
    assert result.returncode == 0, result.stdout + result.stderr
    written = {}
    for journal in (tmp_path / "work").glob("batch*/curate/*.jsonl"):
        for uid, record in Journal(journal).records().items():
            for entry in record.outcome.series:
                written[uid] = entry["row"]["patient_uid"], entry["row"]["anon_study_date"]
    expected = {
        row["study_uid"]: (names[row["PatientID"]], dates[row["AccessionNumber"]])
        for row in studies[1:]
    }
    assert written
    assert written.items() <= expected.items()
