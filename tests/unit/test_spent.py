"""Files nobody needs any more: when they go, when they stay, and that they come back the same."""

import json
from functools import partial

import pytest

from mrmill import layout
from mrmill.layout import ReleaseTree, WorkTree, place_in_zip
from mrmill.lease import Lease
from mrmill.package import write_zip
from mrmill.reasons import Rejected
from mrmill.records import Journal, Outcome
from mrmill.shards import ShardJob, process_shard

UIDS = ("STUDYA", "STUDYB")
BATCH, SHARD = "batch00", "shard0000"

#: A run in small: what `convert` makes has a last reader, of those of `deface` any may be it.
NEEDS = {
    "convert": (),
    "curate": ("convert",),
    "deface": ("convert", "curate"),
    "register": ("deface",),
    "package-native": ("deface",),
}


@pytest.fixture
def export(tmp_path):
    """What the studies are made from."""
    folder = tmp_path / "export"
    folder.mkdir()
    for uid in UIDS:
        (folder / uid).write_text(f"voxels of {uid}")
    return folder


@pytest.fixture
def run(tmp_path, export):
    """Run one stage of the shard; what came before must have run."""
    work, release = WorkTree(tmp_path / "work"), ReleaseTree(tmp_path / "release", "X")
    plan = work.shard_plan(BATCH, SHARD)
    plan.parent.mkdir(parents=True)
    plan.write_text(
        json.dumps({"studies": [{"study_uid": u, "patient_uid": f"P{u}"} for u in UIDS]})
    )

    def run_stage(stage, function=None, version=1, **settings):
        functions = {
            "convert": partial(convert, export=export),
            "curate": decide,
            "deface": deface,
            "register": decide,
            "package-native": partial(package, release=release),
        }
        job = ShardJob(
            work,
            release,
            BATCH,
            SHARD,
            stage,
            params={"version": version},
            needs=NEEDS[stage],
            all_needs=NEEDS,
            make_again={"convert": functions["convert"]},
            max_failed_fraction=1,
            **settings,
        )
        process_shard(job, function or functions[stage])
        return job.journal.records()

    return run_stage


def convert(study, scratch, export):
    voxels = (export / study.study_uid).read_text()
    (scratch / "raw.nii.gz").write_text(f"converted {voxels}")
    return outcome()


def decide(study, scratch):
    return outcome()


def deface(study, scratch, suffix=""):
    voxels = (study.folders["convert"] / "raw.nii.gz").read_text()
    (scratch / "img").mkdir()
    (scratch / "img" / "a.nii.gz").write_text(f"defaced {voxels}{suffix}")
    (scratch / "img" / "same.nii.gz").write_text(f"defaced {voxels}{suffix}")
    (scratch / "img" / "waits.nii.gz").write_text("for a person")
    return outcome()


def package(study, scratch, release):
    folder = study.folders["deface"] / "img"
    members = {
        f"{study.study_uid}/img/{name}": folder / name for name in ("a.nii.gz", "same.nii.gz")
    }
    path = release.zip("native", study.batch, study.study_uid)
    digests = write_zip(path, members)
    place = str(path.relative_to(release.repository("native")))
    facts = {"path": place, "bytes": path.stat().st_size, "sha256": "", "members": digests}
    return Outcome(zip=facts)


def outcome():
    return Outcome(series=[{"series_key": "S", "state": "accepted", "reason": ""}])


def images(tmp_path, stage):
    """Names of the images a stage has in the work tree."""
    folder = tmp_path / "work" / BATCH / stage
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*.nii.gz"))


def zips(tmp_path):
    return {p.name: p.read_bytes() for p in (tmp_path / "release").rglob("*.zip")}


RAW = [f"{uid}/raw.nii.gz" for uid in UIDS]
WAITING = [f"{uid}/img/waits.nii.gz" for uid in UIDS]


def whole_run(run):
    for stage in NEEDS:
        run(stage)


def test_images_go_once_every_stage_that_reads_them_is_done(run, tmp_path):
    run("convert")
    run("curate")
    assert images(tmp_path, "convert") == RAW  # deface is still to come
    run("deface")
    assert images(tmp_path, "convert") == []
    run("package-native")
    assert len(images(tmp_path, "deface")) == 6  # register is still to come
    run("register")
    assert images(tmp_path, "deface") == WAITING  # in no zip
    assert not (tmp_path / "work" / BATCH / "convert" / UIDS[0]).exists()


