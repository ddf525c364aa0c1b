"""The stages in order: what each reads, and what its results depend on."""

from dataclasses import dataclass
from typing import Any

from mrmill.columns import load_columns, read_sources
from mrmill.config import Config, digest_of
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.records import digest
from mrmill.shards import ShardJob


@dataclass(frozen=True)
class Stage:
    """One stage of the way of the data.

    Attributes
    ----------
    version : int
        Goes up when what the stage writes changes for equal input and settings; every study is
        then done again from here.
    needs : tuple of str
        Stages whose records and files it reads.
    """

    version: int
    needs: tuple[str, ...]


STAGES = {
    "convert": Stage(version=2, needs=()),
    "curate": Stage(version=2, needs=("convert",)),
    "deface": Stage(version=1, needs=("convert", "curate")),
    "register": Stage(version=2, needs=("deface",)),
    "package-native": Stage(version=1, needs=("deface",)),
    "package-coreg": Stage(version=1, needs=("deface", "register")),
    "package-atlas": Stage(version=1, needs=("deface", "register")),
    # an input that is a release already: fills the place of convert, curate and deface
    "adopt": Stage(version=1, needs=()),
}

#: Stage whose folder a stage fills, where that is not its own.
STANDS_FOR = {"adopt": "deface"}


def stage_params(config: Config, stage: str) -> dict[str, Any]:
    """Return all that a stage's results depend on besides the studies: its params and its key.

    Paths are replaced by digests of what they hold, so neither place nor time stamps matter.
    """
    blocks = {
        "convert": config.convert,
        "curate": config.curate,
        "deface": config.deface,
        "register": config.register_,
    }
    settings = blocks[stage].key_settings() if stage in blocks else {}
    if stage == "convert":
        columns = load_columns(config.convert.header_columns)
        settings["header_columns"] = digest(read_sources(columns))
    elif stage == "curate":
        settings["header_columns"] = digest_of(config.convert.header_columns)
    elif stage == "register":
        settings["atlas_space"] = "atlas" in config.spaces
    elif stage.startswith("package-"):
        settings["name"] = config.dataset.name
        if stage != "package-native":
            settings["transform_json"] = config.dataset.transform_json
    return {"version": STAGES[stage].version, "settings": settings}


def catalog_params(config: Config) -> dict[str, Any]:
    """Return what the tables of a release depend on besides the shards' records."""
    columns = digest_of(config.convert.header_columns)
    dataset = config.dataset.key_settings()
    curate = config.curate.key_settings()
    return {
        "version": 2,
        "dataset": dataset,
        "spaces": config.spaces,
        "columns": columns,
        "criteria": (curate["acceptance"], curate["limits"]),
    }


def shard_job(
    config: dict[str, Any], stage: str, where: Any, params: dict[str, Any], workers: int
) -> tuple[Config, ShardJob]:
    """Return the settings and the job of a rule.

    Parameters
    ----------
    config : dict
        What Snakemake hands to a script: already checked, every path absolute.
    where : object
        Has `batch` and `shard`: the rule's wildcards.
    params : dict
        What `stage_params` gave when the workflow was read.
    workers : int
        Processes to work in; 1 for a stage that holds a device or brings its own threads.
    """
    settings = Config.model_validate(config)
    job = ShardJob(
        work=WorkTree(settings.work),
        release=ReleaseTree(settings.release, settings.dataset.name),
        batch=where.batch,
        shard=where.shard,
        stage=STANDS_FOR.get(stage, stage),
        params=params,
        needs=STAGES[stage].needs,
        workers=workers,
        max_failed_fraction=settings.max_failed_fraction,
    )
    return settings, job
