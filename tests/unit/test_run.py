"""What a run does before Snakemake: no manifest may promise what is not there."""

import pytest

from mrmill.config import checked
from mrmill.layout import CATALOG_PARTS, ReleaseTree, WorkTree
from mrmill.lease import Lease, LeaseTaken
from mrmill.ledger import stages_of
from mrmill.records import Journal, Outcome, Record, manifest_of, sha256_of, write_json
from mrmill.run import alone, drop_hollow_manifests, reopen_failed


@pytest.fixture
def config(tmp_path):
    return checked({"deface": {"backend": "deepbet", "device": "cpu"}}, tmp_path)


@pytest.fixture
def work(config):
    """A planned shard with two studies done in two stages, and the tables written."""
    work = WorkTree(config.work)
    write_json(work.shards, {"batches": {"batch00": {"shard0000": {"n_studies": 2}}}})
    for stage in ("deface", "package-native"):
        records = []
        for uid in ("A", "B"):
            outcome, files = Outcome(), {}
            if stage == "deface":
                path = work.study("batch00", stage, uid) / "img.nii.gz"
                files = {"img.nii.gz": {"sha256": "x", "members": {}, "bytes": 3}}
            else:
                path = ReleaseTree(config.release, "MY-MRI").zip("native", "batch00", uid)
                name = f"mri/batch00/{uid}.zip"
                outcome.zip = {"path": name, "bytes": 3, "sha256": "x", "members": {}}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"abc")
            records.append(Record(uid, "key", outcome, files, {"wall_s": 1.0}))
            journal(work, stage).write(records[-1])
        write_json(work.manifest("batch00", stage, "shard0000"), manifest_of(records))
    return work


def journal(work, stage):
    return Journal(work.journal("batch00", stage, "shard0000"))


def left(work):
    """Stages whose manifest is still there."""
    return {path.parent.name for path in work.root.glob("batch00/*/shard0000.json")}


def test_manifests_of_whole_shards_stay(config, work):
    drop_hollow_manifests(config)
    assert left(work) == {"deface", "package-native"}


@pytest.mark.parametrize("spoil", ["remove", "cut"])
def test_a_missing_or_cut_study_file_drops_its_manifest(config, work, spoil):
    path = work.study("batch00", "deface", "B") / "img.nii.gz"
    path.unlink() if spoil == "remove" else path.write_bytes(b"a")
    drop_hollow_manifests(config)
    assert left(work) == {"package-native"}


def test_a_missing_zip_drops_its_manifest(config, work):
    next(config.release.rglob("B.zip")).unlink()
    drop_hollow_manifests(config)
    assert left(work) == {"deface"}


def test_a_lost_journal_drops_its_manifest(config, work):
    journal(work, "deface").path.unlink()
    drop_hollow_manifests(config)
    assert left(work) == {"package-native"}


@pytest.fixture
def tables(config, work):
    """The tables of a finished run by name, with their manifests and those of all stages."""
    release = ReleaseTree(config.release, "MY-MRI")
    tables = {name: work.part("batch00", name) for name in CATALOG_PARTS}
    tables |= {"metadata": release.metadata("batch00"), "twin": work.ledger}
    last = (release.splits, release.ledger, release.card, release.checksums("native"))
    tables |= {str(path.relative_to(release.root)): path for path in last}
    for path in tables.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    for stage in stages_of(config.spaces):
        if stage not in left(work):
            records = [Record(uid, "key", Outcome(), {}, {"wall_s": 1.0}) for uid in ("A", "B")]
            for record in records:
                journal(work, stage).write(record)
            write_json(work.manifest("batch00", stage, "shard0000"), manifest_of(records))
    digests = {name: sha256_of(path) for name, path in tables.items()}
    digests["splits"] = digests["splits.csv"]
    for path in (work.catalog("batch00"), work.root / "catalog.json"):
        write_json(path, {"digests": digests})
    return tables