def test_images_read_for_the_last_time_go_study_by_study(run, tmp_path):
    left = []

    def deface_and_look(study, scratch):
        left.append(images(tmp_path, "convert"))
        return deface(study, scratch)

    run("convert")
    run("curate")
    run("deface", deface_and_look)
    assert left == [RAW, RAW[1:]]


def test_the_image_behind_one_that_waits_for_a_person_stays(run, tmp_path):
    def hold_back(study, scratch):
        made = deface(study, scratch)
        if study.study_uid == UIDS[0]:
            made.series[0] |= {"state": "rejected", "reason": "needs_review", "file": "raw.nii.gz"}
        return made

    for stage in ("convert", "curate"):
        run(stage)
    run("deface", hold_back)
    assert images(tmp_path, "convert") == RAW[:1]
    run("deface", version=2)  # decided
    assert images(tmp_path, "convert") == []


def test_images_of_a_study_that_failed_stay_for_the_next_try(run, tmp_path):
    def fail(study, scratch):
        if study.study_uid == UIDS[0]:
            raise ValueError
        return deface(study, scratch)

    run("convert")
    run("curate")
    run("deface", fail)
    assert images(tmp_path, "convert") == RAW[:1]


def test_a_finished_shard_has_nothing_to_do(run, tmp_path):
    whole_run(run)
    made = zips(tmp_path)

    def must_not_run(study, scratch):
        raise AssertionError(study.study_uid)

    for stage in NEEDS:
        records = run(stage, must_not_run)
        assert {r.outcome.state for r in records.values()} == {"accepted"}
    assert zips(tmp_path) == made


def test_all_is_kept_where_that_is_asked_for(run, tmp_path):
    for stage in NEEDS:
        run(stage, keep_intermediates=True)
    assert images(tmp_path, "convert") == RAW
    assert len(images(tmp_path, "deface")) == 6


def test_a_stage_done_again_has_its_images_back_and_lets_them_go_again(run, tmp_path):
    whole_run(run)
    before = zips(tmp_path)
    run("deface", partial(deface, suffix=" better"), version=2)  # raw images are gone by now
    run("register")
    run("package-native")
    assert zips(tmp_path) != before
    run("deface", version=3)
    run("register")
    run("package-native")
    assert zips(tmp_path) == before
    assert images(tmp_path, "convert") == []
    assert images(tmp_path, "deface") == WAITING


def test_zips_are_packed_again_from_themselves(run, tmp_path):
    whole_run(run)
    before = zips(tmp_path)
    run("package-native", version=2)
    assert zips(tmp_path) == before


def test_a_zip_is_enough_even_where_its_record_is_lost(run, tmp_path):
    whole_run(run)
    before = zips(tmp_path)
    WorkTree(tmp_path / "work").journal(BATCH, "package-native", SHARD).unlink()
    run("package-native")
    assert zips(tmp_path) == before


def test_without_its_zip_a_study_is_made_again_from_the_export(run, tmp_path):
    whole_run(run)
    before = zips(tmp_path)
    next((tmp_path / "release").rglob(f"{UIDS[0]}.zip")).unlink()
    run("deface")
    run("package-native")
    assert zips(tmp_path) == before


@pytest.mark.parametrize("change", ["gone", "other"])
def test_what_cannot_be_had_again_fails_its_study_alone(run, tmp_path, export, change):
    whole_run(run)
    if change == "gone":
        (export / UIDS[0]).unlink()
    else:
        (export / UIDS[0]).write_text("voxels of somebody else")
    records = run("deface", version=2)
    reasons = {uid: r.outcome.reason for uid, r in records.items()}
    assert reasons[UIDS[1]] == ""
    assert records[UIDS[0]].outcome.state == "failed"
    assert reasons[UIDS[0]] == "source_gone"
    assert not list((tmp_path / "work" / BATCH).rglob("*.part"))


def test_images_of_a_study_that_was_turned_down_go_as_well(run, tmp_path):
    def only_first(study, scratch):
        if study.study_uid != UIDS[0]:
            raise Rejected("no_center")
        return outcome()

    run("convert")
    run("curate", only_first)
    run("deface")
    assert images(tmp_path, "convert") == []
    run("convert")
    assert images(tmp_path, "convert") == []  # and are not missed


