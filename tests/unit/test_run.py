"""What a run does before Snakemake: no manifest may promise what is not there."""

import pytest

from mrmill.config import checked
from mrmill.layout import CATALOG_PARTS, ReleaseTree, WorkTree
from mrmill.lease import Lease, LeaseTaken
from mrmill.records import Journal, Outcome, Record, manifest_of, write_json
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
                files = {"img.nii.gz": {"sha256": "x", "bytes": 3}}
            else:
                path = ReleaseTree(config.release, "MY-MRI").zip("native", "batch00", uid)
                outcome.zip = {"path": f"mri/batch00/{uid}.zip", "bytes": 3, "sha256": "x"}
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


@pytest.mark.parametrize(
    "lost",
    [
        (lambda _, release: release.metadata("batch00"), lambda _, release: release.ledger),
        (lambda work, _: work.part("batch00", "ledger.csv"), lambda work, _: work.ledger),
    ],
)
def test_a_lost_table_is_written_again(config, work, lost):
    release = ReleaseTree(config.release, "MY-MRI")
    tables = [release.metadata("batch00"), release.splits, release.ledger, release.card]
    parts = [work.part("batch00", name) for name in CATALOG_PARTS]
    for path in (*tables, *parts, release.checksums("native"), work.ledger):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    manifests = [work.root / "batch00" / "catalog.json", work.root / "catalog.json"]
    for path in manifests:
        path.write_text("{}")
    drop_hollow_manifests(config)
    assert [path.exists() for path in manifests] == [True, True]
    lost[0](work, release).unlink()
    lost[1](work, release).unlink()
    drop_hollow_manifests(config)
    assert [path.exists() for path in manifests] == [False, False]


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
