import json
import zipfile

import nibabel as nib
import numpy as np
import pytest

from mrmill.adopt import adopt_study
from mrmill.reasons import Rejected
from mrmill.shards import Study

UID = "STUDY23456"
CENTER, MOVING = "t1w-raw-sag", "flair-raw-axi-2"
KINDS = {"img": "img/{}_{}.nii.gz", "brain": "seg/{}_{}_brain-mask.nii.gz"}
KINDS["defacing"] = "seg/{}_{}_defacing-mask.nii.gz"


def row(series_id, center):
    return {
        "patient_uid": "PATIENT234",
        "study_uid": UID,
        "series_id": series_id,
        "classified_modality": series_id.split("-")[0],
        "SeriesNumber": 4,
        "is_center_modality": center,
    }


ROWS = [row(CENTER, "True"), row(MOVING, "False")]


PIXELS = np.arange(210, dtype=np.uint16).reshape(5, 6, 7)
MASK = np.zeros((5, 6, 7), np.uint8)
MASK[1:4, 1:4, 1:4] = 1


def write_image(path, data, slice_mm=3.0, alter=lambda header: None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, np.diag([1.0, 1.0, slice_mm, 1.0]))
    alter(image.header)
    nib.save(image, path)


@pytest.fixture
def released(tmp_path):
    """Unpacked study folder of a release with two series."""
    folder = tmp_path / "release" / UID
    for series_id in (CENTER, MOVING):
        for kind, name in KINDS.items():
            data = MASK if kind != "img" else PIXELS * MASK
            write_image(folder / name.format(UID, series_id), data)
    return folder


def zipped(folder, nested=True, extra=()):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.nii.gz")):
            archive.write(file, file.relative_to(folder.parent if nested else folder))
        for name in extra:
            archive.writestr(name, b"x")
    return path


@pytest.fixture
def adopt(tmp_path):
    def run(source, rows=ROWS):
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        study = Study(UID, "PATIENT234", "batch00", {"source": str(source), "rows": rows})
        outcome = adopt_study(study, scratch)
        json.dumps(outcome.series)
        return outcome, scratch

    return run


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("shape", ["folder", "folder of folders", "zip", "flat zip"])
def test_a_release_is_taken_over_byte_for_byte(adopt, released, shape):
    source = {
        "folder": lambda: released,
        "folder of folders": lambda: released.parent,
        "zip": lambda: zipped(released),
        "flat zip": lambda: zipped(released, nested=False),
    }[shape]()
    outcome, scratch = adopt(source)
    assert contents(scratch) == contents(released)
    assert outcome.state == "accepted"
    center, moving = outcome.series
    assert (center["series_id"], center["is_center_modality"]) == (CENTER, True)
    assert (moving["series_key"], moving["is_center_modality"]) == (MOVING, False)
    assert moving["files"] == {kind: name.format(UID, MOVING) for kind, name in KINDS.items()}
    assert center["row"]["classified_modality"] == "t1w"
    assert "is_center_modality" not in center["row"]


def test_only_the_files_of_the_layout_leave_the_archive(adopt, released, tmp_path):
    source = zipped(released, extra=["../evil.txt", "/tmp/evil.txt", f"{UID}/img/other.nii.gz"])
    _, scratch = adopt(source)
    assert contents(scratch) == contents(released)
    assert not list(tmp_path.rglob("evil.txt"))


@pytest.mark.parametrize("series_id", ["../../evil", "/tmp/evil", "t1w raw", "T1W-raw-axi\n", ""])
def test_a_series_id_that_is_no_plain_name_is_refused(adopt, released, series_id):
    outcome, scratch = adopt(released, [ROWS[0], row(series_id, "False")])
    assert [entry["state"] for entry in outcome.series] == ["accepted", "rejected"]
    assert all(CENTER in name for name in contents(scratch))


def damage_missing(path):
    path.unlink()


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-60])


