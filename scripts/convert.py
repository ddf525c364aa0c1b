"""Rule convert: hand one shard to the library and write its manifest."""

from functools import partial
from typing import TYPE_CHECKING

from mrmill.convert import convert_study
from mrmill.logs import log_to
from mrmill.shards import process_shard
from mrmill.stages import shard_job

if TYPE_CHECKING:  # what Snakemake injects, for editors and type checkers
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0])
settings, job = shard_job(snakemake, "convert")
process_shard(job, partial(convert_study, settings=settings.convert))
