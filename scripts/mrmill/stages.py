"""The stages in order: what each reads, and what its results depend on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mrmill.columns import load_columns, read_sources
from mrmill.config import Config, Convert, digest_of
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.lease import Lease
from mrmill.ledger import stages_of
from mrmill.profile.attempts import asked_of, watched
from mrmill.records import Outcome, digest
from mrmill.shards import LEASE_WAIT_S, ShardJob, StageFunction, Study
from mrmill.spent import ShardFiles


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
    "register": Stage(version=3, needs=("deface",)),
    "package-native": Stage(version=1, needs=("deface",)),
    "package-coreg": Stage(version=1, needs=("deface", "register")),
    "package-atlas": Stage(version=1, needs=("deface", "register")),
    # an input that is a release already: fills the place of convert, curate and deface
    "adopt": Stage(version=1, needs=()),
}

#: Stage whose folder a stage fills, where that is not its own.
STANDS_FOR = {"adopt": "deface"}


def stages_in(config: Config) -> list[str]:
    """Return the stages of a run, in their order, by the names of their folders."""
    return stages_of(config.spaces, config.input.kind == "release")


def all_needs(config: Config) -> Mapping[str, tuple[str, ...]]:
    """Return stage -> stages whose files it reads, for every stage of a run."""
    made = stages_in(config)
    return {stage: tuple(s for s in STAGES[stage].needs if s in made) for stage in made}


def make_again(config: Config) -> Mapping[str, StageFunction]:
    """Return stage -> stage function, for those that make their files from the input."""
    if config.input.kind == "release":
        return {STANDS_FOR["adopt"]: _adopt_again}
    return {"convert": partial(_convert_again, settings=config.convert)}


def _adopt_again(study: Study, scratch: Path) -> Outcome:
    from mrmill.adopt import adopt_study  # few jobs need it, and it takes a while to load

    return adopt_study(study, scratch)


def _convert_again(study: Study, scratch: Path, settings: Convert) -> Outcome:
    from mrmill.convert import convert_study

    return convert_study(study, scratch, settings)


def shard_files(config: Config, batch: str, shard: str) -> ShardFiles:
    """Return the files of a shard."""
    return ShardFiles(
        WorkTree(config.work),
        ReleaseTree(config.release, config.dataset.name),
        batch,
        shard,
        all_needs(config),
        frozenset(make_again(config)),
    )


def remove_spent(config: Config, batch: str, shard: str) -> None:
    """Remove what no stage needs any more of a shard, unless all is to be kept."""
    if not config.keep_intermediates:
        files = shard_files(config, batch, shard)
        for stage in files.needs:
            files.remove_spent(stage)


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


def shard_job(call: Any, stage: str, workers: int | None = None) -> tuple[Config, ShardJob]:
    """Return the settings and the job of a rule.

    Parameters
    ----------
    call : object
        What Snakemake hands to a script. Its `config` is checked already, with absolute paths;
        `wildcards` are batch and shard; `params.stage` is what `stage_params` gave.
    workers : int, optional
        Processes to work in, if not one per thread: 1 for a stage that holds a device or brings
        its own threads.
    """
    settings = Config.model_validate(call.config)
    job = ShardJob(
        work=WorkTree(settings.work),
        release=ReleaseTree(settings.release, settings.dataset.name),
        batch=call.wildcards.batch,
        shard=call.wildcards.shard,
        stage=STANDS_FOR.get(stage, stage),
        params=call.params.stage,
        needs=STAGES[stage].needs,
        workers=workers or call.threads,
        max_failed_fraction=settings.max_failed_fraction,
        asked=asked_of(stage.partition("-")[0], call.resources),
        all_needs=all_needs(settings),
        make_again=make_again(settings),
        keep_intermediates=settings.keep_intermediates,
    )
    return settings, job


@contextmanager
def table_job(config: Config, rule: str, batch: str, resources: Any) -> Iterator[None]:
    """Be the only one who writes tables, and leave a row of what that took.

    Parameters
    ----------
    batch : str
        `all` for those of the whole release.
    """
    job = ShardJob(
        work=WorkTree(config.work),
        release=ReleaseTree(config.release, config.dataset.name),
        batch=batch,
        shard="all",
        stage="catalog",
        params={},
        asked=asked_of(rule, resources),
    )
    with Lease(job.work.lease(batch, "catalog", "all"), LEASE_WAIT_S), watched(job):
        yield
