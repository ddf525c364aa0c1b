"""How far a run is, and what came of it: read from the plan, manifests and records alone.

Works from any machine that sees the work tree, during the run and after it.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrmill.layout import ReleaseTree, WorkTree
from mrmill.reasons import ACCEPTED, FAILED, REJECTED
from mrmill.records import Journal
from mrmill.stages import STAGES, STANDS_FOR

if TYPE_CHECKING:
    from rich.table import Table

#: How many failures are shown, the last ones first.
SHOWN_FAILURES = 10


@dataclass(frozen=True)
class StageStatus:
    """How far one stage of one batch is, in shards and studies.

    Attributes
    ----------
    to_do : int
        Studies that can still reach this stage and are not decided in it.
    """

    batch: str
    stage: str
    shards_done: int
    shards: int
    accepted: int
    rejected: int
    failed: int
    to_do: int


@dataclass(frozen=True)
class Failure:
    """A study that failed as a whole, and the class and code line of its error."""

    study_uid: str
    batch: str
    shard: str
    stage: str
    error: str


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    stages: tuple[StageStatus, ...]
    failures: tuple[Failure, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for scripts."""
        return asdict(self)


@dataclass(frozen=True)
class _ShardStage:
    """What is decided in one stage of one shard."""

    path: Path  # the manifest, or the journal while there is none
    done: bool
    studies: Mapping[str, Mapping[str, str]]

    def count(self, state: str) -> int:
        return sum(study["state"] == state for study in self.studies.values())


def read_status(work: WorkTree, only_batch: str = "") -> Status:
    """Read how far every stage is that has begun, in all batches or in one."""
    stages: list[StageStatus] = []
    failed: list[tuple[int, Failure]] = []
    for batch, shards in _planned(work).items():
        if only_batch not in ("", batch):
            continue
        begun = [s for s in STAGES if s not in STANDS_FOR and (work.root / batch / s).is_dir()]
        per_stage: dict[str, list[tuple[_ShardStage, int]]] = {stage: [] for stage in begun}
        for shard, size in shards.items():
            left: dict[str, int] = {}  # stage -> studies it may still hand on, accepted or to do
            for stage in begun:
                found = _read(work, batch, stage, shard)
                needed = [s for s in STAGES[stage].needs if s in begun]
                entering = left[needed[-1]] if needed else size
                to_do = max(0, entering - len(found.studies))
                left[stage] = found.count(ACCEPTED) + to_do
                per_stage[stage].append((found, to_do))
                failed += _failures(found, batch, shard, stage)
        stages += [_stage_status(batch, stage, per_stage[stage]) for stage in begun]
    failed.sort(key=lambda timed: -timed[0])
    return Status(tuple(stages), tuple(_with_error(work, f) for _, f in failed[:SHOWN_FAILURES]))


def _planned(work: WorkTree) -> dict[str, dict[str, int]]:
    """Return batch -> shard -> number of studies; nothing before the first plan."""
    if not work.shards.exists():
        return {}
    batches = json.loads(work.shards.read_text(encoding="utf-8"))["batches"]
    return {
        batch: {shard: facts["n_studies"] for shard, facts in shards.items()}
        for batch, shards in batches.items()
    }


def _read(work: WorkTree, batch: str, stage: str, shard: str) -> _ShardStage:
    """Read the manifest; only while there is none, the journal."""
    manifest, journal = work.manifest(batch, stage, shard), work.journal(batch, stage, shard)
    try:
        return _ShardStage(manifest, True, _studies_of(manifest, manifest.stat().st_mtime_ns))
    except FileNotFoundError:
        records = Journal(journal).records().values()
        outcomes = {record.study_uid: record.outcome for record in records}
        decided = {u: {"state": o.state, "reason": o.reason} for u, o in outcomes.items()}
        return _ShardStage(journal, False, decided)


@lru_cache(maxsize=100_000)
def _studies_of(manifest: Path, mtime_ns: int) -> dict[str, dict[str, str]]:
    """Read a manifest; a live view asks every second, and few change in between."""
    return json.loads(manifest.read_text(encoding="utf-8"))["studies"]


def _stage_status(batch: str, stage: str, found: list[tuple[_ShardStage, int]]) -> StageStatus:
    return StageStatus(
        batch=batch,
        stage=stage,
        shards_done=sum(shard.done for shard, _ in found),
        shards=len(found),
        accepted=sum(shard.count(ACCEPTED) for shard, _ in found),
        rejected=sum(shard.count(REJECTED) for shard, _ in found),
        failed=sum(shard.count(FAILED) for shard, _ in found),
        to_do=sum(to_do for _, to_do in found),
    )


