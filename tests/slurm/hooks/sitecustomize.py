"""Python reads this when it starts, in every process of a run under test.

It makes the executor look at its jobs every second, and it watches that no shard has two workers:
whoever takes a shard's lease must get a lock of the kernel as well, which the kernel holds as long
as a process that worked on the shard lives, however leases may judge that.
"""

import fcntl
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

WATCH = Path(os.environ.get("MRMILL_TEST_WATCH", "."))
LOG = WATCH / "log.txt"


def note(*words):
    """Add a line to the log of who worked on what."""
    with LOG.open("a") as log:  # one short write: lines of many processes do not mix
        log.write(" ".join(map(str, words)) + "\n")


def watch_leases():
    from mrmill import lease

    class WatchedLease(lease.Lease):
        def __enter__(self):
            super().__enter__()
            self.shard = "-".join(self.path.with_suffix("").parts[-3:])
            self.lock = (WATCH / self.shard).open("a")
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                note("alone", self.shard, os.getpid(), os.environ.get("SLURM_JOB_ID"))
            except BlockingIOError:
                note("OVERLAP", self.shard, os.getpid(), os.environ.get("SLURM_JOB_ID"))
            return self

        def __exit__(self, *error):
            fcntl.flock(self.lock, fcntl.LOCK_UN)  # its workers share the lock: they are done
            self.lock.close()
            super().__exit__(*error)

    lease.Lease = WatchedLease


def slow_down(seconds):
    """Give every study of one stage a rest before its work, so that there is time to disturb it."""
    from mrmill import shards

    work = shards._work

    def slow_work(job, do, study):
        if job.stage == os.environ.get("MRMILL_TEST_SLOW_STAGE"):
            time.sleep(seconds)
        return work(job, do, study)

    slow_work.__module__, slow_work.__qualname__ = work.__module__, work.__qualname__  # to pickle
    shards._work = slow_work


def look_often():
    """Neither wait 5 s before a submission nor half a minute between two looks at the jobs."""
    import snakemake_executor_plugin_slurm as plugin

    plugin.time = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
    plugin.Executor.next_seconds_between_status_checks = property(
        lambda self: 1, lambda self, seconds: None
    )


if "/.snakemake/scripts/" in sys.orig_argv[-1]:
    watch_leases()
    if "MRMILL_TEST_SLOW_STAGE" in os.environ:
        slow_down(float(os.environ["MRMILL_TEST_SLOW_S"]))
elif "--slurm-jobname-prefix" in sys.orig_argv:
    look_often()
