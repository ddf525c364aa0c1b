"""What a run knows about Slurm, with commands that stand in for Slurm's own."""

import os
from pathlib import Path

import pytest

from mrmill import slurm

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "used"),
    [
        (["--profile", str(ROOT / "profiles/slurm")], True),
        ([f"--profile={ROOT / 'profiles/slurm'}", "-n"], True),
        (["--executor", "slurm"], True),
        (["-e=slurm"], True),
        (["--profile", str(ROOT / "profiles/cluster-generic")], False),
        (["--profile", str(ROOT / "profiles/slurm"), "--executor", "local"], False),
        (["--profile", "no-such-profile"], False),
        (["--cores", "2", "slurm"], False),
        ([], False),
    ],
)
def test_slurm_is_recognised_by_executor_or_profile(arguments, used):
    assert slurm.is_used(arguments) is used


def test_job_names_tell_work_trees_apart_and_nothing_about_them(tmp_path):
    names = {slurm.job_prefix(tmp_path / name) for name in ("Smith", "Jones")}
    assert len(names) == 2
    assert names == {slurm.job_prefix(tmp_path / name) for name in ("Smith", "x/../Jones")}
    for name in names:
        assert name.replace("-", "").isalnum(), "the executor takes no other characters"
        assert not any(part in name for part in ("Smith", "Jones", tmp_path.name))


def test_a_run_forgets_the_job_it_is_in_but_not_where_slurm_is(monkeypatch):
    inherited = {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "100", "SLURM_CONF": "/x/slurm.conf"}
    for name, value in inherited.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    slurm.leave_job()
    assert {n for n in os.environ if n.startswith("SLURM_")} == {"SLURM_CONF"}
    assert os.environ["SBATCH_ACCOUNT"] == "mine"


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """File with the queue, `ID NAME` per line, that `squeue` shows and `scancel` edits."""
    path = tmp_path / "queue"
    commands = {"squeue": f"cat {path}", "scancel": f'for id; do sed -i "/^$id /d" {path}; done'}
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return path


def test_only_jobs_of_this_work_tree_are_ended(queue):
    queue.write_text("11 mrmill-aa_1\n12 mrmill-bb_1\n13 mrmill-aa_2\n14 something else\n")
    assert slurm.end_jobs("mrmill-aa") == 2
    assert queue.read_text() == "12 mrmill-bb_1\n14 something else\n"
    assert slurm.end_jobs("mrmill-aa") == 0


def test_a_queue_that_does_not_answer_stops_nothing(queue, caplog):
    (queue.parent / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert slurm.end_jobs("mrmill-aa") == 0
    assert "squeue does not answer" in caplog.text
