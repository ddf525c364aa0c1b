"""The real workflow on a tiny phantom export: what comes out, and what happens on the way."""

import csv
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import environment, image_bytes, mrmill, project, release_files

from mrmill.records import Journal, Outcome, Record

HERE = Path(__file__).parent
EXPECTED = HERE / "expected_files.txt"


def listing(folder):
    """Every file of a release, and every member of its zips."""
    for name in release_files(folder):
        yield name
        if name.endswith(".zip"):
            with zipfile.ZipFile(folder / "release" / name) as archive:
                yield from (f"{name}/{member}" for member in archive.namelist())


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_release_holds_the_expected_files(finished):
    found = sorted(listing(finished))
    if "MRMILL_WRITE_EXPECTED" in os.environ:
        EXPECTED.write_text("\n".join(found) + "\n")
    assert found == EXPECTED.read_text().split()


def test_the_release_verifies(finished):
    result = mrmill("verify", finished / "release")
    assert result.returncode == 0, result.stdout
    assert "verified" in result.stdout


def test_every_series_the_phantom_made_ends_as_it_should(finished, tiny_export):
    """The truth beside the export says what has to become of each series.

    deepbet's mask of a thick T2w may run into the orbits; then the series waits for a person.
    """
    truths = [json.loads(p.read_text()) for p in truth_of(tiny_export).glob("*.json")]
    expected = Counter(t["outcome"] for t in truths)
    found = Counter()
    for row in rows(finished / "release/TINY/ledger.csv"):
        outcome = row["reason"] or row["state"]
        if outcome == "needs_review" and row["series_id"].startswith("t2w"):
            outcome = "accepted"
        found[outcome] += 1
    assert found == expected


def truth_of(export):
    return export.with_name(f"{export.name}-truth")


def test_the_card_tells_what_a_series_had_to_be(finished):
    card = (finished / "release/TINY/README.md").read_text()
    assert "age_years >= 13 years" in card
    assert "fov_mm 140 to 350 mm" in card


def test_the_summary_tells_what_became_of_everything(finished):
    output = (finished / "output.txt").read_text()
    for word in ("seen", "accepted", "rejected", "failed", "release", "deface", "register"):
        assert word in output


def canaries(data):
    """Where a canary of the phantom's headers stands in some bytes."""
    return b"CANARY" in data.upper()


def released_bytes(folder):
    """Yield every file of the release, every zip member, and what is inside their gzip."""
    for name in release_files(folder):
        data = (folder / "release" / name).read_bytes()
        yield name, name.encode() + data
        if name.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                assert archive.comment == b""
                for info in archive.infolist():
                    member = archive.read(info)
                    yield f"{name}/{info.filename}", info.comment + info.extra + member
                    if info.filename.endswith(".gz"):
                        yield f"{name}/{info.filename}", gzip.decompress(member)


def test_no_canary_of_the_export_is_in_the_release(finished, tiny_export):
    planted = [p for p in tiny_export.rglob("*.dcm") if canaries(p.read_bytes())]
    assert planted, "the export must hold canaries for this test to mean anything"
    assert [name for name, data in released_bytes(finished) if canaries(data)] == []


def test_no_uid_or_date_of_the_export_is_in_the_release(finished, tiny_export):
    import pydicom

    secrets = set()
    for path in tiny_export.rglob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        secrets |= {header.StudyInstanceUID, header.SeriesInstanceUID, header.PatientID}
        secrets |= {header.AccessionNumber, str(header.PatientName)}
        secrets |= {
            dashed for d in (header.StudyDate, header.PatientBirthDate) for dashed in dates(d)
        }
    for name, data in released_bytes(finished):
        assert not [s for s in secrets if s.encode() in data], name


def dates(dicom_date):
    return {dicom_date, f"{dicom_date[:4]}-{dicom_date[4:6]}-{dicom_date[6:]}"}


def test_a_second_run_does_nothing(finished):
    before = release_files(finished)
    times = {p: p.stat().st_mtime_ns for p in (finished / "work").rglob("*.json")}
    result = mrmill("run", "-c", finished / "config.yaml", "--cores", 2)
    assert result.returncode == 0
    assert "Nothing to be done" in result.stdout + result.stderr
    assert release_files(finished) == before
    assert {p: p.stat().st_mtime_ns for p in (finished / "work").rglob("*.json")} == times


