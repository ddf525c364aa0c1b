"""One real rule at a time, through Snakemake, on the tiny phantom."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, environment

from mrmill.records import Journal


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished project that a test may take apart."""
    return shutil.copytree(finished, tmp_path / "project")


def snakemake(project, *targets):
    command = [sys.executable, "-m", "snakemake", *targets, "--cores", "2"]
    command += ["--configfile", str(project / "config.yaml")]
    result = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stderr


def rules_run(output):
    """Names of the rules that Snakemake finished a job of."""
    lines = [line for line in output.splitlines() if line.startswith("Finished jobid")]
    return {line.partition("Rule: ")[2].rstrip(")") for line in lines}


def forget(project, stage):
    """Remove all that a stage made: files, records, manifests."""
    shutil.rmtree(project / "work" / "batch00" / stage)


@pytest.mark.parametrize(
    ("stage", "rule"),
    [
        ("convert", "convert"),
        ("curate", "curate"),
        ("package-native", "package"),
        ("package-coreg", "package"),
        ("package-atlas", "package"),
    ],
)
def test_a_stage_alone_makes_its_manifests_again(copy, finished, stage, rule):
    forget(copy, stage)
    manifests = [f"batch00/{stage}/shard{n:04d}.json" for n in range(2)]
    assert rules_run(snakemake(copy, *manifests)) == {rule}
    for name in manifests:
        assert (copy / "work" / name).read_bytes() == (finished / "work" / name).read_bytes()


def test_a_batch_is_cataloged_again(copy, finished):
    table = "release/TINY/metadata/batch00_metadata.csv"
    (copy / table).unlink()
    (copy / "work/batch00/catalog.json").unlink()
    assert rules_run(snakemake(copy, "batch00/catalog.json")) == {"catalog_batch"}
    assert (copy / table).read_bytes() == (finished / table).read_bytes()


def test_splits_ledger_and_card_are_written_again(copy, finished):
    names = [f"release/TINY/{n}" for n in ("splits.csv", "ledger.csv", "README.md", "SHA256SUMS")]
    for name in names:
        (copy / name).unlink()
    (copy / "work/catalog.json").unlink()
    assert rules_run(snakemake(copy, "tables")) == {"catalog", "tables"}
    for name in names:
        assert (copy / name).read_bytes() == (finished / name).read_bytes()


def test_a_gpu_job_without_cuda_fails_at_once_and_blames_no_study(copy):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda"))
    forget(copy, "deface")
    command = [sys.executable, "-m", "snakemake", "batch00/deface/shard0001.json", "--cores", "1"]
    command += ["--configfile", str(config)]
    result = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "deface.device is cuda" in result.stderr
    assert "Traceback" not in result.stderr
    assert Journal(copy / "work/batch00/deface/shard0001.jsonl").records() == {}
