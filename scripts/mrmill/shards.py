"""The study engine: one implementation of resume, isolation and accounting for every stage.

A shard job takes the studies that the stages before it accepted, skips those whose record still
holds, and gives the others to the stage's function one by one. A study's files appear together,
by one rename, and its record is written after them: the record is the only mark of "done".
"""

import ctypes
import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from uuid import uuid4

from mrmill.errors import UserError, error_location
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.lease import Lease, LeaseTaken
from mrmill.logs import collected, write_collected
from mrmill.profile import attempts
from mrmill.profile.steps import cpu_seconds, peak_mb, step, take_steps
from mrmill.reasons import ACCEPTED, FAILED, REJECTED, Rejected
from mrmill.records import Journal, Outcome, Record, StudyHistory, digest, manifest_of, write_json
from mrmill.scratch import job_scratch
from mrmill.spent import PACKAGE, ShardFiles, SourceGone, take_over
from mrmill.stamps import without_stamps

log = logging.getLogger(__name__)

#: What the plan says about a study's dates; only curate, which writes the tables' rows, reads it.
DATES = ("StudyDate", "date_shift_days", "anon_study_date")

#: A study in flight at this many deaths of its worker is recorded failed (`killed`).
MAX_DEATHS = 2

#: Errors of the machine, not of a study: the job stops and a later one resumes.
MACHINE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE),
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN),
}

#: How long a job waits for another that still works on the same shard (it is nearly done, or
#: its machine is gone and its lease will be silent by then).
LEASE_WAIT_S = 600.0


class ShardFailed(UserError):
    """Too many studies of a shard failed: a broken machine rather than bad data."""


@dataclass(frozen=True)
class Study:
    """What a stage function is given about one study.

    Attributes
    ----------
    plan : dict
        The study's entry in its shard's plan (identified: never leaves the work tree).
    upstream : dict
        Stage name -> the record of this study in that stage.
    folders : dict
        Stage name -> folder of the files that stage made for this study.
    """

    study_uid: str
    patient_uid: str
    batch: str
    plan: dict[str, Any] = field(default_factory=dict)
    upstream: dict[str, Record] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardJob:
    """One stage of one shard.

    Attributes
    ----------
    params : dict
        Everything the result depends on besides the study itself: the stage's version and
        settings (`mrmill.stages.stage_params`).
    needs : tuple of str
        Stages whose accepted studies and files this one reads; none for the first stage.
    per_study : dict
        study_uid -> what the result depends on for that study alone.
    workers : int
        Processes; with 1 the stage function runs in this process.
    max_failed_fraction : float
        More failed studies than this share, and more than one, fail the job.
    asked : dict
        What the scheduler was asked for (`profile.attempts.asked_of`); for the profile only.
    all_needs : dict
        Stage -> stages it needs, for every stage of the run; with none, no file is removed.
    make_again : dict
        Stage -> its stage function, for those whose files are removed once used and, should
        they be needed after all, made again from the input.
    keep_intermediates : bool
        Remove nothing.
    """

    work: WorkTree
    release: ReleaseTree
    batch: str
    shard: str
    stage: str
    params: dict[str, Any]
    needs: tuple[str, ...] = ()
    per_study: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    max_failed_fraction: float = 0.1
    asked: Mapping[str, Any] = field(default_factory=dict)
    all_needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    make_again: Mapping[str, "StageFunction"] = field(default_factory=dict)
    keep_intermediates: bool = False

    @property
    def journal(self) -> Journal:
        """Records of this shard and stage."""
        return Journal(self.work.journal(self.batch, self.stage, self.shard))

    @property
    def files(self) -> ShardFiles:
        """Files of this shard, as they are now."""
        again = frozenset(self.make_again)
        return ShardFiles(self.work, self.release, self.batch, self.shard, self.all_needs, again)

    def planned(self) -> list[dict[str, Any]]:
        """Return the plan's entries of this shard."""
        return json.loads(self.work.shard_plan(self.batch, self.shard).read_text("utf-8"))[
            "studies"
        ]

    def studies(self) -> dict[str, Study]:
        """Return the studies to work on: planned, and accepted by every stage needed."""
        upstream = {
            stage: Journal(self.work.journal(self.batch, stage, self.shard)).records()
            for stage in self.needs
        }
        return {
            entry["study_uid"]: Study(
                study_uid=(uid := entry["study_uid"]),
                patient_uid=entry["patient_uid"],
                batch=self.batch,
                plan=entry,
                upstream={stage: records[uid] for stage, records in upstream.items()},
                folders={s: self.work.study(self.batch, s, uid) for s in self.needs},
            )
            for entry in self.planned()
            if all(is_accepted(records.get(entry["study_uid"])) for records in upstream.values())
        }

    def discard(self, study_uid: str) -> None:
        """Remove what this stage made of a study, its zip included."""
        shutil.rmtree(self.work.study(self.batch, self.stage, study_uid), ignore_errors=True)
        if self.stage.startswith(PACKAGE):
            space = self.stage.removeprefix(PACKAGE)
            self.release.zip(space, self.batch, study_uid).unlink(missing_ok=True)

    def key(self, study: Study) -> str:
        """Digest of all that the study's outcome depends on."""
        planned = without_stamps(study.plan)
        if self.needs:  # files and their times matter to the first stage only
            read = ("patient_uid", *DATES) if self.stage == "curate" else ("patient_uid",)
            planned = {name: planned.get(name) for name in read}
        return digest(
            {
                "stage": self.stage,
                "params": self.params,
                "plan": planned,
                "own": self.per_study.get(study.study_uid),
                "inputs": {stage: r.passed_on for stage, r in study.upstream.items()},
            }
        )


