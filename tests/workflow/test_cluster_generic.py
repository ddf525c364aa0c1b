"""The profile for schedulers other than Slurm, with commands that stand in for those of PBS."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, mrmill, project

PROFILE = ROOT / "profiles" / "cluster-generic"

#: Starts the job's script on this machine, and notes what it was asked for and how it ended.
QSUB = """\
#!/bin/sh
id=$(mktemp -d {folder}/jobs/XXXXXX)
echo "$@" > $id/asked
for script; do :; done
( setsid sh "$script" > $id/output 2>&1; echo $? > $id/exit ) > /dev/null 2>&1 &
echo $(basename $id).pbs
"""

#: Answers in the words of `qstat -x -f` of PBS Pro.
QSTAT = """\
#!/bin/sh
for name; do :; done
id={folder}/jobs/${{name%.pbs}}
[ -d $id ] || exit 35
echo "Job Id: $name"
[ -f $id/exit ] && printf '    job_state = F\\n    Exit_status = %s\\n' $(cat $id/exit)
[ -f $id/exit ] || echo '    job_state = R'
"""


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """Folder with what jobs were asked for; `qsub` and `qstat` are in the PATH."""
    commands = tmp_path / "bin"
    for folder in (commands, tmp_path / "jobs"):
        folder.mkdir()
    for name, text in (("qsub", QSUB), ("qstat", QSTAT)):
        (commands / name).write_text(text.format(folder=tmp_path))
        (commands / name).chmod(0o755)
    python = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{commands}:{PROFILE}:{python}:{os.environ['PATH']}")
    return tmp_path / "jobs"


def test_jobs_go_through_the_scheduler_with_what_they_need(scheduler, tiny_export, tmp_path):
    config = project(tmp_path / "project", input={"path": str(tiny_export)})
    target = "batch00/deface/shard0000.json"
    result = mrmill(
        *("run", "-c", config, "--profile", PROFILE, "--seconds-between-status-checks", 1),
        *("--latency-wait", 5, target),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "project" / "work" / target).exists()
    asked = [path.read_text().split() for path in scheduler.glob("*/asked")]
    found = {(words[words.index("-q") + 1], words[words.index("-l") + 1]) for words in asked}
    assert found == {
        ("cpu", "select=1:ncpus=4:mem=4000mb:ngpus=0"),
        ("cpu", "select=1:ncpus=1:mem=2000mb:ngpus=0"),
        ("gpu", "select=1:ncpus=8:mem=24000mb:ngpus=1"),
    }
    assert not [words for words in asked if "CANARY" in " ".join(words).upper()]


def test_a_job_that_the_scheduler_has_forgotten_counts_as_failed(scheduler):
    def said(job):
        command = [PROFILE / "mrmill-pbs-status", job]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    for name, code, word in (("good", "0", "success"), ("bad", "1", "failed")):
        (scheduler / name).mkdir()
        (scheduler / name / "exit").write_text(code)
        assert said(f"{name}.pbs") == word
    (scheduler / "busy").mkdir()
    assert said("busy.pbs") == "running"
    assert said("unknown.pbs") == "failed"
