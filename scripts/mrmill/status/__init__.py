"""How far a run is, from any machine that sees the work tree, during the run and after it.

Read from the plan, the manifests of finished shards, and the journals and leases of the others;
a journal that has a manifest is not opened.
"""

import csv
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mrmill.layout import WorkTree
from mrmill.lease import is_alive
from mrmill.profile.attempts import read_attempts
from mrmill.reasons import ACCEPTED, FAILED, REJECTED
from mrmill.stages import STAGES, STANDS_FOR
from mrmill.status.shards import Failure, ShardReader, ShardStatus
from mrmill.tables import appearing_whole

#: The pace is that of the studies decided in the last hour.
PACE_WINDOW_S = 3600.0

#: With fewer decided studies there is no pace yet.
LEAST_STUDIES = 5


@dataclass(frozen=True)
class StageStatus:
    """How far one stage is, in one batch or in all.

    Attributes
    ----------
    batch : str
        Empty for all batches together.
    shards_done, shards_running, shards : int
        Shards with a manifest, shards that a living job holds, and all.
    running : int
        Studies in flight in a living job.
    to_do : int
        Other studies that can still reach this stage and are not decided in it.
    per_hour : float or None
        Studies decided per hour, at the pace of the last hour; None while nothing runs or too
        few are decided.
    left_s : float or None
        Seconds until the stage is done at that pace; None where it is not known.
    """

    batch: str
    stage: str
    shards_done: int
    shards_running: int
    shards: int
    accepted: int
    rejected: int
    failed: int
    running: int
    to_do: int
    per_hour: float | None
    left_s: float | None

    @property
    def decided(self) -> int:
        """Studies that the stage has dealt with."""
        return self.accepted + self.rejected + self.failed

    @property
    def open(self) -> int:
        """Studies that the stage has yet to deal with."""
        return self.running + self.to_do


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes
    ----------
    running : bool
        Whether a run or any of its jobs is alive.
    stages : tuple of StageStatus
        Per batch and stage.
    totals : tuple of StageStatus
        Per stage, over all batches.
    left_s : float or None
        Seconds until the slowest stage is done; None while that is not known of every stage.
    failures : tuple of Failure
        The last ones first.
    """

    running: bool
    stages: tuple[StageStatus, ...]
    totals: tuple[StageStatus, ...]
    left_s: float | None
    failures: tuple[Failure, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for scripts."""
        return asdict(self)


@dataclass(frozen=True)
class _Cell:
    """One stage of one shard, and how many studies may still come to it."""

    found: ShardStatus
    waiting: int


class StatusReader:
    """Reads the status again and again; what has not changed in between is not read twice.

    Parameters
    ----------
    work : WorkTree
        Of the run.
    stages : sequence of str, optional
        Stages of the run in their order (`mrmill.ledger.stages_of`); without them, those that
        have begun in a batch.
    """

    def __init__(self, work: WorkTree, stages: Sequence[str] = ()) -> None:
        self.work, self.stages = work, list(stages)
        self._shards = ShardReader(work)

    def read(self, only_batch: str = "") -> Status:
        """Return how far all batches are, or one."""
        now = time.time()
        cells: dict[tuple[str, str], list[_Cell]] = {}
        for batch, shards in _planned(self.work).items():
            if only_batch in ("", batch):
                cells |= self._read_batch(batch, shards)
        found = [cell.found for per_stage in cells.values() for cell in per_stage]
        running = is_alive(self.work.run_lease) or any(shard.at_work for shard in found)
        clock = now if running else None
        rows = [_stage_status(*where, shards, clock) for where, shards in cells.items()]
        totals = _totals(cells, clock)
        failures = [failure for shard in found for failure in shard.failures]
        return Status(
            running=running,
            stages=tuple(rows),
            totals=tuple(totals),
            left_s=_longest(row.left_s for row in totals),
            failures=tuple(sorted(failures, key=lambda failure: -failure.seen)),
        )

    def _read_batch(self, batch: str, shards: dict[str, int]) -> dict[tuple[str, str], list[_Cell]]:
        """Return the shards of a batch in every stage."""
        begun = [s for s in STAGES if s not in STANDS_FOR and (self.work.root / batch / s).is_dir()]
        stages = self.stages or begun
        cells: dict[tuple[str, str], list[_Cell]] = {(batch, stage): [] for stage in stages}
        for shard, size in shards.items():
            passing: dict[str, int] = {}  # stage -> studies it has let through or may yet
            for stage in stages:
                found = (
                    self._shards.read(batch, stage, shard) if stage in begun else ShardStatus.open()
                )
                needed = [s for s in STAGES[stage].needs if s in stages]
                entering = passing[needed[-1]] if needed else size
                waiting = max(0, entering - found.decided - found.studies_running)
                passing[stage] = found.counts[ACCEPTED] + found.studies_running + waiting
                cells[batch, stage].append(_Cell(found, waiting))
        return cells