def damage_other_grid(path):
    write_image(path, np.ones((5, 6, 7), np.uint8), slice_mm=3.1)


def damage_other_shape(path):
    write_image(path, np.ones((5, 6, 8), np.uint8))


def damage_empty(path):
    write_image(path, np.zeros((5, 6, 7), np.uint8))


def damage_labels(path):
    write_image(path, np.full((5, 6, 7), 2, np.uint8))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_missing, "unreadable_image"),
        (damage_truncated, "unreadable_image"),
        (damage_other_grid, "bad_geometry"),
        (damage_other_shape, "bad_geometry"),
        (damage_empty, "empty_mask"),
        (damage_labels, "unreadable_image"),
    ],
)
@pytest.mark.parametrize("kind", ["brain", "defacing"])
def test_a_series_with_a_bad_mask_is_left_out_and_leaves_no_file(
    adopt, released, kind, damage, reason
):
    damage(released / KINDS[kind].format(UID, MOVING))
    outcome, scratch = adopt(zipped(released))
    assert outcome.state == "accepted"
    assert [entry["reason"] for entry in outcome.series] == ["", reason]
    assert all(CENTER in name for name in contents(scratch))


def test_an_image_that_is_not_defaced_is_left_out(adopt, released):
    one_voxel = PIXELS * MASK
    one_voxel[4, 5, 6] = 1
    write_image(released / KINDS["img"].format(UID, MOVING), one_voxel)
    outcome, scratch = adopt(released)
    assert [entry["reason"] for entry in outcome.series] == ["", "not_defaced"]
    assert "1 removed voxel" in outcome.series[1]["found"]
    assert all(CENTER in name for name in contents(scratch))


def add_extension(header):
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Dr Smith"))


@pytest.mark.parametrize("kind", ["img", "brain", "defacing"])
@pytest.mark.parametrize(
    "place", ["descrip", "aux_file", "db_name", "intent_name", "data_type", "extensions"]
)
def test_a_series_with_text_in_a_header_is_left_out(adopt, released, kind, place):
    def alter(header):
        if place == "extensions":
            add_extension(header)
        else:
            header[place] = b"Dr Smith"

    data = PIXELS * MASK if kind == "img" else MASK
    write_image(released / KINDS[kind].format(UID, MOVING), data, alter=alter)
    outcome, scratch = adopt(released)
    assert [entry["reason"] for entry in outcome.series] == ["", "header_text"]
    assert place in outcome.series[1]["found"]
    assert "Smith" not in str(outcome)
    assert all(CENTER in name for name in contents(scratch))


def test_a_damaged_member_rejects_its_series_alone(adopt, released):
    source = zipped(released)
    raw = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        start = archive.getinfo(f"{UID}/{KINDS['img'].format(UID, MOVING)}").header_offset
    raw[start + 150] ^= 0xFF
    source.write_bytes(raw)
    outcome, _ = adopt(source)
    assert [entry["reason"] for entry in outcome.series] == ["", "unreadable_image"]


def test_an_archive_that_is_none_rejects_the_study(adopt, tmp_path):
    source = tmp_path / "x.zip"
    source.write_bytes(b"half a download")
    with pytest.raises(Rejected, match="unreadable_image"):
        adopt(source)


@pytest.mark.parametrize("centers", [("False", "False"), ("True", "True")])
def test_a_study_needs_exactly_one_center(adopt, released, centers):
    rows = [row(CENTER, centers[0]), row(MOVING, centers[1])]
    outcome, _ = adopt(released, rows)
    assert (outcome.state, outcome.reason) == ("rejected", "no_center")


def test_a_study_whose_center_is_damaged_has_no_center(adopt, released):
    damage_truncated(released / KINDS["img"].format(UID, CENTER))
    outcome, _ = adopt(released)
    assert (outcome.state, outcome.reason) == ("rejected", "no_center")
    assert [entry["reason"] for entry in outcome.series] == ["unreadable_image", ""]
