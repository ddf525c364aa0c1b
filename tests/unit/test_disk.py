"""What a run takes on disk, held against trees that are measured and states that are tried out."""

import itertools
import os
import random
import shutil
from pathlib import Path

import pytest
from handmade_run import journal, plan, written
from tiny_dicom import REPORT, write_dicom, write_study

from mrmill import disk
from mrmill.check import check
from mrmill.config import checked
from mrmill.disk import (
    Amount,
    Trees,
    disk_needs,
    free_space,
    images_of,
    look_at_export,
    size_of,
    text_of_bytes,
)
from mrmill.layout import WorkTree
from mrmill.plan import make_plan
from mrmill.plan.identity import new_key
from mrmill.records import Outcome, Record
from mrmill.shards import checksums

STAGES = ("convert", "curate", "deface", "register")
PACKAGES = ("package-native", "package-coreg", "package-atlas")


def settings(folder, kind="dicom", **more):
    deface = {"backend": "deepbet", "device": "cpu"}
    given = {"input": {"kind": kind, "path": "export"}, "deface": deface, **more}
    return checked(given, folder)


def fill(folder, name, n_bytes):
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(n_bytes))


# -- sizes of studies ------------------------------------------------------------------------------


def test_the_size_of_a_study_is_that_of_its_folder(tmp_path):
    for name, n_bytes in {"img/a.nii.gz": 30, "img/b.nii.gz": 40, "seg/deep/c.nii.gz": 5}.items():
        fill(tmp_path / "STUDY", name, n_bytes)
    record = Record("STUDY", "key", Outcome(), checksums(tmp_path / "STUDY"))
    on_disk = [tmp_path / "STUDY", *(tmp_path / "STUDY").rglob("*")]
    assert size_of(record) == Amount(75, len(on_disk))


def test_a_zip_is_one_file_and_a_study_without_files_takes_nothing():
    assert size_of(written("STUDY", zipped=9)) == Amount(9, 1)
    assert size_of(written("STUDY", state="rejected")) == Amount(0, 0)


# -- the most that lies on the disks at a time -----------------------------------------------------

SIZES = {
    "convert": Amount(50, 3),
    "deface": Amount(40, 7),
    "register": Amount(200, 9),
    "package-native": Amount(38, 1),
    "package-coreg": Amount(80, 1),
    "package-atlas": Amount(130, 1),
}


def states(keep):
    """What work and release hold of one shard: at rest, and on the way to the next place."""
    raw, native, derived, zips = 50, 40, 200, 248
    held_back = 2  # 40 of defaced files, 38 of them in the zip
    if keep:
        rest = [0, 50, 90, 290, 290 + zips]
        way = [50, 90, 290 + zips, 290 + zips, 290 + zips]
    else:
        rest = [0, raw, native, native + derived, held_back + zips]
        way = [raw, raw + native, native + derived + zips, native + derived + zips, 250]
    return rest, way


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("at_once", [1, 2, 4])
@pytest.mark.parametrize("start", [(0, 0, 0, 0), (0, 1, 2, 3), (3, 3, 3, 3), (4, 4, 4, 0)])
def test_no_state_of_a_run_takes_more_than_foretold_and_one_takes_as_much(keep, at_once, start):
    rest, way = states(keep)
    seen = []
    for places in itertools.product(range(5), repeat=len(start)):
        moved_back = any(a < b for a, b in zip(places, start, strict=True))
        waits_registered = any(a == 3 > b for a, b in zip(places, start, strict=True))
        for busy in itertools.combinations(range(len(start)), at_once):
            if not moved_back and not waits_registered:
                seen.append(sum((way if i in busy else rest)[p] for i, p in enumerate(places)))
    now = sum(rest[place] for place in start)
    trees = Trees.of(SIZES, keep)
    found = trees.growth("together", [start.count(place) for place in range(5)], at_once)
    assert found.n_bytes == pytest.approx(max(0, max(seen) - now))


