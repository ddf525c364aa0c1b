"""A run from a terminal: plan, call Snakemake, show how far it is, sum it up."""

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID

from mrmill import slurm
from mrmill.config import ROOT, Config, ConfigError
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.lease import Lease
from mrmill.records import Journal, failures_of
from mrmill.stages import stages_in
from mrmill.whole import drop_hollow_manifests

if TYPE_CHECKING:
    from mrmill.check import Finding

#: Snakemake options after which nothing is worked on: its own output is what the user wants.
QUERIES = {
    "-n", "--dry-run", "--dryrun", "--dag", "--rulegraph", "--filegraph", "--lint", "--summary",
    "--list-rules", "-l", "--help", "-h", "--report",
}  # fmt: skip


@contextmanager
def alone(config: Config) -> Iterator[None]:
    """Be the only one who plans, runs or re-opens on a work tree.

    Raises
    ------
    LeaseTaken
        When another is at it.
    """
    work = WorkTree(config.work)
    work.create()
    with Lease(work.run_lease):
        yield


def make_key(config: Config, console: Console) -> None:
    """Make the pseudonym key of a project that has none and nothing planned.

    Raises
    ------
    ConfigError
        When a plan is there: a new key could not go on with it.
    """
    from mrmill.plan.identity import new_key

    if WorkTree(config.work).shards.exists():
        raise ConfigError(
            f"{config.work} holds a plan made with another key: put that key back as "
            f"{config.identity.key_file}, or start over in another work tree"
        )
    new_key(config.identity.key_file)
    console.print(f"new pseudonym key {config.identity.key_file}: keep it, and keep it secret")


def plan_with_progress(config: Config, cores: int, console: Console) -> None:
    """Plan, showing how many files were looked at; print what was found."""
    from mrmill.plan import make_plan
    from mrmill.plan.text import plan_text

    with Progress(SpinnerColumn(), *Progress.get_default_columns(), console=console) as progress:
        bars: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int | None) -> None:
            if what not in bars:
                bars[what] = progress.add_task(f"planning: {what}")
            progress.update(bars[what], completed=done, total=total)

        summary = make_plan(config, cores, show)
    console.print(plan_text(summary), highlight=False, markup=False, soft_wrap=True)


def run_workflow(
    config: Config,
    configfile: Path,
    cores: int,
    arguments: list[str],
    console: Console,
) -> int:
    """Plan, run Snakemake with further arguments, and print the summary; return its exit code."""
    from mrmill.check import check, disks

    refuse_problems(check(config), console)
    query = bool(QUERIES & set(arguments))
    with alone(config):
        if slurm.is_used(arguments):
            arguments = [*arguments, *ready_for_slurm(config, query, console)]
        plan_with_progress(config, cores, console)
        refuse_problems(disks(config), console)  # a plan knows better than a look at the export
        drop_hollow_manifests(config)
        command = snakemake_command(config, configfile, cores, arguments)
        started = time.monotonic()
        if query or not console.is_terminal:
            code = run_plainly(command)
        else:
            code = run_with_progress(command, config, console)
        if not query:
            if not code:
                drop_hollow_manifests(config)  # what is whole now, the next run need not look at
            summarize(config, code, time.monotonic() - started, console)
    return code


def ready_for_slurm(config: Config, query: bool, console: Console) -> list[str]:
    """Leave the Slurm job this may run in, end jobs of a killed run; return further arguments."""
    slurm.leave_job()
    prefix = slurm.job_prefix(config.work)
    if not query and (ended := slurm.end_jobs(prefix)):
        console.print(f"ended {ended} jobs of an earlier run; what they had done is kept")
    return ["--slurm-jobname-prefix", prefix]


def refuse_problems(findings: "Iterable[Finding]", console: Console) -> None:
    """Print what `mrmill check` warns of, and refuse to start on a problem."""
    problems = []
    for finding in findings:
        if finding.level == "problem":
            problems.append(f"  {finding.what}; {finding.advice}")
        elif finding.level == "warning":
            console.print(f"warning: {finding.what}", style="yellow", highlight=False)
    if problems:
        raise ConfigError("the run cannot start:\n" + "\n".join(problems))


def snakemake_command(
    config: Config, configfile: Path, cores: int, arguments: list[str]
) -> list[str]:
    """Return the Snakemake call; a profile among the arguments takes the place of `local`."""
    profile = ["--profile", str(ROOT / "profiles" / "local"), "--cores", str(cores)]
    if any(a.split("=")[0] in ("--profile", "--executor", "-e") for a in arguments):
        profile = []
    return [
        *(sys.executable, "-m", "snakemake"),
        *("--snakefile", str(ROOT / "Snakefile")),
        *("--configfile", str(configfile.resolve())),
        *("--directory", str(config.work)),
        "--nolock",  # the run lease is the lock, and knows a dead holder from a living one
        *profile,
        *arguments,
    ]


def run_plainly(command: list[str]) -> int:
    """Run Snakemake with its own output; return its exit code."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # Snakemake got it as well, and ends its jobs
            return process.wait()


def run_with_progress(command: list[str], config: Config, console: Console) -> int:
    """Run Snakemake with its output in a log, and show a live table of what is done."""
    from mrmill.status import StatusReader
    from mrmill.status.live import show_live

    work = WorkTree(config.work)
    log = work.root / "logs" / "snakemake.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:

        def over(_: object, pause_s: float) -> bool:
            if process.poll() is not None:
                return True
            with suppress(subprocess.TimeoutExpired):
                process.wait(pause_s)
            return False  # one more look at how it ended

        reader = StatusReader(work, stages_in(config))
        try:
            show_live(reader, "", console, over)
        except KeyboardInterrupt:  # Snakemake got it as well
            console.print("stopping: jobs are being ended; what is done is kept")
            process.wait()
    if process.returncode:
        console.print(f"the workflow stopped; the last lines of {log}:", style="red")
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        console.print("\n".join(lines[-15:]), markup=False, highlight=False)
    return process.returncode


def summarize(config: Config, code: int, seconds: float, console: Console) -> None:
    """Print what became of everything, and where to look next; write what failed as a table."""
    from mrmill.ledger.flow import flow_table, read_flows
    from mrmill.status import read_status, write_failures
    from mrmill.status.text import failures_text, summary_text

    work = WorkTree(config.work)
    release = ReleaseTree(config.release, config.dataset.name)
    failures = read_status(work, stages_in(config)).failures
    write_failures(work, failures)
    if code:
        console.print(failures_text(failures), highlight=False, markup=False, soft_wrap=True)
        console.print("not finished: mend the cause and call `mrmill run` again; it resumes")
    elif release.ledger.exists():
        console.print(flow_table(read_flows(work)))
        console.print(summary_text(work, release), highlight=False, markup=False)
    console.print(f"wall time {seconds / 60:.1f} min", highlight=False)


def reopen_failed(work: WorkTree, reason: str = "", batch: str = "") -> int:
    """Open failed studies again and drop the manifests that call them done.

    A study counts as failed when it failed as a whole or one of its series did.
    """
    opened = 0
    for path in sorted(work.root.glob(f"{batch or 'batch*'}/*/*.jsonl")):
        if b'"failed"' not in path.read_bytes():  # nearly all of them: spare the parsing
            continue
        journal = Journal(path)
        for uid, record in journal.records().items():
            causes = {failure["reason"] for failure in failures_of(record.outcome)}
            if causes and (not reason or reason in causes):
                journal.append("reopen", uid)
                work.drop_manifest(path.parents[1].name, path.parent.name, path.stem)
                opened += 1
    return opened
