"""Every stage of a planned project in one process: what a workflow does, without its jobs."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from benchmarks.scale.nothing import do_nothing
from benchmarks.scale.project import REPLACED, Project, write
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.package import package_study
from mrmill.records import Outcome
from mrmill.shards import ShardJob, StageFunction, Study, process_shard
from mrmill.stages import shard_job, stage_params, stages_in
from mrmill.workflow_files import read_plan


def run_stages(project: Project) -> None:
    """Bring every shard through every stage: records, manifests, zips, but no tables."""
    config, plan = project.config, read_plan(project.config)
    values = config.model_dump(mode="json", by_alias=True)
    with quiet(), mock.patch.object(os, "fsync"):  # nothing here has to outlive a crash
        for stage in stages_in(config):
            params = SimpleNamespace(stage=stage_params(config, stage))
            for batch, shard in places(plan):
                call = SimpleNamespace(
                    config=values,
                    wildcards=SimpleNamespace(batch=batch, shard=shard),
                    params=params,
                    resources={},
                )
                _, job = shard_job(call, stage, workers=1)
                process_shard(job, body(stage, project))


def body(stage: str, project: Project) -> StageFunction:
    """Return a stage's function: the real one where it packages, else one that does nothing."""
    if stage in REPLACED:
        return partial(do_nothing, stage=stage)
    space = stage.removeprefix("package-")
    return partial(package_study, space=space, release=project.release)


def places(plan: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield batch and name of every shard."""
    for batch, shards in plan.items():
        for shard in shards:
            yield batch, shard


@contextmanager
def quiet() -> Iterator[None]:
    """Have nothing logged: there is no job's log here."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def empty(study: Study, scratch: Path) -> Outcome:
    """Accept a study and write nothing."""
    return Outcome()


def seconds_per_study(folder: Path, studies: int) -> tuple[float, float]:
    """Return wall and CPU seconds that the engine takes for a study with nothing to do.

    Every record is on the disk before the next study begins, as in any run.
    """
    work = WorkTree(folder / "work")
    entries = [{"study_uid": f"S{n}", "patient_uid": "P", "series": []} for n in range(studies)]
    write(work.shard_plan("batch00", "shard0000"), {"studies": entries})
    release = ReleaseTree(folder / "release", "MY-MRI")
    job = ShardJob(work, release, "batch00", "shard0000", "convert", {"version": 1})
    started, cpu = time.perf_counter(), time.process_time()
    with quiet():
        process_shard(job, empty)
    spent = time.perf_counter() - started, time.process_time() - cpu
    return spent[0] / studies, spent[1] / studies
