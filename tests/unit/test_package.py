import hashlib
import os
import subprocess
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from mrmill import layout
from mrmill.config import Config
from mrmill.layout import ReleaseTree
from mrmill.package import package_study, remove_zip, write_zip
from mrmill.records import Outcome, Record
from mrmill.shards import Study
from mrmill.stages import STAGES, stage_params

UID, CENTER, T2, HELD = "2END5JBWVA", "t1w-raw-axi", "t2w-raw-sag", "flair-raw-cor"


def native_files(series_id):
    masks = {kind: layout.native_mask(UID, series_id, kind) for kind in ("brain", "defacing")}
    return {"img": layout.native_image(UID, series_id), **masks}


def entry(series_id, files, state="accepted", **more):
    known = {"series_key": f"K-{series_id}", "series_id": series_id, "files": files}
    return {**known, "is_center_modality": series_id == CENTER, "state": state, **more}


@pytest.fixture
def release(tmp_path):
    return ReleaseTree(tmp_path / "release", "TINY")


@pytest.fixture
def study(tmp_path):
    """A study of a center, a T2w and a FLAIR that waits for review, after register."""
    deface = [
        entry(CENTER, native_files(CENTER)),
        entry(T2, native_files(T2)),
        entry(HELD, native_files(HELD), "rejected", reason="needs_review"),
    ]
    in_coreg = {
        "img": f"coreg/{layout.coreg_image(UID, T2)}",
        "transform": f"coreg/{layout.coreg_transform(T2)}",
    }
    in_atlas = {
        "img": f"atlas/{layout.atlas_image(UID, CENTER)}",
        "brain": f"atlas/{layout.atlas_mask(UID, CENTER, 'brain')}",
        "defacing": f"atlas/{layout.atlas_mask(UID, CENTER, 'defacing')}",
        "transform": f"atlas/{layout.atlas_transform(CENTER)}",
    }
    register = [
        entry(CENTER, {}, space="coreg"),
        entry(CENTER, in_atlas, space="atlas", **FIT),
        entry(T2, in_coreg, space="coreg", **FIT),
        entry(T2, {"img": f"atlas/{layout.atlas_image(UID, T2)}"}, space="atlas"),
    ]
    records, folders = {}, {}
    for stage, series in (("deface", deface), ("register", register)):
        records[stage] = Record(UID, "key", Outcome(series=series))
        folders[stage] = tmp_path / stage
        for name in [name for e in series for name in e["files"].values()]:
            path = folders[stage] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"content of {name}")
    return Study(UID, "P", "batch03", upstream=records, folders=folders)


#: What register notes about a transform.
FIT = {"matrix": np.eye(4).tolist(), "quality": {"brain_dice": 0.9}, "fit": "ok", "about": {}}

EXPECTED = {
    "native": [f"{UID}/{name}" for s in (CENTER, T2) for name in native_files(s).values()],
    "coreg": [
        f"{UID}/coreg_img/{UID}_{CENTER}.nii.gz",
        f"{UID}/coreg_img/{UID}_coreg_{T2}.nii.gz",
        f"{UID}/coreg_seg/{UID}_{CENTER}_brain-mask.nii.gz",
        f"{UID}/coreg_seg/{UID}_{CENTER}_defacing-mask.nii.gz",
        f"{UID}/transform/M_coreg_{T2}.mat",
    ],
    "atlas": [
        f"{UID}/atlas_img/{UID}_atlas_{CENTER}.nii.gz",
        f"{UID}/atlas_img/{UID}_atlas_{T2}.nii.gz",
        f"{UID}/atlas_seg/{UID}_atlas_{CENTER}_brain-mask.nii.gz",
        f"{UID}/atlas_seg/{UID}_atlas_{CENTER}_defacing-mask.nii.gz",
        f"{UID}/transform/M_atlas_{CENTER}.mat",
    ],
}


