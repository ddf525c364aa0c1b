"""Rule curate: hand one shard to the library and write its manifest."""

from functools import partial
from typing import TYPE_CHECKING

from mrmill.classify import load_rules
from mrmill.curate import curate_study
from mrmill.headers import load_columns
from mrmill.logs import log_to
from mrmill.shards import process_shard
from mrmill.stages import shard_job

if TYPE_CHECKING:  # what Snakemake injects, for editors and type checkers
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0])
settings, job = shard_job(
    snakemake.config, "curate", snakemake.wildcards, snakemake.params.stage, snakemake.threads
)
rules = load_rules(settings.curate.classification)
columns = load_columns(settings.convert.header_columns)
process_shard(job, partial(curate_study, settings=settings.curate, rules=rules, columns=columns))
