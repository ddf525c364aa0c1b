"""Measure what a dataset of MR-RATE's size costs besides its images.

A plan of that size is made up: the workflow is read and dry-run, and its status is read. A batch
is brought through every stage with bodies that do nothing, then run again; some shards of it go
through Snakemake, which tells what a job costs and which files it leaves.
"""

import argparse
import base64
import json
import os
import platform
import re
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.scale.engine import run_stages, seconds_per_study
from benchmarks.scale.export import write_export
from benchmarks.scale.project import Project, Size, finish, without_work, write_plan
from mrmill.stages import stages_in

#: What may be needed at most, at full size.
LIMITS = {
    "dry_run_s": 45,
    "dry_run_peak_mb": 1000,
    "one_batch_dry_run_s": 5,
    "status_s": 10,
    "bookkeeping_files_per_1000_series": 120,
    "engine_ms_per_study": 20,
    "shard_job_cpu_s": 3,
    "rerun_finished_batch_s": 10,
}

#: Studies of a finished batch, series of a study (MR-RATE: 7.17), files of a series.
BATCH, SERIES_PER_STUDY, FILES_PER_SERIES = 3500, 7, 3

#: Shards that go through Snakemake.
SMALL_SHARDS = 2


def main() -> None:
    """Measure all or some parts, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be repeated")
    parser.add_argument(
        "--shrink", type=int, default=1, help="one in so many studies: a look, in a minute or so"
    )
    parser.add_argument("--profile", help="Snakemake profile for the jobs: a cluster's")
    parser.add_argument("--folder", type=Path, help="where projects are made (default: temporary)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mrmill-scale-", dir=arguments.folder) as name:
        found: dict[str, Any] = {}
        for part in arguments.part or PARTS:
            found |= PARTS[part](Path(name) / part, arguments)
    found |= {"python": platform.python_version(), "machine": platform.machine()}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


def measure_plan(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Dry-run a plan of full size with nothing done."""
    full = Size()
    n = arguments.shrink
    size = replace(full, studies=full.studies // n, series=full.series // n)
    project = Project(folder).create()
    plan = write_plan(project, size)
    with spent() as whole:
        told = project.call(project.snakemake("-n"))
    with spent() as one:
        project.call(project.snakemake("-n", f"{list(plan)[-1]}/catalog.json"))
    return {
        "studies": size.studies,
        "series": size.series,
        "shards": sum(len(shards) for shards in plan.values()),
        "jobs": int(re.findall(r"^total +(\d+)", told, re.MULTILINE)[-1]),
        "dry_run_s": whole["wall_s"],
        "dry_run_cpu_s": whole["cpu_s"],
        "dry_run_peak_mb": whole["peak_mb"],
        "one_batch_dry_run_s": one["wall_s"],
        "one_batch_dry_run_cpu_s": one["cpu_s"],
        **measure_status(project, plan),
    }


def measure_status(project: Project, plan: dict[str, Any]) -> dict[str, Any]:
    """Ask for the status of that plan with all batches finished but one."""
    finish(project, plan, open_batch=list(plan)[-1])
    with spent() as took:
        project.call(project.mrmill("status", "--configfile", project.config_file, "--json"))
    files = [path for path in project.work.root.glob("batch*/*/*.json*") if path.is_file()]
    return {
        "status_s": took["wall_s"],
        "status_cpu_s": took["cpu_s"],
        "status_peak_mb": took["peak_mb"],
        "manifests": sum(path.suffix == ".json" for path in files),
        "open_journals": sum(path.suffix == ".jsonl" for path in files),
    }


def measure_batch(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Bring a batch through every stage in this process; then run it again as a user would."""
    studies = BATCH // arguments.shrink
    project = Project(folder, without_work(folder / "checkout"))
    write_export(folder / "export", range(studies), SERIES_PER_STUDY, FILES_PER_SERIES)
    project.create(input={"path": "export"})
    project.call(project.mrmill("plan", "-c", project.config_file, "--new-key"))
    run_stages(project)
    project.call(project.snakemake("--touch"))
    run = project.mrmill("run", "--configfile", project.config_file, "--cores", 2)
    project.call(run)  # writes the tables
    before = stamps(project)
    with spent() as again:
        project.call(run)
    if stamps(project) != before:
        raise RuntimeError("the second run of a finished batch did something")
    return {
        "batch_studies": studies,
        "batch_files": studies * SERIES_PER_STUDY * FILES_PER_SERIES,
        "rerun_finished_batch_s": again["wall_s"],
        "rerun_finished_batch_cpu_s": again["cpu_s"],
    }


def measure_jobs(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Send a few shards through Snakemake, and count what they leave behind."""
    per_shard = max(1, Size().per_shard // arguments.shrink)
    studies = SMALL_SHARDS * per_shard
    project = Project(folder, without_work(folder / "checkout"))
    write_export(folder / "export", range(studies), SERIES_PER_STUDY, FILES_PER_SERIES)
    project.create(input={"path": "export"}, plan={"studies_per_shard": per_shard})
    project.call(project.mrmill("plan", "-c", project.config_file, "--new-key"))
    profile = ["--profile", arguments.profile] if arguments.profile else []
    run = project.mrmill("run", "-c", project.config_file, "--cores", 1, *profile)
    cpu_s = machine_cpu_s if arguments.profile else children_cpu_s
    with spent(cpu_s) as first:
        project.call(run)
    counted = bookkeeping(project)
    with spent(cpu_s) as nothing:
        project.call(run)
    wall_s, cpu_s = seconds_per_study(folder / "engine", 10 * per_shard)
    n_jobs = SMALL_SHARDS * len(stages_in(project.config))
    full = Size()  # a shard of any size has as many files
    in_shard = full.per_shard * full.series / full.studies
    files = counted["shard"] / SMALL_SHARDS / in_shard
    files += counted["other"] / (full.series / full.batches)
    return {
        "small_run_jobs": n_jobs + 2,
        "engine_ms_per_study": 1000 * wall_s,
        "engine_cpu_ms_per_study": 1000 * cpu_s,
        "shard_job_cpu_s": (first["cpu_s"] - nothing["cpu_s"]) / (n_jobs + 2),
        "bookkeeping_files_per_shard": counted["shard"] / SMALL_SHARDS,
        "bookkeeping_files_per_batch": counted["other"],
        "bookkeeping_files_per_1000_series": 1000 * files,
    }


def bookkeeping(project: Project) -> Counter:
    """Count the files of a work tree that are no images, by what they belong to.

    Those of a shard have its name; Snakemake's are named by what they are about, in base64.
    """
    counts: Counter[str] = Counter()
    root = project.work.root
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if not path.is_file() or re.search(r"/[A-Z2-7]{10}/", name):
            continue
        if ".snakemake/metadata" in name:
            name = base64.b64decode(path.name).decode()
        counts["shard" if re.search(r"shard\d{4}", name) else "other"] += 1
    return counts


def stamps(project: Project) -> dict[str, int]:
    """Return when each manifest, record and table was written."""
    files = [*project.work.root.glob("batch*/**/*.json*"), *project.release.root.glob("*/*.*")]
    return {str(path): path.stat().st_mtime_ns for path in files}


def children_cpu_s() -> float:
    """Return the CPU seconds of the processes that this one has started and seen end."""
    return sum(os.times()[2:4])


def machine_cpu_s() -> float:
    """Return the CPU seconds of all processes: jobs of a cluster on this machine are not ours."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


@contextmanager
def spent(cpu_s: Callable[[], float] = children_cpu_s) -> Iterator[dict[str, float]]:
    """Measure seconds and CPU seconds of a block, and the peak memory of any child so far."""
    found: dict[str, float] = {}
    started, cpu = time.perf_counter(), cpu_s()
    yield found
    found["wall_s"] = time.perf_counter() - started
    found["cpu_s"] = cpu_s() - cpu
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def table(found: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| what | measured | at most |", "| --- | ---: | ---: |"]
    for name, value in found.items():
        shown = f"{value:,.1f}" if isinstance(value, float) else value
        lines.append(f"| {name} | {shown} | {LIMITS.get(name, '')} |")
    return "\n".join(lines)


PARTS = {"plan": measure_plan, "batch": measure_batch, "jobs": measure_jobs}

if __name__ == "__main__":
    main()