@pytest.mark.parametrize("space", layout.SPACES)
def test_a_zip_holds_the_accepted_series_and_nothing_else(study, release, tmp_path, space):
    outcome = package_study(study, tmp_path, space, release)
    path = release.repository(space) / outcome.zip["path"]
    assert path == release.zip(space, "batch03", UID)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert names == sorted(EXPECTED[space])
        digests = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}
    assert outcome.zip["members"] == digests
    assert outcome.zip["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert outcome.zip["bytes"] == path.stat().st_size
    assert [(e["series_id"], e["state"]) for e in outcome.series] == [
        (CENTER, "accepted"),
        (T2, "accepted"),
    ]


@pytest.mark.parametrize(
    ("space", "also"),
    [
        ("native", []),
        ("coreg", [f"{UID}/transform/M_coreg_{T2}.json"]),
        ("atlas", [f"{UID}/transform/M_atlas_{CENTER}.json"]),
    ],
)
def test_descriptions_of_transforms_go_into_the_zip_if_they_are_asked_for(
    study, release, tmp_path, space, also
):
    outcome = package_study(study, tmp_path, space, release, transform_json=True)
    assert sorted(outcome.zip["members"]) == sorted(EXPECTED[space] + also)


def test_asking_for_descriptions_packs_anew_and_does_nothing_else():
    before, after = (
        Config(deface={"weights": "x"}, dataset={"transform_json": asked})
        for asked in (False, True)
    )
    changed = {s for s in STAGES if stage_params(before, s) != stage_params(after, s)}
    assert changed == {"package-coreg", "package-atlas"}


def test_the_center_in_coreg_space_is_its_native_copy(study, release, tmp_path):
    package_study(study, tmp_path, "coreg", release)
    with zipfile.ZipFile(release.zip("coreg", "batch03", UID)) as archive:
        content = archive.read(f"{UID}/coreg_seg/{UID}_{CENTER}_defacing-mask.nii.gz")
    assert content == (study.folders["deface"] / native_files(CENTER)["defacing"]).read_bytes()


def test_the_same_study_gives_the_same_bytes_on_another_day_and_with_another_umask(
    study, release, tmp_path
):
    first = package_study(study, tmp_path, "native", release)
    path = release.zip("native", "batch03", UID)
    before, mode = path.read_bytes(), path.stat().st_mode
    for file in study.folders["deface"].rglob("*.gz"):
        os.utime(file, (10**9, 10**9))
        file.chmod(0o600)
    umask = os.umask(0o077)
    try:
        second = package_study(study, tmp_path, "native", release)
    finally:
        os.umask(umask)
    assert (path.read_bytes(), path.stat().st_mode) == (before, mode)
    assert mode & 0o777 == 0o644
    assert first == second


def test_nothing_of_the_machine_stands_in_a_zip(study, release, tmp_path):
    package_study(study, tmp_path, "native", release)
    with zipfile.ZipFile(release.zip("native", "batch03", UID)) as archive:
        assert archive.comment == b""
        for member in archive.infolist():
            assert member.compress_type == zipfile.ZIP_STORED
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
            assert (member.extra, member.comment, member.flag_bits) == (b"", b"", 0)
            assert member.external_attr >> 16 == 0o100644


def test_another_unzip_accepts_the_zip(study, release, tmp_path):
    package_study(study, tmp_path, "native", release)
    try:
        command = ["unzip", "-tq", release.zip("native", "batch03", UID)]
        assert subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        pytest.skip("unzip is not installed")


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("center_reg_failed", "center_reg_failed"),
        ("center_reg_needs_review", "center_reg_needs_review"),
        ("review_rejected", "review_rejected"),
        ("", "center_reg_failed"),
    ],
)
def test_a_study_that_left_a_space_loses_its_zip(study, release, tmp_path, reason, told):
    package_study(study, tmp_path, "atlas", release)
    why = {"state": "rejected", "reason": reason}
    lost = [{**e, **why} for e in study.upstream["register"].outcome.series]
    record = Record(UID, "key", Outcome(series=lost))
    later = replace(study, upstream={**study.upstream, "register": record})
    outcome = package_study(later, tmp_path, "atlas", release)
    assert (outcome.state, outcome.reason) == ("rejected", told)
    assert outcome.zip == {}
    assert not release.zip("atlas", "batch03", UID).exists()
    remove_zip(release, "atlas", "batch03", UID)  # once more does no harm


def test_a_file_that_cannot_be_read_leaves_the_old_zip_and_no_part(study, release, tmp_path):
    package_study(study, tmp_path, "native", release)
    path = release.zip("native", "batch03", UID)
    before = path.read_bytes()
    (study.folders["deface"] / native_files(T2)["brain"]).unlink()
    with pytest.raises(FileNotFoundError):
        package_study(study, tmp_path, "native", release)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_order_of_members_does_not_matter(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    write_zip(tmp_path / "1.zip", {"a": tmp_path / "a", "b": tmp_path / "b"})
    write_zip(tmp_path / "2.zip", {"b": tmp_path / "b", "a": tmp_path / "a"})
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