def test_a_single_shard_stands_twice_while_it_is_zipped():
    trees = Trees.of(SIZES, keep=False)
    assert trees.growth("together", (1, 0, 0, 0, 0), 1) == Amount(40 + 200 + 248, 7 + 9 + 3)
    assert trees.growth("work", (1, 0, 0, 0, 0), 1) == Amount(40 + 200, 7 + 9)
    assert trees.growth("release", (1, 0, 0, 0, 0), 1) == Amount(248, 3)


def test_without_native_zips_defaced_images_stay():
    sizes = {stage: amount for stage, amount in SIZES.items() if stage != "package-native"}
    assert Trees.of(sizes, keep=False).work[-1] == SIZES["deface"]
    del sizes["convert"]  # taken from a release: they can be had again
    assert Trees.of(sizes, keep=False).work[-1] == Amount(0, 0)


# -- what is known of the images -------------------------------------------------------------------


def test_a_small_export_is_looked_at_as_a_whole(tmp_path):
    for number in range(3):
        fill(tmp_path / "export" / f"p{number}" / "s1", "a.dcm", 1000)
        fill(tmp_path / "export" / f"p{number}" / "s2", "a.dcm", 500)
    found = look_at_export(settings(tmp_path))
    assert (found.n_bytes, found.series) == (4500, 6)


def test_a_large_export_is_judged_by_some_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "LOOK_FOLDERS", 20)
    monkeypatch.setattr(disk, "LOOK_FILES", 300)
    rng, truth = random.Random(1), 0
    for patient in range(300):
        for image in range(rng.randint(2, 6)):
            n_bytes = rng.randint(500, 1500)
            fill(tmp_path / "export" / f"p{patient}" / "s", f"{image}.dcm", n_bytes)
            truth += n_bytes
    found = look_at_export(settings(tmp_path))
    assert found.n_bytes == pytest.approx(truth, rel=0.15)
    assert found.series == pytest.approx(300, rel=0.01)


def test_of_a_folder_with_many_files_some_are_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "LOOK_FILES_PER_FOLDER", 50)
    for image in range(500):
        fill(tmp_path / "export", f"{image}.dcm", 100)
    assert look_at_export(settings(tmp_path)).n_bytes == 50_000


def test_compressed_nifti_counts_double_and_sidecars_are_no_images(tmp_path):
    fill(tmp_path / "export", "sub-1/a.nii.gz", 1000)
    fill(tmp_path / "export", "sub-1/a.json", 1000)
    fill(tmp_path / "export", "sub-1/b.nii", 300)
    found = look_at_export(settings(tmp_path, kind="nifti"))
    assert (found.n_bytes, found.series) == (2300, 2)


def test_an_export_may_be_a_table_of_folders(tmp_path):
    fill(tmp_path / "a", "1.dcm", 100)
    fill(tmp_path / "b", "1.dcm", 10)
    (tmp_path / "folders.csv").write_text("FolderPath\na\n")
    config = settings(tmp_path)
    config = config.model_copy(
        update={"input": config.input.model_copy(update={"path": tmp_path / "folders.csv"})}
    )
    assert look_at_export(config).n_bytes == 100


def test_after_planning_the_index_tells_the_size_of_images(tmp_path):
    new_key(tmp_path / "pseudonym.key")
    write_study(tmp_path / "export" / "1", "1.1", "P1", n_series=2, n_files=3)
    config = settings(tmp_path)
    make_plan(config)
    truth = sum(path.stat().st_size for path in (tmp_path / "export").rglob("*.dcm"))
    fill(tmp_path / "export", "notes.txt", 100_000)  # later, and no image
    found = images_of(config)
    assert (found.n_bytes, found.studies, found.series) == (pytest.approx(truth), 1, 2)


def test_reports_are_no_images(tmp_path):
    new_key(tmp_path / "pseudonym.key")
    write_study(tmp_path / "export" / "1", "1.1", "P1", n_series=1, n_files=3)
    truth = sum(path.stat().st_size for path in (tmp_path / "export").rglob("*.dcm"))
    report = {"SOPClassUID": REPORT, "ImageComments": "x" * 9000}
    write_dicom(tmp_path / "export" / "r.dcm", "1.1", "1.1.9", "1.1.9.1", "P1", **report)
    config = settings(tmp_path)
    make_plan(config)
    assert images_of(config).n_bytes == pytest.approx(truth)