StageFunction = Callable[[Study, Path], Outcome]


def process_shard(
    job: ShardJob, do: StageFunction, prepare: Callable[[], None] | None = None
) -> None:
    """Bring every study of a shard through one stage and write the shard's manifest.

    Parameters
    ----------
    do : callable
        `do(study, scratch)` writes the study's files below `scratch` and says what it decided.
        It must be picklable when the job has more than one worker.
    prepare : callable, optional
        Called once, if there is anything to do, before workers are forked: what it loads they have.

    Raises
    ------
    ShardFailed
        When too many studies failed; they are open again for the next attempt.
    LeaseTaken
        When another job is at work on this shard and does not end.
    """
    with (
        Lease(job.work.lease(job.batch, job.stage, job.shard), LEASE_WAIT_S) as lease,
        _sigterm_as_interrupt(),
        attempts.watched(job),
        job_scratch(),
    ):
        studies = job.studies()
        history = job.journal.history()
        _forget_obsolete(job, studies, history)
        _sweep_scratch(job, studies.keys() | history.keys())
        todo = _to_do(job, studies, history)
        log.info("%s: %d studies, %d to do", job.stage, len(studies), len(todo))
        if todo and prepare:
            prepare()
        _work_through(job, do, todo, history, lease)
        _finish(job, studies, lease)
        for stage in () if job.keep_intermediates else job.needs:
            job.files.remove_spent(stage, own=job.stage)


def _finish(job: ShardJob, studies: dict[str, Study], lease: Lease) -> None:
    """Write the manifest, or fail the job when too much failed."""
    _check_lease(job, lease)
    records = job.journal.records()
    failed = [uid for uid in studies if records[uid].outcome.state == FAILED]
    if len(failed) > max(1, job.max_failed_fraction * len(studies)):
        for uid in failed:
            job.journal.append("reopen", uid)
        raise ShardFailed(
            f"{len(failed)} of {len(studies)} studies failed in {job.stage} "
            f"({job.batch}/{job.shard}); causes are in this job's log and journal; "
            "the next run works on them again"
        )
    manifest = manifest_of(records[uid] for uid in sorted(studies))
    where = {"stage": job.stage, "batch": job.batch, "shard": job.shard}
    write_json(job.work.manifest(job.batch, job.stage, job.shard), {**where, **manifest})


def _to_do(
    job: ShardJob, studies: dict[str, Study], history: dict[str, StudyHistory]
) -> list[Study]:
    """Return the studies without a record of this very work, or whose files are gone."""
    files = job.files

    def holds(study: Study) -> bool:
        seen = history.get(study.study_uid)
        if seen is None or seen.record is None or seen.record.key != job.key(study):
            return False
        return files.is_whole(job.stage, seen.record)

    return [study for study in studies.values() if not holds(study)]


