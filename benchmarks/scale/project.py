"""Projects of any size without images: plans, manifests, journals, and a checkout to run them."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from benchmarks.scale.nothing import do_nothing
from mrmill.config import ROOT, Config, load_config
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.reasons import FAILED
from mrmill.records import Outcome, Record, manifest_of, signed
from mrmill.shards import Study
from mrmill.stages import stages_in

#: MR-RATE: series and studies of its release, and its batches.
SERIES, STUDIES, BATCHES = 705_254, 98_334, 28

HERE = Path(__file__).parent

#: Stages whose work is replaced by `nothing.do_nothing`; packaging and tables are the real ones.
REPLACED = ("convert", "curate", "deface", "register")

SCRIPT = '''"""Rule {stage}, without its work."""

from functools import partial

from mrmill.logs import log_to
from mrmill.shards import process_shard
from mrmill.stages import shard_job
from nothing import do_nothing

log_to(snakemake.log[0])
settings, job = shard_job(snakemake, "{stage}", workers=1)
process_shard(job, partial(do_nothing, stage="{stage}"))
'''


@dataclass(frozen=True)
class Project:
    """A folder with a config, a work tree and a release.

    Parameters
    ----------
    checkout : Path
        The code that runs it: this one, or one whose stages do nothing (`without_work`).
    """

    folder: Path
    checkout: Path = ROOT

    @property
    def config_file(self) -> Path:
        """The config of the project."""
        return self.folder / "config.yaml"

    @cached_property
    def config(self) -> Config:
        """Its settings."""
        return load_config(self.config_file)

    @property
    def work(self) -> WorkTree:
        """Its work tree."""
        return WorkTree(self.config.work)

    @property
    def release(self) -> ReleaseTree:
        """Its release."""
        return ReleaseTree(self.config.release, self.config.dataset.name)

    def create(self, **settings: Any) -> "Project":
        """Write the config."""
        self.folder.mkdir(parents=True, exist_ok=True)
        resources = {stage: {"threads": 1} for stage in REPLACED}
        common = {"deface": {"backend": "deepbet", "device": "cpu"}, "resources": resources}
        text = yaml.safe_dump({**common, **settings})
        self.config_file.write_text(text, encoding="utf-8")
        return self

    def mrmill(self, *arguments: object) -> list[str]:
        """Return a call of the command."""
        return [sys.executable, "-m", "mrmill", *map(str, arguments)]

    def snakemake(self, *arguments: object) -> list[str]:
        """Return the call that `mrmill run` makes, with further arguments."""
        return [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(self.checkout / "Snakefile")),
            *("--configfile", str(self.config_file), "--directory", str(self.work.root)),
            *("--nolock", "--cores", "2", "--profile", str(self.checkout / "profiles" / "local")),
            *map(str, arguments),
        ]

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the calls: the checkout's library."""
        path = str(self.checkout / "scripts")
        return {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}

    def call(self, command: list[str]) -> str:
        """Run a command of the project; return what it printed."""
        result = subprocess.run(
            command, env=self.environment, cwd=self.checkout, capture_output=True, text=True
        )
        if result.returncode:
            raise RuntimeError(f"{command}\n{result.stdout}\n{result.stderr}")
        return result.stdout + result.stderr


def without_work(folder: Path) -> Path:
    """Copy the code into a folder and take the work out of its stages."""
    for name in ("rules", "scripts", "profiles", "config", "envs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "Snakefile", folder)
    for stage in REPLACED:
        (folder / "scripts" / f"{stage}.py").write_text(SCRIPT.format(stage=stage))
    for name in ("nothing.py", "series.json"):
        shutil.copy(HERE / name, folder / "scripts")
    return folder


@dataclass(frozen=True)
class Size:
    """How many studies, series and batches; what a shard holds is the default of the config."""

    studies: int = STUDIES
    series: int = SERIES
    batches: int = BATCHES
    per_shard: int = 48

    def plan(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return batch -> shard -> what `shards.json` says of it."""
        plan: dict[str, dict[str, dict[str, Any]]] = {}
        for number in range(self.batches):
            first, last = (self.studies * n // self.batches for n in (number, number + 1))
            batch = plan[f"batch{number:02d}"] = {}
            for start in range(first, last, self.per_shard):
                end = min(start + self.per_shard, last)
                shard = f"shard{len(batch):04d}"
                batch[shard] = {
                    "n_studies": end - start,
                    "n_series": self.series * end // self.studies
                    - self.series * start // self.studies,
                    "digest": hashlib.sha256(f"{number} {shard}".encode()).hexdigest(),
                }
        return plan


def write_plan(project: Project, size: Size) -> dict[str, dict[str, dict[str, Any]]]:
    """Write the part of a plan that the workflow and the status read."""
    plan = size.plan()
    write(project.work.shards, {"format": 1, "batches": plan})
    return plan


def finish(project: Project, plan: dict[str, dict[str, dict[str, Any]]], open_batch: str) -> None:
    """Write the manifests of all batches; in one batch, journals of half-done shards instead."""
    outcomes = invented_outcomes()
    for batch, shards in plan.items():
        for stage in stages_in(project.config):
            for shard, facts in shards.items():
                uids = invented_uids(batch, shard, facts["n_studies"])
                if batch == open_batch:
                    path = project.work.journal(batch, stage, shard)
                    write_journal(path, outcomes.get(stage, Outcome()), uids[: len(uids) // 2])
                else:
                    write_manifest(project.work, batch, stage, shard, uids)


def invented_uids(batch: str, shard: str, count: int) -> list[str]:
    """Return the uids of a shard's studies."""
    digests = (hashlib.sha256(f"{batch} {shard} {n}".encode()).digest() for n in range(count))
    return [base64.b32encode(digest)[:10].decode() for digest in digests]


def invented_outcomes() -> dict[str, Outcome]:
    """Return what the stages say of a study of seven series."""
    study = Study("S", "P", "batch00", plan={"series": [{"series_key": key} for key in "ABCDEFG"]})
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage in REPLACED:
            outcomes[stage] = do_nothing(study, Path(folder), stage)
            study.upstream[stage] = Record("S", "key", outcomes[stage])
    return outcomes


def write_manifest(work: WorkTree, batch: str, stage: str, shard: str, uids: list[str]) -> None:
    """Write the manifest of a shard in which one study failed."""
    failed = Outcome(FAILED, "error", error="ValueError deface.py:1")
    outcomes = [failed] + [Outcome()] * (len(uids) - 1)
    records = (Record(uid, "key", o) for uid, o in zip(uids, outcomes, strict=True))
    where = {"stage": stage, "batch": batch, "shard": shard}
    write(work.manifest(batch, stage, shard), {**where, **manifest_of(records)})


def write_journal(path: Path, outcome: Outcome, uids: list[str]) -> None:
    """Write a journal of studies that are done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for number, uid in enumerate(uids):
            usage = {"wall_s": 1.0, "ended": time.time() - 3600 + number}
            record = Record(uid, "key", outcome, usage=usage)
            file.write(signed({"event": "start", "study_uid": uid}) + b"\n")
            file.write(signed(record.to_line()) + b"\n")


def write(path: Path, values: Any) -> None:
    """Write JSON without waiting for the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