# -- what is left ----------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Two shards of two studies with three series each; so few are many here."""
    monkeypatch.setattr(disk, "OWN_STUDIES", 2)
    fill(tmp_path / "export" / "p" / "s", "a.dcm", 12_000)
    tree = WorkTree(tmp_path / "work")
    plan(tree, {"shard0000": (3, 3), "shard0001": (3, 3)})
    return tree


def finish(work, shard, stages=STAGES + PACKAGES, uids="AB"):
    """Write down a shard: 600 bytes a study converted, 300 defaced, 1,200 registered."""
    n_bytes = {"convert": 600, "deface": 300, "register": 1200}
    for stage in stages:
        zipped = 700 if stage in PACKAGES else 0
        records = [written(uid, n_bytes.get(stage, 0), zipped=zipped) for uid in uids]
        journal(work, stage, shard, records)


def test_before_anything_ran_usual_sizes_are_taken(tmp_path, work):
    needs = disk_needs(settings(tmp_path))
    assert needs.stages["convert"].n_bytes == pytest.approx(0.5 * 12_000)
    # 12 series, 0.6 of them accepted, at 12.3 TB of 705,254
    assert needs.stages["package-atlas"].n_bytes == pytest.approx(12 * 0.6 * 17.44e6, rel=1e-3)
    assert needs.tolerance == 0.5


def test_finished_studies_tell_what_the_others_take(tmp_path, work):
    finish(work, "shard0000")
    needs = disk_needs(settings(tmp_path))
    bytes_left = {stage: amount.n_bytes for stage, amount in needs.stages.items()}
    assert bytes_left.pop("bookkeeping") == pytest.approx(6 * 30_000)
    assert bytes_left == pytest.approx(
        {"convert": 1200, "curate": 0, "deface": 600, "register": 2400}
        | dict.fromkeys(PACKAGES, 1400)
    )
    assert needs.release == Amount(3 * 1400, 6)
    assert needs.together.n_bytes == pytest.approx(600 + 2400 + 3 * 1400 + 6 * 30_000)
    # a manifest, a journal, a log and two more for each of seven jobs; tables and folders
    assert needs.stages["bookkeeping"].inodes == 7 * 5 + 100
    assert needs.tolerance == 0.25


def test_few_finished_studies_do_not_stand_for_all(tmp_path, work, monkeypatch):
    monkeypatch.setattr(disk, "OWN_STUDIES", 3)
    finish(work, "shard0000")
    needs = disk_needs(settings(tmp_path))
    assert needs.stages["convert"].n_bytes == pytest.approx(0.5 * 12_000 / 2)
    assert needs.tolerance == 0.5


def test_larger_shards_are_taken_to_need_more(tmp_path, work):
    plan(work, {"shard0000": (3, 3), "shard0001": (9, 3)})
    finish(work, "shard0000")
    assert disk_needs(settings(tmp_path)).stages["convert"].n_bytes == pytest.approx(2 * 1200)


def test_nothing_is_needed_once_all_is_done(tmp_path, work):
    finish(work, "shard0000")
    finish(work, "shard0001", uids="CD")
    needs = disk_needs(settings(tmp_path))
    assert (needs.work, needs.release, needs.together) == (Amount(),) * 3


def test_zips_that_are_there_are_not_needed_again(tmp_path, work):
    finish(work, "shard0000")
    finish(work, "shard0001", (*STAGES, "package-native"), uids="CD")
    needs = disk_needs(settings(tmp_path))
    assert needs.release.n_bytes == pytest.approx(2 * 1400)
    # its 3,000 bytes of images are there as well, and leave when the zips are
    assert needs.together.n_bytes == pytest.approx(2 * 1400 + 6 * 30_000)


