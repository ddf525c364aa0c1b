"""The workflow as Snakemake sees it: it lints, and every example config gives a plan of jobs."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, environment

EXAMPLES = sorted((ROOT / "config" / "examples").glob("*.yaml"))


def planned(folder, example):
    """Put an example config into a folder with a plan of three shards in two batches."""
    shutil.copy(example, folder / "config.yaml")
    (folder / "work" / "plan").mkdir(parents=True)
    shard = {"n_studies": 2, "n_series": 9, "digest": "x"}
    batches = {"batch00": {"shard0000": shard, "shard0001": shard}, "batch01": {"shard0000": shard}}
    plan = {"format": 1, "batches": batches}
    (folder / "work" / "plan" / "shards.json").write_text(json.dumps(plan))
    return folder / "config.yaml"


def snakemake(config, *arguments):
    command = [sys.executable, "-m", "snakemake", "--configfile", str(config), *arguments]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_dry_run(example, tmp_path):
    config = planned(tmp_path, example)
    result = snakemake(config, "--cores", "1", "--dry-run")
    assert result.returncode == 0, result.stderr
    settings = yaml.safe_load(example.read_text())
    stages = {"register": 3, "package": 3 * len(settings.get("spaces", "nca")), "catalog_batch": 2}
    adopted = settings["input"]["kind"] == "release"
    stages |= {"adopt": 3} if adopted else {"convert": 3, "curate": 3, "deface": 3}
    for rule, jobs in stages.items():
        assert [rule, str(jobs)] in [line.split() for line in result.stdout.splitlines()]


def test_lint(tmp_path):
    result = snakemake(planned(tmp_path, EXAMPLES[0]), "--lint")
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_rule_uses_checkpoints_or_groups():
    text = "".join(p.read_text() for p in [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")])
    assert "checkpoint" not in text
    assert "group:" not in text
