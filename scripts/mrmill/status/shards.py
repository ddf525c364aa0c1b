"""What is decided in one stage of one shard: its manifest, or its journal while there is none."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrmill import lease
from mrmill.layout import WorkTree
from mrmill.reasons import ACCEPTED, FAILED, REJECTED
from mrmill.records import Outcome, failures_of, read_signed


@dataclass(frozen=True)
class Failure:
    """A study or one of its series that failed.

    Attributes
    ----------
    series_key : str
        Empty when the study failed as a whole.
    error : str
        Class and code line of an unexpected error.
    log : str
        Log of the job, relative to the work tree; it has the traceback until the job runs again.
    reopened : bool
        Whether the next run works on it anyway, because its whole job failed.
    seen : float
        Unix time of the record, or of the manifest of a finished shard.
    """

    study_uid: str
    series_key: str
    batch: str
    stage: str
    shard: str
    reason: str
    error: str
    log: str
    reopened: bool
    seen: float

    def place(self) -> tuple[str, ...]:
        """Return what failures are ordered by in a table."""
        return self.batch, self.study_uid, self.stage, self.series_key, self.reason


@dataclass(frozen=True)
class ShardStatus:
    """One stage of one shard.

    Attributes
    ----------
    done : bool
        Whether there is a manifest.
    at_work : bool
        Whether a living job holds the shard.
    counts : mapping
        State -> studies.
    studies_running : int
        Studies in flight in that job.
    ended : tuple of (float, int)
        When studies were decided (unix time), and how many; a manifest gives one time for all.
    """

    done: bool
    at_work: bool
    counts: Mapping[str, int]
    studies_running: int
    ended: tuple[tuple[float, int], ...]
    failures: tuple[Failure, ...]

    @property
    def decided(self) -> int:
        """Studies with a verdict."""
        return sum(self.counts.values())

    @classmethod
    def open(cls) -> "ShardStatus":
        """Return the status of a shard that has not begun."""
        return cls(False, False, _counts(()), 0, (), ())


class ShardReader:
    """Reads shards; a manifest again only when it has changed, a journal from where it has grown.

    Parameters
    ----------
    work : WorkTree
        Of the run.
    """

    def __init__(self, work: WorkTree) -> None:
        self.work = work
        self._manifests: dict[Path, tuple[int, ShardStatus]] = {}
        self._journals: dict[Path, _OpenJournal] = {}

    def read(self, batch: str, stage: str, shard: str) -> ShardStatus:
        """Return how far a stage of a shard is."""
        path = self.work.manifest(batch, stage, shard)
        try:
            mtime_ns = path.stat().st_mtime_ns
            known = self._manifests.get(path)
            if known is None or known[0] != mtime_ns:
                status = self._finished(path, mtime_ns / 1e9, batch, stage, shard)
                known = self._manifests[path] = mtime_ns, status
            return known[1]
        except FileNotFoundError:
            return self._unfinished(batch, stage, shard)

    def _finished(
        self, path: Path, written: float, batch: str, stage: str, shard: str
    ) -> ShardStatus:
        studies = json.loads(path.read_bytes())["studies"]
        failed = {uid: s["failures"] for uid, s in studies.items() if "failures" in s}
        # whoever saw the studies come one by one keeps those times
        seen = self._journals.pop(self.work.journal(batch, stage, shard), None)
        if seen:
            seen.read_on()
        return ShardStatus(
            done=True,
            at_work=False,
            counts=_counts(study["state"] for study in studies.values()),
            studies_running=0,
            ended=(seen and seen.ended) or ((written, len(studies)),),
            failures=tuple(
                self._failure((batch, stage, shard), uid, failure, False, written)
                for uid, failures in failed.items()
                for failure in failures
            ),
        )

    def _unfinished(self, batch: str, stage: str, shard: str) -> ShardStatus:
        path = self.work.journal(batch, stage, shard)
        journal = self._journals.setdefault(path, _OpenJournal(path))
        journal.read_on()
        at_work = lease.is_alive(self.work.lease(batch, stage, shard))
        return ShardStatus(
            done=False,
            at_work=at_work,
            counts=_counts(study.state for study in journal.decided.values()),
            studies_running=len(journal.in_flight) if at_work else 0,
            ended=journal.ended,
            failures=tuple(
                self._failure((batch, stage, shard), uid, failure, reopened, study.ended)
                for reopened, studies in ((False, journal.decided), (True, journal.reopened))
                for uid, study in studies.items()
                for failure in study.failures
            ),
        )

    def _failure(
        self,
        where: tuple[str, str, str],
        uid: str,
        failure: Mapping[str, str],
        reopened: bool,
        seen: float,
    ) -> Failure:
        batch, stage, shard = where
        log = str(self.work.log(batch, stage, shard).relative_to(self.work.root))
        return Failure(
            uid, batch=batch, stage=stage, shard=shard, log=log, reopened=reopened, seen=seen,
            **failure,
        )  # fmt: skip


@dataclass(frozen=True)
class _Decided:
    """What a journal's last word about a study is."""

    state: str
    ended: float
    failures: tuple[dict[str, str], ...]


@dataclass
class _OpenJournal:
    """A journal that grows: read on from where the last look ended."""

    path: Path
    offset: int = 0
    decided: dict[str, _Decided] = field(default_factory=dict)
    reopened: dict[str, _Decided] = field(default_factory=dict)
    in_flight: set[str] = field(default_factory=set)

    @property
    def ended(self) -> tuple[tuple[float, int], ...]:
        """When the studies were decided."""
        return tuple((study.ended, 1) for study in self.decided.values())

    def read_on(self) -> None:
        """Read the lines that are new and complete."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self.offset:
                    self._start_over()
                file.seek(self.offset)
                new = file.read()
        except FileNotFoundError:
            self._start_over()
            return
        complete = new[: new.rfind(b"\n") + 1]
        self.offset += len(complete)
        for raw in complete.splitlines():
            if (line := read_signed(raw)) is not None:
                self._take(line)

    def _start_over(self) -> None:
        """Forget all: this is another file than the one that was read."""
        self.offset = 0
        for known in (self.decided, self.reopened, self.in_flight):
            known.clear()

    def _take(self, line: dict[str, Any]) -> None:
        uid = line["study_uid"]
        before = self.decided.get(uid)
        match line["event"]:
            case "start":
                self._forget(uid)
                self.in_flight.add(uid)
            case "record":
                self._forget(uid)
                outcome, ended = Outcome(**line["outcome"]), line["usage"].get("ended", 0.0)
                failures = tuple(failures_of(outcome))
                self.decided[uid] = _Decided(outcome.state, ended, failures)
            case "interrupted":
                self.in_flight.discard(uid)
            case "reopen":
                self._forget(uid)
                if before:
                    self.reopened[uid] = before

    def _forget(self, uid: str) -> None:
        self.decided.pop(uid, None)
        self.reopened.pop(uid, None)
        self.in_flight.discard(uid)


def _counts(states: Iterable[str]) -> dict[str, int]:
    counts = Counter(states)
    return {state: counts[state] for state in (ACCEPTED, REJECTED, FAILED)}
