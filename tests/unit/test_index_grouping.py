import os
import shutil

import pytest
from indexed import entries_of, index
from tiny_dicom import MR, REPORT, write_dicom, write_study

from mrmill.index import buckets as index_buckets
from mrmill.index.series import holds_image


@pytest.fixture
def export(tmp_path):
    return tmp_path / "export"


# ------------------------------------------------------------------ grouping


def test_a_study_exported_twice_is_planned_once_and_the_copies_counted(export, tmp_path):
    write_study(export / "first", "1.1", "P1")
    shutil.copytree(export / "first", export / "second")
    whole = entries_of(index(export / "first", tmp_path / "other"))
    found = index(export, tmp_path)
    twice = entries_of(found)
    assert found.dropped["duplicate"] == 6
    n_sop = [series["n_sop"] for series in whole["1.1"]["series"]]
    assert [series["n_sop"] for series in twice["1.1"]["series"]] == n_sop == [3, 3]


def test_of_two_copies_the_larger_is_used(export, tmp_path):
    write_dicom(export / "a" / "cut.dcm")
    whole = write_dicom(export / "b" / "whole.dcm")
    whole.write_bytes(whole.read_bytes() + bytes(100))
    (series,) = entries_of(index(export, tmp_path))["1.1"]["series"]
    assert series["files"] == ["whole.dcm"]


def test_two_series_with_the_same_instance_uids_both_stay(export, tmp_path):
    for series in ("1.1.1", "1.1.2"):
        for number in ("1", "2"):
            write_dicom(export / series / number, series=series, instance=f"9.{number}")
    found = index(export, tmp_path)
    assert [s["n_sop"] for s in entries_of(found)["1.1"]["series"]] == [2, 2]
    assert found.dropped["duplicate"] == 0


def test_a_study_of_two_patients_is_rejected(export, tmp_path):
    write_dicom(export / "1", instance="1", patient="P1")
    write_dicom(export / "2", instance="2", patient="P2")
    found = index(export, tmp_path)
    (study,) = found.studies()
    assert (study.reject, study.patient_id) == ("mixed_patients", "")
    assert found.warnings["mixed_patients"] == 1


def test_a_patient_id_missing_in_some_files_is_taken_from_the_others(export, tmp_path):
    write_dicom(export / "1", instance="1", patient="P1")
    write_dicom(export / "2", instance="2", patient=None)
    (study,) = index(export, tmp_path).studies()
    assert (study.reject, study.patient_id) == ("", "P1")


def test_a_patient_with_and_without_issuer_is_pointed_out(export, tmp_path):
    write_dicom(export / "1", "1.1")
    write_dicom(export / "2", "1.2", IssuerOfPatientID="HOSPITAL")
    found = index(export, tmp_path)
    assert {study.issuer for study in found.studies()} == {"", "HOSPITAL"}
    assert found.warnings["patient_id_with_and_without_issuer"] == 1


def test_a_series_of_reports_is_kept_as_rejected(export, tmp_path):
    write_dicom(export / "report", SOPClassUID=REPORT)
    (series,) = entries_of(index(export, tmp_path))["1.1"]["series"]
    assert (series["reject"], series["n_sop"]) == ("no_images", 1)


def test_a_report_among_images_is_left_out_and_counted(export, tmp_path):
    write_dicom(export / "image", instance="1")
    write_dicom(export / "report", instance="2", SOPClassUID=REPORT)
    found = index(export, tmp_path)
    (series,) = entries_of(found)["1.1"]["series"]
    assert (series["files"], "reject" in series) == (["image"], False)
    assert found.dropped["no_pixels"] == 1


@pytest.mark.parametrize(
    ("sop_class", "image"),
    [
        (MR, True),
        ("1.2.840.10008.5.1.4.1.1.4.1", True),  # enhanced MR
        ("1.2.840.10008.5.1.4.1.1.7", True),  # secondary capture: an image, though not MR
        ("1.3.46.670589.11.0.0.12.1", True),  # unknown and private: for convert to find out
        ("1.2.840.10008.5.1.4.1.1.66", False),  # raw data
        ("1.2.840.10008.5.1.4.1.1.11.1", False),  # presentation state
        ("1.2.840.10008.5.1.4.1.1.4.2", False),  # spectroscopy
        ("1.3.12.2.1107.5.9.1", False),  # Siemens phoenix
        ("", True),
    ],
)
def test_sop_classes_without_image_are_known(sop_class, image):
    assert holds_image(sop_class) is image


def test_the_digest_follows_the_content_and_not_the_place(export, tmp_path):
    path = write_dicom(export / "a.dcm")
    (before,) = entries_of(index(export, tmp_path))["1.1"]["series"]
    export.rename(tmp_path / "moved")
    (moved,) = entries_of(index(tmp_path / "moved", tmp_path))["1.1"]["series"]
    os.utime(tmp_path / "moved" / path.name, ns=(1, 1))
    (touched,) = entries_of(index(tmp_path / "moved", tmp_path))["1.1"]["series"]
    assert before["digest"] == moved["digest"] != touched["digest"]


def test_many_small_buckets_give_the_same_entries_as_one(export, tmp_path, monkeypatch):
    for n in range(6):
        write_study(export / str(n), f"1.{n}", f"P{n}", n_series=1, n_files=2)
    found = index(export, tmp_path)
    together = entries_of(found)
    monkeypatch.setattr(index_buckets, "BUCKET_ROWS", 3)
    placed = [(s, ("batch00", f"shard{int(s.key[2:]) // 2:04d}")) for s in found.studies()]
    buckets = list(found.entries(placed, str))
    apart = {
        uid: e for shards in buckets for studies in shards.values() for uid, e in studies.items()
    }
    assert len(buckets) > 1
    assert apart == together
    shards = [shard for shards in buckets for shard in shards]
    assert len(shards) == len(set(shards)) == 3  # every shard comes whole
