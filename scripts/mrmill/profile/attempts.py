"""One row for every attempt of a shard job, whatever became of it."""

import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrmill import lease
from mrmill.layout import WorkTree
from mrmill.profile import sampler
from mrmill.profile.steps import cpu_seconds, peak_mb

if TYPE_CHECKING:
    from mrmill.records import Record
    from mrmill.shards import ShardJob

log = logging.getLogger(__name__)

DONE, FAILED, KILLED, RUNNING = "done", "failed", "killed", "running"

#: How long a job waits for the last row; a file server that is away must not hold it up.
LAST_ROW_S = 20.0


class _Sampler:
    """The process that watches this one, and the studies and series done so far."""

    def __init__(self, job: "ShardJob") -> None:
        self.done = {"studies": 0, "series": 0}
        script = [sys.executable, "-I", "-S", sampler.__file__]
        self.process = subprocess.Popen(
            script, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.tell(order_for(job))

    def tell(self, values: dict[str, Any]) -> None:
        with suppress(OSError):  # it died: the job goes on without
            self.process.stdin.write(json.dumps(values).encode() + b"\n")
            self.process.stdin.flush()

    def count(self, record: "Record") -> None:
        self.done["studies"] += 1
        self.done["series"] += record.outcome.n_series
        self.tell(self.done)

    def end(self, state: str) -> None:
        known = {"cpu_s": round(cpu_seconds(), 2), "peak_mb": round(peak_mb(), 1)}
        self.tell({**known, "state": state})
        with suppress(OSError):
            self.process.stdin.close()
        try:
            code = self.process.wait(LAST_ROW_S)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            log.warning("this attempt's resource use was not written: sampler ended with %s", code)


_sampler: _Sampler | None = None


@contextmanager
def watched(job: "ShardJob") -> Iterator[None]:
    """Measure this process and its children for the length of a block, and keep one row of it.

    What is not there to be measured with is no reason not to work.
    """
    global _sampler
    try:
        _sampler = _Sampler(job)
    except OSError as error:  # no process or file left to be had
        log.warning("this attempt's resource use is not measured: %s", error.strerror)
    state = FAILED
    try:
        yield
        state = DONE
    except (KeyboardInterrupt, SystemExit):  # told to stop: a time limit, scancel, Ctrl-C
        state = KILLED
        raise
    finally:
        if _sampler:
            _sampler.end(state)
        _sampler = None


def count(record: "Record") -> None:
    """Note in this attempt's row that a study is done."""
    if _sampler:
        _sampler.count(record)


def order_for(job: "ShardJob") -> dict[str, Any]:
    """Return what the sampler is told: the row as far as it is known, and what to watch."""
    asked = {"rule": job.stage, "threads": job.workers, "mem_mb": None, "runtime_min": None}
    asked |= job.asked
    job_id, roots = os.environ.get("SLURM_JOB_ID", ""), {os.getpid()}
    roots |= launchers(job_id)
    gpus = asked.pop("gpu", 0)
    row = {
        "rule": asked.pop("rule"),
        "stage": job.stage,
        "batch": job.batch,
        "shard": job.shard,
        "attempt": 1,
        "host": socket.gethostname(),
        "job_id": job_id,
        "started": round(time.time() - max(age_s(pid) for pid in roots), 2),
        "ended": None,
        "state": RUNNING,
        **asked,
        **dict.fromkeys(("wall_s", "cpu_s", "peak_mb", "read_mb", "written_mb"), 0.0),
        "cgroup_peak_mb": None,
        "gpu": None,
        "studies": 0,
        "series": 0,
    }
    path = job.work.attempts(job.batch, job.stage, job.shard)
    found = importlib.util.find_spec("pynvml") if gpus else None
    gpu = found and {
        "library": str(Path(found.origin).parent),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "count": gpus,
    }
    return {
        "row": row,
        "path": str(path.absolute()),
        "job": os.getpid(),
        "roots": sorted(roots),
        "gpu": gpu,
    }


def asked_of(rule: str, resources: Any) -> dict[str, Any]:
    """Return what a rule asked the scheduler for.

    Parameters
    ----------
    resources : object
        Snakemake's: a mapping with `_cores` and, where given, `mem_mb`, `runtime` and `gpu`.
    """
    return {
        "rule": rule,
        "threads": resources.get("_cores", 1),
        "mem_mb": resources.get("mem_mb"),
        "runtime_min": resources.get("runtime"),
        "gpu": int(resources.get("gpu", 0)),
    }


def launchers(job_id: str) -> set[int]:
    """Return the Snakemake processes that are there for this job alone: they are part of its cost.

    Above this process those that were given one job to do; and in a Slurm job that Snakemake
    submitted, the one that called srun. (In a Slurm job within which a whole run works, none did.)
    """
    found, pid = set(), os.getpid()
    while pid := sampler.parent_of(pid):
        if "--target-jobs" in sampler.read(f"/proc/{pid}/cmdline"):
            found.add(pid)
    for path in Path("/proc").glob("[0-9]*/cmdline") if job_id else ():
        environment = path.with_name("environ")
        if "slurm-jobstep" in sampler.read(str(path)):
            variables = sampler.read(str(environment)).split("\0")
            found |= {int(path.parent.name)} if f"SLURM_JOB_ID={job_id}" in variables else set()
    return found


def age_s(pid: int) -> float:
    """Return for how long a process has been there."""
    fields = sampler.stat_of(pid)
    if not fields:  # no Linux
        return 0.0
    since_boot_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_s)


def read_attempts(work: WorkTree) -> list[dict[str, Any]]:
    """Return the rows of all attempts of all shard jobs, by batch, stage, shard and attempt.

    A row that says `running` is returned as `killed` if no living job stands behind it.
    """
    rows = []
    for path in sorted(work.usage.glob("*/*/*.jsonl")):
        attempts = sampler.read_rows(str(path))
        if attempts and (last := attempts[-1])["state"] == RUNNING:
            holder = work.lease(last["batch"], last["stage"], last["shard"])
            last["state"] = RUNNING if lease.is_alive(holder) else KILLED
        rows += attempts
    return rows
