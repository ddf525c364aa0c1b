"""A run from a terminal: plan, call Snakemake, show how far it is, sum it up."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TaskID

from mrmill.config import ROOT, Config, ConfigError
from mrmill.layout import CATALOG_PARTS, ReleaseTree, WorkTree
from mrmill.lease import Lease
from mrmill.ledger import stages_of
from mrmill.records import Journal, sha256_of
from mrmill.shards import is_whole
from mrmill.workflow_files import read_plan

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
    refuse_problems(config, console)
    with alone(config):
        plan_with_progress(config, cores, console)
        drop_hollow_manifests(config)
        command = snakemake_command(config, configfile, cores, arguments)
        query = bool(QUERIES & set(arguments))
        started = time.monotonic()
        if query or not console.is_terminal:
            code = subprocess.run(command, check=False).returncode
        else:
            code = run_with_progress(command, WorkTree(config.work), console)
        if not query:
            summarize(config, code, time.monotonic() - started, console)
    return code


def refuse_problems(config: Config, console: Console) -> None:
    """Print what `mrmill check` warns of, and refuse to start on a problem."""
    from mrmill.check import check

    problems = []
    for finding in check(config):
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


def run_with_progress(command: list[str], work: WorkTree, console: Console) -> int:
    """Run Snakemake with its output in a log, and show a live table of what is done."""
    from mrmill.status import read_status, status_table

    log = work.root / "logs" / "snakemake.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out) as process,
        Live(console=console, refresh_per_second=1) as live,
    ):
        while process.poll() is None:
            live.update(status_table(read_status(work)))
            time.sleep(1)
        live.update(status_table(read_status(work)))
    if process.returncode:
        console.print(f"the workflow stopped; the last lines of {log}:", style="red")
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        console.print("\n".join(lines[-15:]), markup=False, highlight=False)
    return process.returncode


def summarize(config: Config, code: int, seconds: float, console: Console) -> None:
    """Print what became of everything, and where to look next."""
    from mrmill.ledger.flow import flow_table, read_flows
    from mrmill.status import summary_text

    work = WorkTree(config.work)
    release = ReleaseTree(config.release, config.dataset.name)
    if code:
        console.print("not finished: mend the cause and call `mrmill run` again; it resumes")
    elif release.ledger.exists():
        console.print(flow_table(read_flows(work)))
        console.print(summary_text(work, release), highlight=False, markup=False)
    console.print(f"wall time {seconds / 60:.1f} min", highlight=False)


def drop_hollow_manifests(config: Config) -> None:
    """Remove every manifest whose studies, records or files are no longer all there as written.

    Snakemake looks at manifests alone, and misses none that stands between others: without the
    last ones, those of the tables, whatever is gone is made again.
    """
    work, release = WorkTree(config.work), ReleaseTree(config.release, config.dataset.name)
    plan = read_plan(config)
    stages = stages_of(config.spaces, config.input.kind == "release")
    for batch, stage, shard in finished(work, plan):
        manifest = json.loads(work.manifest(batch, stage, shard).read_text(encoding="utf-8"))
        records = Journal(work.journal(batch, stage, shard)).records()
        n_least = plan[batch][shard]["n_studies"] if stage == stages[0] else 0
        if len(manifest["studies"]) < n_least or not all(
            (record := records.get(uid)) is not None
            and record.content == decided["content"]
            and is_whole(record, work, release, batch, stage)
            for uid, decided in manifest["studies"].items()
        ):
            work.drop_manifest(batch, stage, shard)
    for batch, shards in plan.items():
        needed = [work.manifest(batch, stage, shard) for stage in stages for shard in shards]
        needed += [work.part(batch, name) for name in CATALOG_PARTS]
        tables = {"metadata": release.metadata(batch), "splits": work.part(batch, "splits.csv")}
        if not (all(path.exists() for path in needed) and _agree(work.catalog(batch), tables)):
            work.catalog(batch).unlink(missing_ok=True)
    last = work.root / "catalog.json"
    needed = [work.ledger, *(work.catalog(batch) for batch in plan)]
    native = (release.splits, release.ledger, release.card, release.checksums("native"))
    tables = {str(path.relative_to(release.root)): path for path in native}
    if not (all(path.exists() for path in needed) and _agree(last, tables)):
        last.unlink(missing_ok=True)


def _agree(manifest: Path, tables: Mapping[str, Path]) -> bool:
    """Say whether tables are as the manifest that was written behind them says."""
    if not manifest.exists():
        return False
    digests = json.loads(manifest.read_text(encoding="utf-8"))["digests"]
    return all(p.exists() and sha256_of(p) == digests[name] for name, p in tables.items())


def finished(work: WorkTree, plan: dict) -> Iterator[tuple[str, str, str]]:
    """Yield batch, stage and shard of every manifest there is."""
    for batch, shards in plan.items():
        for shard in shards:
            for path in sorted((work.root / batch).glob(f"*/{shard}.json")):
                yield batch, path.parent.name, shard


def reopen_failed(work: WorkTree, reason: str = "", batch: str = "") -> int:
    """Open failed studies again and drop the manifests that call them done.

    A study counts as failed when it failed as a whole or one of its series did.
    """
    opened = 0
    for path in sorted(work.root.glob(f"{batch or 'batch*'}/*/*.jsonl")):
        journal = Journal(path)
        for uid, record in journal.records().items():
            outcome = record.outcome
            causes = {o["reason"] for o in outcome.series if o["state"] == "failed"}
            causes |= {outcome.reason} if outcome.state == "failed" else set()
            if causes and (not reason or reason in causes):
                journal.append("reopen", uid)
                work.drop_manifest(path.parents[1].name, path.parent.name, path.stem)
                opened += 1
    return opened
