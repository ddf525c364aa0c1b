"""Rule register: hand one shard to the library and write its manifest."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mrmill.decisions import read_decisions
from mrmill.logs import log_to
from mrmill.register import register_study
from mrmill.register.atlas import load_atlas
from mrmill.register.engines import warm_up
from mrmill.shards import process_shard
from mrmill.stages import shard_job

if TYPE_CHECKING:  # what Snakemake injects, for editors and type checkers
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0])
settings, job = shard_job(snakemake, "register")
register = settings.register_
atlas = load_atlas(register) if "atlas" in settings.spaces else None
decisions = read_decisions(register.decisions, "register.decisions")
do = partial(register_study, settings=register, atlas=atlas, decisions=decisions)
process_shard(replace(job, per_study=decisions), do, prepare=warm_up)
