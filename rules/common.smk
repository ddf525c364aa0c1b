"""Settings, the plan, and the few helpers that rules share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))

from mrmill import workflow_files as files
from mrmill.config import digest_of
from mrmill.layout import MANIFEST
from mrmill.stages import catalog_params, stage_params, stages_in

SETTINGS = files.settings_for(config, workflow.configfiles)
PLAN = files.read_plan(SETTINGS)


def manifests(stage, batch):
    """Manifests of every shard of a batch in one stage."""
    return [MANIFEST.format(batch=batch, stage=stage, shard=s) for s in PLAN[batch]]


def packages(space):
    """Manifests of the zips of one space, of every shard of every batch."""
    return [path for batch in PLAN for path in manifests(f"package-{space}", batch)]


def registered_for_space(wildcards):
    """Manifest of the registration behind a space; native space needs none."""
    if wildcards.space == "native":
        return []
    return MANIFEST.format(
        batch=wildcards.batch, stage="register", shard=wildcards.shard
    )


def all_stages(wildcards):
    """Manifests of every stage and shard behind the tables of a batch."""
    made = [manifests(stage, wildcards.batch) for stage in stages_in(SETTINGS)]
    return [path for paths in made for path in paths]


def planned_studies(wildcards):
    """Digest of the files behind a shard: new ones redo the shard, nothing else does."""
    return PLAN[wildcards.batch][wildcards.shard]["digest"]


def decisions_digest(table):
    """Digest of a table of decisions: a changed one redoes the studies it speaks of."""
    return digest_of(table) if table else None


def threads_for(rule):
    """Cores that a rule asks for."""
    return files.rule_resources(SETTINGS, rule).threads


def mem_mb_for(rule):
    """Memory in MB, more with every attempt."""
    return (
        lambda wildcards, attempt: files.rule_resources(SETTINGS, rule).mem_mb * attempt
    )


def runtime_for(rule):
    """Minutes for the studies of a shard, more with every attempt."""
    per_study = files.rule_resources(SETTINGS, rule).runtime_min_per_study

    def minutes(wildcards, attempt):
        studies = PLAN[wildcards.batch][wildcards.shard]["n_studies"]
        return int(10 + per_study * studies * attempt)

    return minutes
