"""Plans and journals of runs that never ran, with sizes and times as a test wants them."""

from mrmill.layout import WorkTree
from mrmill.records import Journal, Outcome, Record, manifest_of, write_json


def written(uid, n_bytes=0, names=("image",), wall_s=1.0, state="accepted", zipped=0):
    """A record of files that share some bytes evenly, and of a zip."""
    files = {name: {"sha256": "", "bytes": n_bytes / len(names)} for name in names if n_bytes}
    archive = {"path": f"{uid}.zip", "sha256": "", "bytes": zipped, "members": {}}
    outcome = Outcome(state, zip=archive if zipped else {})
    return Record(uid, "key", outcome, files, {"wall_s": wall_s, "cpu_s": wall_s})


def plan(work: WorkTree, series, batch="batch00"):
    """Plan shards: name -> series of each of its studies."""
    shards = {n: {"n_studies": len(s), "n_series": sum(s), "digest": n} for n, s in series.items()}
    batches = {batch: shards} if isinstance(batch, str) else batch
    write_json(work.shards, {"batches": batches})


def journal(work: WorkTree, stage, shard, records, batch="batch00", finished=True):
    """Write down what became of a shard in a stage."""
    path = Journal(work.journal(batch, stage, shard))
    for record in records:
        path.append("start", record.study_uid)
        path.write(record)
    if finished:
        write_json(work.manifest(batch, stage, shard), manifest_of(records))
