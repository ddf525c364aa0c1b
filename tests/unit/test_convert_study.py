"""What becomes of a study: its plan, its siblings, its machine; and what is said of it."""

import errno
import json
import logging
import os
import stat
from pathlib import Path

import pydicom
import pytest
from tiny_series import (
    account,
    convert,
    planned,
    verdicts,
    write_parts,
    write_series,
)

from mrmill.config import ROOT
from mrmill.convert import LOSSY
from mrmill.convert import dcm2niix as converter
from mrmill.convert.completeness import WARNING as MAYBE_INCOMPLETE
from mrmill.index.series import File, series_entry


def test_equal_input_gives_equal_bytes_and_an_equal_outcome_anywhere(tmp_path):
    results = []
    for place in (tmp_path / "here", tmp_path / "elsewhere/deeper"):
        write_parts(place / "in", [{"EchoTime": 80}, {"EchoTime": 20}])
        outcome, out = convert(place, planned(place / "in"))
        results.append((outcome, {p.name: p.read_bytes() for p in out.rglob("*")}))
    assert results[0] == results[1]
    assert str(tmp_path) not in json.dumps(results[0][0].series)


@pytest.mark.parametrize("damage", ["truncated", "not DICOM", "empty"])
def test_a_damaged_series_leaves_its_siblings_alone(tmp_path, damage):
    good, bad = write_series(tmp_path / "good"), write_series(tmp_path / "bad")
    if damage == "truncated":
        path = bad / "005.dcm"
        path.write_bytes(path.read_bytes()[:-300])
    else:
        for path in bad.iterdir():
            path.write_bytes(b"no image at all" if damage == "not DICOM" else b"")
    outcome, out = convert(tmp_path, planned(bad, "BADSERIE"), planned(good, "GOODSERI"))
    assert outcome.state == "accepted"
    assert verdicts(outcome) == [
        ("BADSERIE", "rejected", "not_converted"),
        ("GOODSERI", "accepted", ""),
    ]
    assert [p.name for p in out.iterdir()] == ["GOODSERI.nii.gz"]


def test_what_the_plan_rejects_is_recorded_and_not_touched(tmp_path):
    folder = write_series(tmp_path / "in")
    outcome, _ = convert(tmp_path, planned(folder, reject="no_images"), planned(folder, "OTHERSER"))
    assert verdicts(outcome) == [
        ("SERIESAA", "rejected", "no_images"),
        ("OTHERSER", "accepted", ""),
    ]


def test_a_study_the_plan_rejects_keeps_its_reason(tmp_path):
    folder = write_series(tmp_path / "in")
    outcome, out = convert(tmp_path, planned(folder), reject="mixed_patients")
    assert (outcome.state, outcome.reason) == ("rejected", "mixed_patients")
    assert verdicts(outcome) == [("SERIESAA", "rejected", "study_rejected")]
    assert list(out.iterdir()) == []


def test_what_the_plan_warns_of_stands_in_every_entry(tmp_path):
    write_parts(tmp_path / "in", [{"EchoTime": 80}, {"EchoTime": 20}])
    series = planned(tmp_path / "in", warnings=["merged_series_uids"])
    outcome, _ = convert(tmp_path, series)
    assert [row[-1] for row in account(outcome)] == [["merged_series_uids", "split"]] * 2


# files that are not as planned: no fault of the data, so failed, and open for a retry


def test_a_file_that_is_gone_fails_the_series(tmp_path):
    series = planned(write_series(tmp_path / "in"))
    (tmp_path / "in/005.dcm").unlink()
    outcome, _ = convert(tmp_path, series)
    assert (outcome.state, outcome.reason) == ("failed", "error")
    assert outcome.error.startswith("FileNotFoundError")


def test_a_file_that_may_not_be_read_fails_the_series(tmp_path, monkeypatch):
    series = planned(write_series(tmp_path / "in"))
    answer_opening("005.dcm", errno.EACCES, monkeypatch)
    outcome, _ = convert(tmp_path, series)
    assert (outcome.state, outcome.reason) == ("failed", "error")
    assert outcome.error.startswith("PermissionError")


