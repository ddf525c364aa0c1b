"""Rule deface: hand one shard to the library and write its manifest."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mrmill.decisions import read_decisions
from mrmill.deface import deface_study
from mrmill.logs import log_to
from mrmill.masks import Masker, make_masker
from mrmill.profile.steps import step
from mrmill.records import Outcome
from mrmill.shards import Study, process_shard
from mrmill.stages import shard_job

if TYPE_CHECKING:  # what Snakemake injects, for editors and type checkers
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0])
settings, job = shard_job(snakemake, "deface", workers=1)
decisions = read_decisions(settings.deface.decisions, "deface.decisions")


@cache
def masker() -> Masker:
    """Load the model once, and only when there is a study to work on."""
    with step("load"):
        return make_masker(settings.deface, threads=snakemake.threads)


def do(study: Study, scratch: Path) -> Outcome:
    """Deface one study in this process."""
    return deface_study(study, scratch, settings.deface, masker(), decisions)


process_shard(replace(job, per_study=decisions), do)
