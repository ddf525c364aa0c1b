"""Rule deface: load the model once, hand one shard to the library and write its manifest."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mrmill.deface import deface_study, read_decisions
from mrmill.logs import log_to
from mrmill.masks import make_masker
from mrmill.shards import process_shard
from mrmill.stages import shard_job

if TYPE_CHECKING:  # what Snakemake injects, for editors and type checkers
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0])
settings, job = shard_job(
    snakemake.config, "deface", snakemake.wildcards, snakemake.params.stage, workers=1
)
decisions = read_decisions(settings.deface.decisions)
masker = make_masker(settings.deface, threads=snakemake.threads)
do = partial(deface_study, settings=settings.deface, masker=masker, decisions=decisions)
process_shard(replace(job, per_study=decisions), do)