@pytest.mark.parametrize("when", ["opening", "reading"])
def test_a_disk_that_cannot_be_read_stops_the_job(tmp_path, monkeypatch, when):
    series = planned(write_series(tmp_path / "in"))
    if when == "opening":
        answer_opening("005.dcm", errno.EIO, monkeypatch)
    else:
        monkeypatch.setattr(pydicom, "dcmread", broken_disk)
    with pytest.raises(OSError, match="Input/output error"):
        convert(tmp_path, series)


def broken_disk(*_, **__):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def answer_opening(name, number, monkeypatch):
    """Let the file of this name answer with an error of the system."""
    really_open = Path.open

    def opened(path, *args, **options):
        if path.name == name:
            raise OSError(number, os.strerror(number))
        return really_open(path, *args, **options)

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize("change", ["another size", "another patient", "another time"])
def test_files_that_changed_since_the_plan_fail_until_they_are_planned_again(tmp_path, change):
    folder = write_series(tmp_path / "in")
    path, series = folder / "005.dcm", planned(folder)
    if change == "another size":
        path.write_bytes(path.read_bytes() + b"\0\0")
    elif change == "another patient":
        ds = pydicom.dcmread(path)
        ds.PatientID = "CANARY-OT"
        ds.save_as(path)
    else:
        os.utime(path, (1, 1))
    outcome, out = convert(tmp_path / "a", series)
    assert outcome.state == "failed"
    assert outcome.error.startswith("ChangedSincePlan")
    assert list(out.iterdir()) == []
    assert convert(tmp_path / "b", planned(folder))[0].state == "accepted"


def test_the_plan_and_its_conversion_know_a_file_by_the_same_stamps(tmp_path):
    folder = write_series(tmp_path / "in")
    series = planned(folder)
    files = [
        File(
            *("2.1", "3.1", os.fsencode(folder), os.fsencode(p.name)),
            *(p.stat().st_size, p.stat().st_mtime_ns),
            **dict.fromkeys(File._fields[6:]),
        )
        for p in sorted(folder.iterdir())
    ]
    assert series_entry(files, {})["digest"] == series["digest"]


# the converter and its machine


@pytest.fixture
def fake_dcm2niix(tmp_path, monkeypatch):
    def install(script):
        path = tmp_path / "dcm2niix"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(converter, "dcm2niix", lambda: str(path))

    return install


@pytest.mark.parametrize(
    ("script", "error"), [("exec sleep 30", "TimeoutError"), ("kill -9 $$", "ChildProcessError")]
)
def test_a_converter_that_hangs_or_dies_fails_the_series(tmp_path, fake_dcm2niix, script, error):
    fake_dcm2niix(script)
    outcome, out = convert(tmp_path, planned(write_series(tmp_path / "in")), timeout_s=0.2)
    assert outcome.state == "failed"
    assert outcome.series[0]["error"].startswith(error)
    assert list(out.iterdir()) == []


def test_a_full_disk_is_no_fault_of_the_study(tmp_path, fake_dcm2niix):
    fake_dcm2niix('echo "Error: Unable to write /x/v.nii (disk full?)" >&2; exit 1')
    with pytest.raises(OSError, match="could not write") as caught:
        convert(tmp_path, planned(write_series(tmp_path / "in")))
    assert caught.value.errno == errno.ENOSPC


def test_nothing_of_the_header_or_the_paths_reaches_the_log(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    folder = write_series(tmp_path / "CANARY-FOLDER", keep=set(range(8)) - {6})
    convert(tmp_path, planned(folder))
    assert "uneven_slices" in caplog.text
    assert "CANARY" not in caplog.text
    assert str(tmp_path) not in caplog.text


def test_the_docs_name_every_warning():
    page = (ROOT / "docs/conversion.md").read_text(encoding="utf-8")
    own = {MAYBE_INCOMPLETE, LOSSY, "merged_series_uids", "bad_sidecar"}
    codes = own | set(converter.WARNINGS.values())
    assert [code for code in sorted(codes) if f"`{code}`" not in page] == []
