"""A job's folder for temporary files: used by everybody in the job, and gone afterwards."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mrmill.scratch import job_scratch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def node_disk(tmp_path, monkeypatch):
    """$TMPDIR of a node."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_temporary_files_are_in_the_jobs_folder_and_go_with_it(node_disk):
    with job_scratch() as folder:
        assert folder.parent == node_disk
        assert folder.stat().st_mode & 0o077 == 0
        assert Path(tempfile.mkdtemp()).parent == folder
        command = [sys.executable, "-c", "import tempfile; print(tempfile.mkstemp()[1])"]
        child = subprocess.run(command, capture_output=True, text=True, check=True)
        assert Path(child.stdout).parent == folder
    assert list(node_disk.iterdir()) == []
    assert os.environ["TMPDIR"] == str(node_disk)
    assert tempfile.gettempdir() == str(node_disk)


def fail():
    with job_scratch() as folder:
        (folder / "image").touch()
        raise OSError


def test_a_failing_job_leaves_nothing(node_disk):
    with pytest.raises(OSError):  # noqa: PT011
        fail()
    assert list(node_disk.iterdir()) == []


def other_job():
    """Start a job in a process of its own; it ends when it is killed."""
    text = (
        "import time, sys; from mrmill.scratch import job_scratch\n"
        "with job_scratch() as folder: (folder / 'image').touch(); print(folder, flush=True); "
        "time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_what_a_killed_job_left_goes_and_a_living_ones_stays(node_disk):
    with other_job() as killed, other_job() as alive:
        left, kept = (Path(job.stdout.readline().strip()) for job in (killed, alive))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "image").exists()
        (node_disk / "somebody-elses").touch()
        with job_scratch():
            pass
        assert sorted(node_disk.iterdir()) == sorted([kept, node_disk / "somebody-elses"])
        assert (kept / "image").exists()
        alive.kill()