def is_accepted(record: Record | None) -> bool:
    """Whether a study goes on to the next stage."""
    return record is not None and record.outcome.state == ACCEPTED


def _forget_obsolete(
    job: ShardJob, studies: dict[str, Study], history: dict[str, StudyHistory]
) -> None:
    """Drop what stands behind studies that do not, or no longer, reach this stage."""
    planned = {entry["study_uid"] for entry in job.planned()}
    for uid in (planned | history.keys()) - studies.keys():
        if uid in history and history[uid].record:
            job.journal.append("reopen", uid)
        job.discard(uid)


def _sweep_scratch(job: ShardJob, study_uids: set[str]) -> None:
    """Remove what dead jobs of this shard left half written."""
    folder = job.work.study(job.batch, job.stage, "x").parent
    for path in folder.glob(".*.part") if folder.is_dir() else ():
        if path.name.split(".")[1] in study_uids:
            shutil.rmtree(path, ignore_errors=True)


def _work_through(
    job: ShardJob,
    do: StageFunction,
    todo: list[Study],
    history: dict[str, StudyHistory],
    lease: Lease,
) -> None:
    """Give every study to a worker; those that a worker died in come last and run alone."""
    run = _in_process if job.workers == 1 else _in_pool
    suspects = [s for s in todo if s.study_uid in history and history[s.study_uid].deaths]
    rest = [s for s in todo if s not in suspects]
    while rest:
        lost = run(job, do, rest, lease)
        suspects += lost
        done = job.journal.records()
        rest = [s for s in rest if s not in lost and s.study_uid not in done]
    for study in suspects:
        while (seen := job.journal.history()[study.study_uid]).record is None:
            if seen.deaths >= MAX_DEATHS:
                killed = Outcome(FAILED, "killed")
                job.journal.write(Record(study.study_uid, job.key(study), killed))
            else:
                run(job, do, [study], lease)


def _in_process(
    job: ShardJob, do: StageFunction, studies: list[Study], lease: Lease
) -> list[Study]:
    """Work on studies one after the other in this process."""
    for study in studies:
        _start(job, study, lease)
        try:
            _record(job, lease, study, *_work(job, do, study))
        except BaseException:
            with suppress(OSError):  # the disk may be full
                job.journal.append("interrupted", study.study_uid)
            raise
    return []


def _in_pool(job: ShardJob, do: StageFunction, studies: list[Study], lease: Lease) -> list[Study]:
    """Work on studies in processes of their own; return those that a dead worker held."""
    waiting, flying = list(studies), dict[Future, Study]()
    context = get_context("fork")  # Snakemake's scripts have no guard for spawn
    workers = min(job.workers, len(studies))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        while waiting or flying:
            while waiting and len(flying) < workers:
                _start(job, study := waiting.pop(0), lease)
                flying[pool.submit(_work, job, do, study)] = study
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                _record(job, lease, flying[future], *future.result())
                del flying[future]
    except BrokenProcessPool:
        log.error("a worker died with %d studies in flight", len(flying))
        return list(flying.values())
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        with suppress(OSError):  # the disk may be full
            for study in flying.values():
                job.journal.append("interrupted", study.study_uid)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return []


def _check_lease(job: ShardJob, lease: Lease) -> None:
    if not lease.held():
        raise LeaseTaken(f"the lease of {job.batch}/{job.shard} was lost to another job")


def _start(job: ShardJob, study: Study, lease: Lease) -> None:
    _check_lease(job, lease)
    job.journal.append("start", study.study_uid)


def _record(job: ShardJob, lease: Lease, study: Study, record: Record, text: str) -> None:
    _check_lease(job, lease)
    write_collected(text)
    job.journal.write(record)
    if not job.keep_intermediates:
        job.files.remove_read(job.stage, record, study.upstream)
    attempts.count(record)
    log.info("study %s %s %s", record.study_uid, record.outcome.state, record.outcome.reason)