def test_what_was_deleted_behind_its_back_is_made_again(finished, tmp_path):
    """A native zip is the only place of its images: they are made from the export again."""
    project_copy = shutil.copytree(finished, tmp_path / "copy")
    next((project_copy / "release/TINY/mri").rglob("*.zip")).unlink()
    next((project_copy / "release").rglob("*_coreg.zip")).unlink()
    (project_copy / "release/TINY/ledger.csv").unlink()
    result = mrmill("run", "-c", project_copy / "config.yaml", "--cores", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert release_files(project_copy) == release_files(finished)
    assert images_in_work(project_copy) == images_in_work(finished)


def images_in_work(folder):
    return sorted(str(p.relative_to(folder)) for p in (folder / "work").rglob("*.nii.gz"))


def test_a_packaged_study_lives_in_its_zips_alone(finished):
    """But for series that wait for a person: what was made of them, and of what."""
    ledger = rows(finished / "release/TINY/ledger.csv")
    waiting = [row for row in ledger if row["reason"] == "needs_review"]
    left = images_in_work(finished)
    defaced = [name for name in left if "/deface/" in name]
    assert len(defaced) == 3 * len(waiting)
    assert all(any(row["series_id"] in name for row in waiting) for name in defaced)
    converted = {Path(name).name for name in left} - {Path(name).name for name in defaced}
    assert converted == {f"{row['series_key']}.nii.gz" for row in waiting}


def test_images_take_little_more_room_on_the_way_than_in_the_release(finished):
    """Besides what is in hand: of two studies one is much."""
    peak = int((finished / "peak_bytes.txt").read_text())
    released = image_bytes(finished / "release")
    largest = max(path.stat().st_size for path in (finished / "release").rglob("*.zip"))
    assert released <= peak <= 1.1 * released + largest


def test_with_all_kept_the_release_is_the_same(finished, tiny_export, tmp_path):
    config = project(tmp_path, input={"path": str(tiny_export)}, keep_intermediates=True)
    result = mrmill("run", "-c", config, "--cores", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert release_files(tmp_path) == release_files(finished)
    stages = {name.split("/")[2] for name in images_in_work(tmp_path)}
    assert stages == {"convert", "deface", "register"}


def test_retry_opens_a_failed_study_and_the_next_run_finishes_it(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    journal = Journal(next((copy / "work").glob("batch00/curate/shard0001.jsonl")))
    uid, record = next(iter(journal.records().items()))
    journal.write(Record(uid, record.key, Outcome("failed", "error", error="OSError x.py:1")))
    opened = mrmill("retry", "-c", copy / "config.yaml")
    assert "1 studies are open again" in opened.stdout
    result = mrmill("run", "-c", copy / "config.yaml", "--cores", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert release_files(copy) == release_files(finished)


def recorded(folder, stage):
    """Lines of finished studies in the journals of a stage."""
    lines = []
    for path in (folder / "work").glob(f"batch*/{stage}/*.jsonl"):
        lines += [line for line in path.read_text().splitlines() if '"event": "record"' in line]
    return lines


def test_the_plain_two_steps_give_the_same_release(finished, tiny_export, tmp_path):
    config = project(tmp_path, input={"path": str(tiny_export)}, spaces=["native"])
    assert mrmill("plan", "-c", config).returncode == 0
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", str(config)]
    result = subprocess.run(
        command, env=environment(), capture_output=True, text=True, cwd=HERE.parents[1]
    )
    assert result.returncode == 0, result.stderr
    zips = {n: d for n, d in release_files(tmp_path).items() if n.endswith(".zip")}
    assert zips == {n: d for n, d in release_files(finished).items() if n.startswith("TINY/mri/")}


def test_a_changed_threshold_redoes_its_stage_and_what_follows(finished, tmp_path):
    """A higher age limit rejects studies; conversion is left alone."""
    for name in ("work", "release"):
        shutil.copytree(finished / name, tmp_path / name)
    config_text = (finished / "config.yaml").read_text()
    config = project(tmp_path)
    config.write_text(config_text + "curate: {limits: {age_below_minimum: {minimum: 150}}}\n")
    before = recorded(tmp_path, "convert")
    result = mrmill("run", "-c", config, "--cores", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert recorded(tmp_path, "convert") == before
    assert {r["state"] for r in rows(tmp_path / "release/TINY/ledger.csv")} == {"rejected"}
    assert not list((tmp_path / "release").rglob("*.zip"))
    assert mrmill("verify", tmp_path / "release").returncode == 0


def test_a_native_release_is_registered_elsewhere_to_the_same_zips(finished, tmp_path):
    native = finished / "release" / "TINY"
    config = project(
        tmp_path, input={"kind": "release", "path": str(native)}, spaces=["coreg", "atlas"]
    )
    result = mrmill("run", "-c", config, "--cores", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    ours, theirs = release_files(tmp_path), release_files(finished)
    zips = {n for n in theirs if n.endswith(".zip") and not n.startswith("TINY/")}
    assert zips
    assert {n: ours.get(n) for n in zips} == {n: theirs[n] for n in zips}


@pytest.mark.parametrize("kind", ["nifti"])
def test_nifti_with_sidecars_and_a_series_table_goes_the_same_way(tmp_path, kind):
    assert (
        mrmill("phantom", tmp_path / "export", "--preset", "tiny", "--kind", kind).returncode == 0
    )
    config = project(
        tmp_path,
        input={"kind": kind, "path": "export", "series_table": "export/series.csv"},
        spaces=["native"],
    )
    result = mrmill("run", "-c", config, "--cores", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    ledger = rows(tmp_path / "release/TINY/ledger.csv")
    assert {r["state"] for r in ledger} == {"accepted", "rejected"}
    assert mrmill("verify", tmp_path / "release").returncode == 0
