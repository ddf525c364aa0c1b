"""What `mrmill run` has to know about Slurm: the job it may be in, and jobs of a run before it."""

import getpass
import hashlib
import logging
import os
import subprocess
import time
from pathlib import Path

import yaml

log = logging.getLogger(__name__)

#: Slurm gives a job 30 s between SIGTERM and SIGKILL (KillWait), and clears up behind it.
END_WAIT_S = 90.0

#: Files that Snakemake takes for a profile, first found first.
PROFILES = ("config.v9+.yaml", "config.v8+.yaml", "config.yaml")

#: Where it looks for them.
PLACES = (Path(), Path.home() / ".config" / "snakemake", Path("/etc/xdg/snakemake"))


def is_used(arguments: list[str]) -> bool:
    """Whether Snakemake's arguments, or the profile among them, choose the Slurm executor."""
    if executor := _value_of(("--executor", "-e"), arguments):
        return executor == "slurm"
    profile = _value_of(("--profile",), arguments)
    if not profile:
        return False
    candidates = (Path(where, profile, name) for where in PLACES for name in PROFILES)
    found = next((path for path in candidates if path.is_file()), None)
    settings = yaml.safe_load(found.read_text(encoding="utf-8")) if found else None
    return bool(settings) and settings.get("executor") == "slurm"


def _value_of(options: tuple[str, ...], arguments: list[str]) -> str:
    for i, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        if name in options:
            return value if given else (arguments[i + 1 : i + 2] or [""])[0]
    return ""


def job_prefix(work: Path) -> str:
    """Return how the names of all jobs of a work tree begin: the same for every run on it.

    Slurm shows job names to everybody on the cluster, so the tree's own name is not in it.
    """
    return f"mrmill-{hashlib.sha256(str(work.resolve()).encode()).hexdigest()[:10]}"


def leave_job() -> None:
    """Forget the Slurm job this process itself runs in: what it may use is no job's business.

    The path of the cluster's configuration stays; without it some sites' commands find nothing.
    """
    if "SLURM_JOB_ID" in os.environ:
        for name in [n for n in os.environ if n.startswith("SLURM_") and n != "SLURM_CONF"]:
            del os.environ[name]


def end_jobs(prefix: str) -> int:
    """End what a run before this one, itself ended, has left in the queue; return how many.

    Nobody waits for these jobs any more, and the new run submits the same shards. Ended they
    release their shards; at most the study each process held is lost.
    """
    found = jobs(prefix)
    if found:
        subprocess.run(["scancel", *found], check=False)
    deadline = time.monotonic() + END_WAIT_S
    while jobs(prefix) and time.monotonic() < deadline:
        time.sleep(1)
    return len(found)


def jobs(prefix: str) -> list[str]:
    """Return the ids of this user's jobs, waiting or running, whose names begin with a prefix."""
    command = ["squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%i %j"]
    try:
        queue = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        log.warning("squeue does not answer: jobs of an earlier run may still be at work")
        return []
    named = (line.split(maxsplit=1) for line in queue.splitlines() if line.strip())
    return [job_id for job_id, name in named if name.startswith(prefix)]