def test_a_batch_after_the_other_needs_less_work(tmp_path, work):
    finish(work, "shard0000")
    alone = disk_needs(settings(tmp_path)).work
    shard = {"n_studies": 2, "n_series": 6}
    done = {"shard0000": shard}
    waiting = {f"shard{number:04}": shard for number in range(10)}
    plan(work, {}, batch={"batch00": done, "batch01": waiting, "batch02": waiting})
    needs = disk_needs(settings(tmp_path))
    assert needs.work_of_a_batch.n_bytes < needs.work.n_bytes
    assert needs.work_of_a_batch.n_bytes > alone.n_bytes


def test_without_atlas_space_nothing_is_counted_for_it(tmp_path, work):
    needs = disk_needs(settings(tmp_path, spaces=["native"]))
    assert needs.stages.keys() == {"convert", "curate", "deface", "package-native", "bookkeeping"}


def test_a_release_needs_no_conversion(tmp_path, work):
    fill(tmp_path / "export" / "mri" / "batch00", "A.zip", 5000)
    needs = disk_needs(settings(tmp_path, kind="release", spaces=["coreg"]))
    assert needs.stages["deface"].n_bytes == pytest.approx(5000)
    assert needs.stages["package-coreg"].n_bytes == pytest.approx(5000 * 17.6 / 8.2)
    assert "convert" not in needs.stages


# -- what check says -------------------------------------------------------------------------------


def test_free_space_is_what_the_system_says(tmp_path):
    found = free_space(tmp_path)
    assert found.n_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.01)
    assert found.inodes > 0


def test_a_file_system_without_a_number_of_inodes_never_lacks_them(tmp_path, monkeypatch):
    class Btrfs:
        f_bavail, f_frsize, f_files, f_favail = 10, 100, 0, 0

    monkeypatch.setattr(os, "statvfs", lambda _: Btrfs)
    assert Amount(1000, 1e9).fits(free_space(tmp_path))


def said(config, words):
    return [(f.level, f"{f.what}. {f.advice}") for f in check(config) if words in f.what]


@pytest.fixture
def pilot(tmp_path, work):
    """A run of which one shard of two is done: 7,200 bytes and the bookkeeping are needed."""
    finish(work, "shard0000")
    new_key(tmp_path / "pseudonym.key")
    return settings(tmp_path)


def give(monkeypatch, n_bytes, inodes=1e6):
    monkeypatch.setattr("mrmill.check.free_space", lambda _: Amount(n_bytes, inodes))


@pytest.mark.parametrize(
    ("share", "level"), [(1.01, "ok"), (0.99, "warning"), (0.76, "warning"), (0.74, "problem")]
)
def test_what_cannot_fit_is_refused(pilot, monkeypatch, share, level):
    give(monkeypatch, share * (7200 + 6 * 30_000))
    assert [found for found, _ in said(pilot, "needed at most")] == [level]


def test_inodes_are_counted_too(pilot, monkeypatch):
    give(monkeypatch, 1e9, inodes=5)
    assert [found for found, _ in said(pilot, "needed at most")] == ["problem"]


def test_two_disks_are_looked_at_by_themselves(pilot, monkeypatch):
    monkeypatch.setattr("mrmill.check.disk_of", lambda path: path.name)
    pilot.release.mkdir()
    give(monkeypatch, 4201)  # room for the zips only
    findings = dict(said(pilot, "needed at most"))
    assert findings.keys() == {"ok", "problem"}
    assert "release" in findings["ok"]
    assert "work" in findings["problem"]


def test_every_stage_is_printed_with_bytes_and_inodes(pilot, work):
    ((_, text),) = said(pilot, "still to be written")
    rows = [line.split() for line in text.splitlines()[1:]]
    assert ["register", "0.00", "GB", "4", "inodes"] in rows
    assert len(rows) == 7  # curate writes nothing but its journal


def test_a_folder_that_cannot_be_written_is_a_problem(pilot, monkeypatch):
    pilot.release.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != pilot.release)
    assert [found for found, _ in said(pilot, "cannot be written")] == ["problem"]


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0.00 GB"), (12_345_678_901, "12.3 GB"), (123.4e9, "123 GB"), (4.25e13, "42.5 TB")],
)
def test_bytes_are_written_for_people(n_bytes, text):
    assert text_of_bytes(n_bytes) == text
