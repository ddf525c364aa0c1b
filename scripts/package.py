"""Rule package: hand one shard and space to the library and write its manifest."""

from functools import partial
from typing import TYPE_CHECKING

from mrmill.layout import ReleaseTree
from mrmill.logs import log_to
from mrmill.package import package_study
from mrmill.shards import process_shard
from mrmill.stages import shard_job

if TYPE_CHECKING:  # what Snakemake injects, for editors and type checkers
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0])
space = snakemake.wildcards.space
settings, job = shard_job(snakemake, f"package-{space}")
release = ReleaseTree(settings.release, settings.dataset.name)
with_json = settings.dataset.transform_json
process_shard(job, partial(package_study, space=space, release=release, transform_json=with_json))
