"""mrmill: from an MRI export to a release in the MR-RATE layout.

Read `rules/` in the order of the includes below; that is the way of the data.
"""

from snakemake.utils import min_version

min_version("9.0")


include: "rules/common.smk"


workdir: SETTINGS.work


wildcard_constraints:
    batch=r"batch\d+",
    shard=r"shard\d+",
    space="native|coreg|atlas",


localrules:
    all,
    native,
    coreg,
    atlas,
    tables,


rule all:
    """Every space of the config, and the tables of the release."""
    default_target: True
    input:
        "catalog.json",


if SETTINGS.input.kind == "release":

    include: "rules/adopt.smk"

else:

    include: "rules/convert.smk"
    include: "rules/curate.smk"
    include: "rules/deface.smk"


include: "rules/register.smk"
include: "rules/package.smk"
include: "rules/catalog.smk"


rule native:
    """Zips of every study in native space, without the tables."""
    input:
        packages("native"),


rule coreg:
    """Zips of every study on its center's grid, without the tables."""
    input:
        packages("coreg"),


rule atlas:
    """Zips of every study on the atlas grid, without the tables."""
    input:
        packages("atlas"),


rule tables:
    """Metadata of every batch, splits, ledger, checksums and card."""
    input:
        "catalog.json",
