"""Rule catalog: hand the whole release to the library and write its manifest."""

from typing import TYPE_CHECKING

from mrmill.catalog import catalog_release
from mrmill.columns import load_columns, published
from mrmill.config import Config
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.logs import log_to
from mrmill.provenance import facts
from mrmill.records import write_json
from mrmill.register.atlas import load_atlas
from mrmill.stages import table_job

if TYPE_CHECKING:  # what Snakemake injects, for editors and type checkers
    from snakemake.iocontainers import snakemake

log_to(snakemake.log[0])
settings = Config.model_validate(snakemake.config)
in_atlas = "atlas" in settings.spaces
with table_job(settings, "catalog", "all", snakemake.resources):
    manifest = catalog_release(
        WorkTree(settings.work),
        ReleaseTree(settings.release, settings.dataset.name),
        snakemake.params.batches,
        settings.spaces,
        settings.dataset,
        published(load_columns(settings.convert.header_columns), settings.dataset.extra_columns),
        facts(settings),
        load_atlas(settings.register_).described() if in_atlas else None,
    )
    write_json(settings.work / snakemake.output.manifest, manifest)