def _failures(
    found: _ShardStage, batch: str, shard: str, stage: str
) -> Iterable[tuple[int, Failure]]:
    """Yield the failed studies of a shard with the time of the file that says so."""
    if FAILED not in {study["state"] for study in found.studies.values()}:
        return
    mtime_ns = found.path.stat().st_mtime_ns
    for uid, study in found.studies.items():
        if study["state"] == FAILED:
            yield mtime_ns, Failure(uid, batch, shard, stage, study["reason"])


def _with_error(work: WorkTree, failure: Failure) -> Failure:
    """Look up the error of a failure that is shown: manifests give no more than its reason code."""
    journal = Journal(work.journal(failure.batch, failure.stage, failure.shard))
    record = journal.records().get(failure.study_uid)
    error = record.outcome.error if record else ""
    return Failure(**{**asdict(failure), "error": error or failure.error})


def status_table(status: Status) -> "Table":
    """Return the status as a table for the terminal; its caption lists the last failures."""
    from rich.markup import escape
    from rich.table import Table

    failures = [f"{f.study_uid}  {f.stage}  {f.error}" for f in status.failures]
    table = Table(
        title=None if status.stages else "nothing has begun yet",
        caption=escape("\n".join(["last failures:", *failures])) if failures else None,
        caption_justify="left",
    )
    table.add_column("batch")
    table.add_column("stage")
    for name in ("shards", "accepted", "rejected", "failed", "to do"):
        table.add_column(name, justify="right")
    previous = ""
    for row in status.stages:
        counts = (row.accepted, row.rejected, row.failed, row.to_do)
        style = "red" if row.failed else "green" if row.shards_done == row.shards else None
        table.add_row(
            row.batch if row.batch != previous else "",
            row.stage,
            f"{row.shards_done}/{row.shards}",
            *(f"{number:,}" for number in counts),
            style=style,
        )
        previous = row.batch
    return table


def stage_seconds(work: WorkTree) -> dict[str, float]:
    """Return, per stage, the seconds its studies took, all workers added up."""
    seconds: Counter[str] = Counter()
    for batch, shards in _planned(work).items():
        for stage in STAGES:
            for shard in shards:
                records = Journal(work.journal(batch, stage, shard)).records()
                seconds[stage] += sum(r.usage.get("wall_s", 0) for r in records.values())
    return {stage: round(total, 3) for stage, total in seconds.items() if total}


def finished_run(work: WorkTree, release: ReleaseTree) -> dict[str, Any]:
    """Sum up a finished run.

    Returns
    -------
    summary : dict
        What `ledger.summary` says, the `release` folder, and `seconds` per stage.
    """
    from mrmill.catalog import read_table
    from mrmill.ledger import summary

    counts = summary(read_table(release.ledger))
    return {**counts, "release": str(release.root), "seconds": stage_seconds(work)}


def summary_text(work: WorkTree, release: ReleaseTree) -> str:
    """Return the closing words of a run: what became of everything, how long, where to look."""
    found = finished_run(work, release)
    lines = ["", _row("", "seen", "accepted", "rejected", "failed")]
    for kind in ("studies", "series"):
        lines.append(_row(kind, *(found[kind][s] for s in ("seen", ACCEPTED, REJECTED, FAILED))))
    for state, codes in found["reasons"].items():
        lines += ["", f"{state} series, by reason"] if codes else []
        lines += [f"  {number:6,}  {code}" for code, number in sorted(codes.items(), key=_most)]
    lines += ["", "time in each stage, all workers added up"]
    lines += [f"  {seconds:8,.1f} s  {stage}" for stage, seconds in found["seconds"].items()]
    lines += ["", f"release  {found['release']}", f"  start at {release.card}"]
    lines.append(f"  why a series is not in it: {release.ledger}")
    lines.append(f"  check it with: mrmill verify {found['release']}")
    if codes := ", ".join(found["waiting"]):
        lines.append(f"  some wait for a person's look ({codes}): docs/first-run.md says how")
    if found["series"][FAILED]:
        lines.append("  some failed: mend the cause, then `mrmill retry` and `mrmill run`")
    return "\n".join(lines)


def _row(name: str, *values: str | int) -> str:
    cells = (f"{value:,}" if isinstance(value, int) else value for value in values)
    return f"{name:8}" + "".join(f"{text:>10}" for text in cells)


def _most(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
