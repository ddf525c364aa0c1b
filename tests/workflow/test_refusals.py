"""Bad input: each gets a message that says what to do, and an exit code other than 0."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment, mrmill, project

from mrmill.lease import Lease


def refused(*arguments):
    """Call the command; return its message, which is no traceback."""
    result = mrmill(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_an_empty_export(tmp_path):
    (tmp_path / "export").mkdir()
    assert "nothing to plan" in refused("run", "-c", project(tmp_path))


def test_a_folder_without_dicom(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "notes.txt").write_text("nothing here")
    assert "DICOM" in refused("run", "-c", project(tmp_path))


def test_a_missing_export(tmp_path):
    assert "input.path" in refused("run", "-c", project(tmp_path))


def test_unreadable_files_are_counted_and_the_plan_goes_on(tmp_path, tiny_export):
    (tmp_path / "export").mkdir()
    for path in sorted(tiny_export.rglob("*.dcm"))[:3]:
        (tmp_path / "export" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "export" / "short.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x10")
    result = mrmill("plan", "-c", project(tmp_path))
    assert result.returncode == 0
    assert "unreadable" in result.stdout


def test_a_missing_config_file(tmp_path):
    assert "config file" in refused("run", "-c", tmp_path / "none.yaml")


def test_an_unknown_key_names_the_nearest(tmp_path):
    message = refused("run", "-c", project(tmp_path, defase={"device": "cpu"}))
    assert "defase: unknown key; did you mean `deface`?" in message


def test_a_wrong_value_says_what_is_accepted(tmp_path):
    message = refused("run", "-c", project(tmp_path, max_failed_fraction=3))
    assert "max_failed_fraction: Input should be less than or equal to 1 (found 3)" in message


def test_a_missing_atlas(tmp_path, tiny_export):
    config = project(tmp_path, input={"path": str(tiny_export)}, register={"atlas": "mni.nii"})
    message = refused("run", "-c", config)
    assert "mni.nii" in message
    assert "register.atlas" in message


def test_missing_weights(tmp_path):
    message = refused("run", "-c", project(tmp_path, deface={"backend": "hdbet"}))
    assert "deface.weights" in message


def test_a_missing_key_says_how_to_make_one(tmp_path, tiny_export):
    config = project(tmp_path, input={"path": str(tiny_export)})
    (tmp_path / "pseudonym.key").unlink()
    assert "mrmill plan --new-key" in refused("run", "-c", config)


def test_a_key_that_others_can_read(tmp_path, tiny_export):
    config = project(tmp_path, input={"path": str(tiny_export)})
    (tmp_path / "pseudonym.key").chmod(0o644)
    assert "pseudonym.key" in refused("run", "-c", config)


def test_a_second_run_while_one_is_going(tmp_path, tiny_export):
    config = project(tmp_path, input={"path": str(tiny_export)})
    (tmp_path / "work").mkdir(mode=0o700)
    with Lease(tmp_path / "work" / "run.lease"):
        assert f"process {os.getpid()}" in refused("run", "-c", config)


def test_snakemake_without_a_plan_says_what_to_do(tmp_path, tiny_export):
    config = project(tmp_path, input={"path": str(tiny_export)})
    result = snakemake("--configfile", str(config), "--cores", "1")
    assert result.returncode != 0
    assert "mrmill plan" in result.stderr


def test_snakemake_without_a_config_says_what_to_do():
    result = snakemake("--cores", "1")
    assert result.returncode != 0
    assert "--configfile" in result.stderr


def snakemake(*arguments):
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)


def test_no_room_on_the_disk(tmp_path, tiny_export, monkeypatch):
    from mrmill.check import check
    from mrmill.config import load_config
    from mrmill.disk import Amount

    monkeypatch.setattr("mrmill.check.free_space", lambda _: Amount(10**7, 10**6))
    findings = check(load_config(project(tmp_path, input={"path": str(tiny_export)})))
    (problem,) = [f for f in findings if f.level == "problem"]  # both trees share the disk
    assert "0.01 GB and 1,000,000 inodes free" in problem.what
    assert "make room" in problem.advice


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "locked").mkdir(mode=0o500)
    config = project(tmp_path, release="locked/release")
    assert "cannot be written" in mrmill("check", "-c", config).stdout


def test_check_passes_on_a_good_project(tmp_path, tiny_export):
    result = mrmill("check", "-c", project(tmp_path, input={"path": str(tiny_export)}))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "problem" not in result.stdout


def test_messages_do_not_name_the_export_in_a_release(finished: Path, tiny_export):
    for path in (finished / "release").rglob("*.csv"):
        assert str(tiny_export) not in path.read_text()


def checked(config):
    """What `mrmill check` says, on one line, and whether it found a problem."""
    result = mrmill("check", "-c", config)
    assert "Traceback" not in result.stderr
    return " ".join(result.stdout.split()), result.returncode == 1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file,patient_id,study_id\na.nii.gz,1,1\n", "has no column path"),
        (
            "path,patient_id,study_id,modality\na.nii.gz,1,1,t1\n",
            "line 2: modality is none of those accepted: T1w",
        ),
        (
            "path,patient_id,study_id,PatientAge\na.nii.gz,1,1,forty\n",
            "line 2: PatientAge is no age, as 45",
        ),
        (
            "path,patient_id,study_id,body_part\na.nii.gz,1,1,Head\n",
            "line 2: body_part is none of those accepted: brain, spine, other, unknown",
        ),
    ],
)
def test_a_mistake_in_the_series_table_is_named_by_its_line(tmp_path, table, words):
    (tmp_path / "export").mkdir()
    (tmp_path / "series.csv").write_text(table)
    source = {"kind": "nifti", "path": "export", "series_table": "series.csv"}
    said, is_problem = checked(project(tmp_path, input=source))
    assert words in said
    assert is_problem


@pytest.mark.parametrize(
    ("setting", "text", "words"),
    [
        (
            "site_rules",
            "rules: [{name: mine, modality: T1, when: {}, source: us}]",
            "did you mean `T1w`?",
        ),
        ("acceptance", "criteria: []", "burned_in_annotation, not_mr must stay"),
        ("evidence", "body_part: {}", "body_part.series_texts: Field required"),
    ],
)
def test_a_mistake_in_a_table_of_curation_stops_a_run_before_it_starts(
    tmp_path, tiny_export, setting, text, words
):
    (tmp_path / "table.yaml").write_text(text)
    config = project(tmp_path, input={"path": str(tiny_export)}, curate={setting: "table.yaml"})
    result = mrmill("run", "-c", config)
    assert result.returncode == 2
    assert words in result.stderr
    assert not (tmp_path / "work" / "plan").exists()


def test_a_column_that_is_not_read_is_named_with_the_nearest(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "series.csv").write_text("path,patient_id,study_id,Age\na.nii.gz,1,1,40\n")
    source = {"kind": "nifti", "path": "export", "series_table": "series.csv"}
    said, is_problem = checked(project(tmp_path, input=source))
    assert "column Age is not read; did you mean PatientAge?" in said
    assert not is_problem


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("NOSUCHSTUD,t2w-raw-axi,reject", "NOSUCHSTUD t2w-raw-axi is no series"),
        ("A,t1w-raw-axi,reject\nA,t1w-raw-axi,admit", "line 3: another line decides otherwise"),
        ("A,t1w-raw-axi,rejct", "line 2: needs study_uid, series_id, decision"),
    ],
)
def test_a_decision_that_decides_nothing_stops_a_run(finished, tmp_path, rows, words):
    (tmp_path / "decisions.csv").write_text(f"study_uid,series_id,decision\n{rows}\n")
    config = project(
        tmp_path,
        input={"path": "export"},
        release=str(finished / "release"),
        deface={"backend": "deepbet", "device": "cpu", "decisions": "decisions.csv"},
    )
    said, is_problem = checked(config)
    assert words in said
    assert is_problem


def test_a_lost_or_wrong_key_is_named_and_no_new_one_is_made(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    key = copy / "pseudonym.key"
    key.write_text("11" * 32 + "\n")
    said, is_problem = checked(copy / "config.yaml")
    assert "put back the key it was planned with" in said
    assert is_problem
    key.unlink()
    assert "put that key back" in refused("plan", "-c", copy / "config.yaml", "--new-key")
    assert not key.exists()