def read_status(work: WorkTree, stages: Sequence[str] = (), only_batch: str = "") -> Status:
    """Read once how far a run is; see `StatusReader`."""
    return StatusReader(work, stages).read(only_batch)


def write_failures(work: WorkTree, failures: Iterable[Failure]) -> None:
    """Write what failed as `failures.csv` into the work tree, whole or not at all."""
    columns = [name for name in Failure.__dataclass_fields__ if name != "seen"]
    with appearing_whole(work.failures, private=True) as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(map(asdict, sorted(failures, key=Failure.place)))


def _planned(work: WorkTree) -> dict[str, dict[str, int]]:
    """Return batch -> shard -> number of studies; nothing before the first plan."""
    if not work.shards.exists():
        return {}
    batches = json.loads(work.shards.read_text(encoding="utf-8"))["batches"]
    return {
        batch: {shard: facts["n_studies"] for shard, facts in shards.items()}
        for batch, shards in batches.items()
    }


def _totals(cells: dict[tuple[str, str], list[_Cell]], now: float | None) -> list[StageStatus]:
    """Add up the batches, stage by stage."""
    per_stage: dict[str, list[_Cell]] = {stage: [] for _, stage in cells}
    for (_, stage), shards in cells.items():
        per_stage[stage] += shards
    in_order = sorted(per_stage, key=list(STAGES).index)
    return [_stage_status("", stage, per_stage[stage], now) for stage in in_order]


def _stage_status(batch: str, stage: str, cells: Sequence[_Cell], now: float | None) -> StageStatus:
    """Add up shards; without the time, nothing runs and there is no pace."""
    found = [cell.found for cell in cells]
    running, to_do = sum(s.studies_running for s in found), sum(cell.waiting for cell in cells)
    per_hour = pace((moment for shard in found for moment in shard.ended), now) if now else None
    return StageStatus(
        batch=batch,
        stage=stage,
        shards_done=sum(shard.done for shard in found),
        shards_running=sum(shard.at_work for shard in found),
        shards=len(found),
        accepted=sum(shard.counts[ACCEPTED] for shard in found),
        rejected=sum(shard.counts[REJECTED] for shard in found),
        failed=sum(shard.counts[FAILED] for shard in found),
        running=running,
        to_do=to_do,
        per_hour=per_hour,
        left_s=time_left(running + to_do, per_hour),
    )


def pace(ended: Iterable[tuple[float, int]], now: float) -> float | None:
    """Return studies per hour, from when how many were decided.

    Counted from the first moment in the window on, not with it: how long its studies had taken
    is not known.

    Parameters
    ----------
    ended : iterable of (float, int)
        Unix time and number of studies; a finished shard is one moment of many studies.

    Examples
    --------
    >>> pace([(0, 1), (60, 2), (120, 3), (180, 2)], now=210)
    120.0
    >>> pace([(0, 48)], now=60)  # how long did the first shard take?
    """
    recent = sorted((t, n) for t, n in ended if now - PACE_WINDOW_S <= t < now)
    studies = sum(n for _, n in recent[1:])
    if studies < LEAST_STUDIES:
        return None
    return studies / (now - recent[0][0]) * 3600


def time_left(studies: int, per_hour: float | None) -> float | None:
    """Return the seconds that studies will take; None where the pace is not known."""
    if not studies:
        return 0.0
    return studies / per_hour * 3600 if per_hour else None


def _longest(times: Iterable[float | None]) -> float | None:
    """Return the longest time, or None if any is unknown."""
    known = list(times)
    return None if None in known else max(known, default=None)


def stage_seconds(work: WorkTree) -> dict[str, float]:
    """Return, per stage, the CPU seconds of all attempts of its jobs."""
    seconds = dict.fromkeys(STAGES, 0.0)
    for attempt in read_attempts(work):
        seconds[attempt["stage"]] = seconds.get(attempt["stage"], 0.0) + attempt["cpu_s"]
    return {stage: round(total, 3) for stage, total in seconds.items() if total}