def test_nothing_is_removed_while_another_job_may_read_it(run, tmp_path):
    for stage in ("convert", "curate", "deface", "register"):
        run(stage)
    with Lease(WorkTree(tmp_path / "work").lease(BATCH, "register", SHARD)):
        run("package-native")
        assert len(images(tmp_path, "deface")) == 6
    run("package-native")
    assert images(tmp_path, "deface") == WAITING


def test_images_made_anew_stay_until_they_have_been_read(run, tmp_path):
    """The stages behind have manifests of the time before."""
    whole_run(run)
    for uid in UIDS:
        journal = Journal(WorkTree(tmp_path / "work").journal(BATCH, "convert", SHARD))
        journal.append("reopen", uid)
    run("convert")
    run("curate")
    assert images(tmp_path, "convert") == RAW
    run("deface")
    assert images(tmp_path, "convert") == []


#: Bytes a stage writes for a study: MR-RATE's 8.2, 17.6 and 12.3 TB, and raw images of which
#: some are turned down.
KB = {
    "convert": {"raw": 13},
    "deface": {"img/n": 8.2},
    "register": {"coreg/c": 17.6, "atlas/a": 12.3},
}
WHOLE_NEEDS = NEEDS | {
    "package-coreg": ("deface", "register"),
    "package-atlas": ("deface", "register"),
}


def test_a_batch_peaks_little_above_what_is_released(tmp_path):
    """The worst order: every shard ends a stage before the first begins the next."""
    work, release = WorkTree(tmp_path / "work"), ReleaseTree(tmp_path / "release", "X")
    shards = [f"shard{n:04d}" for n in range(10)]
    for shard in shards:
        plan = work.shard_plan(BATCH, shard)
        plan.parent.mkdir(parents=True, exist_ok=True)
        uids = [f"STUDY{shard}{n}" for n in range(4)]
        plan.write_text(json.dumps({"studies": [{"study_uid": u, "patient_uid": u} for u in uids]}))
    seen = []

    def look():
        paths = [p for p in tmp_path.rglob("*") if p.suffix in (".gz", ".zip", ".part")]
        seen.append(sum(p.stat().st_size for p in paths if p.is_file()))

    def write(study, scratch, stage):
        look()
        for name, kilobytes in KB.get(stage, {}).items():
            path = scratch / f"{name}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(int(1000 * kilobytes)))
        return outcome()

    def pack(study, scratch, stage):
        look()
        space = stage.removeprefix("package-")
        upstream = "deface" if space == "native" else "register"
        folder = study.folders[upstream]
        names = [str(p.relative_to(folder)) for p in folder.rglob("*.gz")]
        here = [n for n in names if place_in_zip(study.study_uid, n)[0] == space]
        path = release.zip(space, study.batch, study.study_uid)
        members = {place_in_zip(study.study_uid, n)[1]: folder / n for n in here}
        digests = write_zip(path, members)
        look()
        place = str(path.relative_to(release.repository(space)))
        facts = {"path": place, "bytes": path.stat().st_size, "sha256": "", "members": digests}
        return Outcome(zip=facts)

    for stage, needs in WHOLE_NEEDS.items():
        do = pack if stage.startswith("package-") else write
        for shard in shards:
            job = ShardJob(
                *(work, release, BATCH, shard, stage),
                params={},
                needs=needs,
                all_needs=WHOLE_NEEDS,
                make_again={"convert": write},
            )
            process_shard(job, partial(do, stage=stage))
    for stage in WHOLE_NEEDS:
        for shard in shards:
            for record in Journal(work.journal(BATCH, stage, shard)).records().values():
                assert "bring_back" not in record.usage["steps"]
    look()
    released = sum(p.stat().st_size for p in (tmp_path / "release").rglob("*.zip"))
    assert seen[-1] == released
    assert 1.1 * released < max(seen) <= 1.3 * released


def test_files_of_every_space_are_looked_for_where_the_package_stage_puts_them():
    uid = "STUDYA"
    assert place_in_zip(uid, layout.native_image(uid, "t1w-raw-sag")) == (
        "native",
        "STUDYA/img/STUDYA_t1w-raw-sag.nii.gz",
    )
    name = layout.coreg_image(uid, "t2w-raw-axi")
    assert place_in_zip(uid, f"coreg/{name}") == ("coreg", f"{uid}/{name}")
    name = layout.atlas_transform("t1w-raw-sag")
    assert place_in_zip(uid, f"atlas/{name}") == ("atlas", f"{uid}/{name}")