def _work(job: ShardJob, do: StageFunction, study: Study) -> tuple[Record, str]:
    """Run the stage function on one study; return its record and its log."""
    final = job.work.study(job.batch, job.stage, study.study_uid)
    shutil.rmtree(final, ignore_errors=True)
    with collected() as text, measured() as usage:
        files: dict[str, dict[str, Any]] = {}
        try:
            _bring_back(job, study, final)
            with staged_folder(final) as scratch:
                outcome = do(study, scratch)
                json.dumps(vars(outcome))  # what cannot be recorded is this study's failure
                with step("checksum"):
                    files = checksums(scratch)
        except Rejected as rejected:
            outcome = Outcome(REJECTED, rejected.reason, rejected.found, rejected.limit)
        except SourceGone:
            outcome = Outcome(FAILED, "source_gone")
        except Exception as error:
            if is_machine_error(error):
                raise
            log.exception("study %s failed", study.study_uid)
            outcome = Outcome(FAILED, "error", error=error_location(error))
    usage["series"] = outcome.n_series
    return Record(study.study_uid, job.key(study), outcome, files, usage), text.getvalue()


def _bring_back(job: ShardJob, study: Study, final: Path) -> None:
    """Get back files of earlier stages that were removed once they had been used.

    Raises
    ------
    SourceGone
        When they cannot be had again as they were.
    """
    files = job.files
    for stage, record in study.upstream.items():
        if not (missing := files.missing(stage, record, job.stage)):
            continue
        log.info("study %s: %d files of %s are had again", study.study_uid, len(missing), stage)
        with step("bring_back"), scratch_folder(final) as scratch:
            try:
                if make := job.make_again.get(stage):
                    make(study, scratch)
                else:
                    files.unzip(record, missing, scratch)
            except Exception as error:
                if is_machine_error(error):
                    raise
                raise SourceGone from error
            take_over(scratch, study.folders[stage], record, missing)


@contextmanager
def scratch_folder(final: Path) -> Iterator[Path]:
    """Give an empty folder beside `final` for the length of a block."""
    scratch = final.with_name(f".{final.name}.{uuid4().hex[:8]}.part")
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Give a scratch folder that becomes `final` only if the block ends well.

    An empty scratch folder becomes nothing.
    """
    with scratch_folder(final) as scratch:
        yield scratch
        if any(scratch.iterdir()):
            scratch.rename(final)  # the same disk: one step, all of it or nothing


def checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Return SHA-256 and size of every file below a folder, once the disk has them."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found[str(path.relative_to(folder))] = {"sha256": sha256, "bytes": path.stat().st_size}
    return found


@contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """Measure wall and CPU seconds (children included), peak memory in MB, end and steps."""
    usage: dict[str, Any] = {}
    take_steps()  # those of no study
    wall, cpu = time.perf_counter(), cpu_seconds()
    try:
        yield usage
    finally:
        usage["wall_s"] = round(time.perf_counter() - wall, 3)
        usage["cpu_s"] = round(cpu_seconds() - cpu, 3)
        usage["peak_rss_mb"] = round(peak_mb())
        usage["ended"] = round(time.time(), 2)
        usage["steps"] = take_steps()


@contextmanager
def guarded(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Work on one series so that whatever goes wrong ends in its entry, not in its siblings.

    Parameters
    ----------
    entry : dict
        The series' entry; gets `state`, `reason` and what explains them.
    """
    try:
        yield entry
        entry.setdefault("state", ACCEPTED)
        entry.setdefault("reason", "")
    except Rejected as rejected:
        entry.update(rejected.as_entry())
        log.info("series %s %s", entry["series_key"], rejected)
    except Exception as error:
        if is_machine_error(error):
            raise
        entry.update(state=FAILED, reason="error", error=error_location(error))
        log.exception("series %s failed", entry["series_key"])


def is_machine_error(error: BaseException) -> bool:
    """Whether an error is the machine's or the set-up's (a full disk, say), and no study's."""
    return isinstance(error, UserError) or (
        isinstance(error, OSError) and error.errno in MACHINE_ERRORS
    )


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let a polite end of the job (time limit, scancel) be recorded as one, not as a death."""

    def end(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start_worker() -> None:
    """Leave interrupts to the parent, and die with it rather than write on as an orphan."""
    for told_to_stop in (signal.SIGINT, signal.SIGTERM):  # schedulers tell every process of a job
        signal.signal(told_to_stop, signal.SIG_IGN)
    if hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
