"""Rule catalog_batch: hand one batch to the library and write its manifest."""

from typing import TYPE_CHECKING

from mrmill.catalog import catalog_batch
from mrmill.columns import load_columns, published
from mrmill.config import Config
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.logs import log_to
from mrmill.records import write_json
from mrmill.stages import remove_spent, table_job

if TYPE_CHECKING:  # what Snakemake injects, for editors and type checkers
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0])
settings = Config.model_validate(snakemake.config)
with table_job(settings, "catalog_batch", snakemake.wildcards.batch, snakemake.resources):
    manifest = catalog_batch(
        WorkTree(settings.work),
        ReleaseTree(settings.release, settings.dataset.name),
        snakemake.wildcards.batch,
        snakemake.params.shards,
        settings.spaces,
        published(load_columns(settings.convert.header_columns), settings.dataset.extra_columns),
    )
    for shard in snakemake.params.shards:
        remove_spent(settings, snakemake.wildcards.batch, shard)
    write_json(settings.work / snakemake.output.manifest, manifest)
