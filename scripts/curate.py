"""Rule curate: hand one shard to the library and write its manifest."""

from functools import partial
from typing import TYPE_CHECKING

from mrmill.curate import curate_study, load_tables
from mrmill.logs import log_to
from mrmill.shards import process_shard
from mrmill.stages import shard_job

if TYPE_CHECKING:  # what Snakemake injects, for editors and type checkers
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0])
settings, job = shard_job(snakemake, "curate")
tables = load_tables(settings.curate, settings.convert.header_columns)
process_shard(job, partial(curate_study, settings=settings.curate, tables=tables))