def cataloged(work):
    """Whether the tables of the batch and those of the release still count as written."""
    return [path.exists() for path in (work.catalog("batch00"), work.root / "catalog.json")]


def test_tables_that_are_as_they_were_written_stay(config, work, tables):
    drop_hollow_manifests(config)
    assert cataloged(work) == [True, True]


@pytest.mark.parametrize("name", [*CATALOG_PARTS, "metadata"])
def test_without_a_table_of_a_batch_those_of_the_release_are_written_again_too(
    config, work, tables, name
):
    tables[name].unlink()
    drop_hollow_manifests(config)
    assert cataloged(work) == [False, False]


@pytest.mark.parametrize("name", ["twin", "MY-MRI/ledger.csv", "MY-MRI/README.md"])
def test_a_lost_table_of_the_release_is_written_again(config, work, tables, name):
    tables[name].unlink()
    drop_hollow_manifests(config)
    assert cataloged(work) == [True, False]


@pytest.mark.parametrize(
    ("name", "stay"), [("metadata", [False, False]), ("MY-MRI/ledger.csv", [True, False])]
)
def test_a_table_that_was_changed_is_written_again(config, work, tables, name, stay):
    tables[name].write_text("y")
    drop_hollow_manifests(config)
    assert cataloged(work) == stay


def test_after_a_job_that_failed_the_tables_do_not_count_as_written(config, work, tables):
    work.manifest("batch00", "curate", "shard0000").unlink()  # as Snakemake does
    drop_hollow_manifests(config)
    assert cataloged(work) == [False, False]


def test_a_manifest_without_a_planned_study_is_dropped(config, work, tables):
    write_json(work.manifest("batch00", "convert", "shard0000"), {"studies": {}})
    drop_hollow_manifests(config)
    assert "convert" not in left(work)


def test_what_was_found_whole_is_not_read_again(config, work, tables, monkeypatch):
    drop_hollow_manifests(config)

    def no_reading(*_):
        raise AssertionError("a journal was read")

    monkeypatch.setattr(Journal, "lines", no_reading)
    drop_hollow_manifests(config)
    assert cataloged(work) == [True, True]


def image_of(config, work):
    return work.study("batch00", "deface", "B") / "img.nii.gz"


def zip_of(config, work):
    return next(config.release.rglob("B.zip"))


def journal_of(config, work):
    return journal(work, "package-native").path


@pytest.mark.parametrize("spoil", ["remove", "cut"])
@pytest.mark.parametrize("place", [image_of, zip_of, journal_of])
def test_what_was_found_whole_and_changed_since_is_seen(config, work, tables, place, spoil):
    drop_hollow_manifests(config)
    path = place(config, work)
    path.unlink() if spoil == "remove" else path.write_bytes(path.read_bytes()[:-2])
    drop_hollow_manifests(config)
    spoilt = "deface" if place is image_of else "package-native"
    assert left(work) == set(stages_of(config.spaces)) - {spoilt}
    assert cataloged(work) == [False, False]


def test_other_settings_look_at_everything_again(config, work, tables):
    drop_hollow_manifests(config)
    drop_hollow_manifests(config.model_copy(update={"release": config.release / "other"}))
    assert "package-native" not in left(work)


def test_retry_opens_failed_studies_of_a_reason_and_their_shard(work):
    series = [{"series_key": "S", "state": "failed", "reason": "error"}]
    journal(work, "deface").write(Record("A", "key", Outcome("failed", "killed")))
    journal(work, "deface").write(Record("B", "key", Outcome(series=series)))
    assert reopen_failed(work, reason="killed") == 1
    assert set(journal(work, "deface").records()) == {"B"}
    assert left(work) == {"package-native"}
    assert reopen_failed(work) == 1
    assert journal(work, "deface").records() == {}


def test_the_work_tree_is_private_and_has_one_master(config):
    config.work.mkdir(mode=0o755)
    with alone(config):
        assert config.work.stat().st_mode & 0o777 == 0o700
        with pytest.raises(LeaseTaken):
            Lease(config.work / "run.lease").__enter__()
