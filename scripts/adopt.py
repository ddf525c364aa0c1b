"""Rule adopt: hand one shard to the library and write its manifest."""

from typing import TYPE_CHECKING

from mrmill.adopt import adopt_study
from mrmill.logs import log_to
from mrmill.shards import process_shard
from mrmill.stages import shard_job

if TYPE_CHECKING:  # what Snakemake injects, for editors and type checkers
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0])
_, job = shard_job(snakemake, "adopt")
process_shard(job, adopt_study)
