"""One row per attempt of a job: what it says, held against what the job is known to do."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from mrmill.errors import UserError
from mrmill.layout import ReleaseTree, WorkTree
from mrmill.profile import read_attempts, sampler
from mrmill.profile.attempts import asked_of
from mrmill.profile.steps import step
from mrmill.records import Outcome
from mrmill.shards import ShardJob, process_shard

WHERE = ("batch00", "convert", "shard0000")
GIGABYTE = 10**9

HOLD = f"b = bytearray({GIGABYTE}); import time; time.sleep(2)"
SPIN = """
import time
while time.process_time() < {seconds}:
    pass
"""
ASKED = {"_cores": 3, "mem_mb": 500, "runtime": 7}


def planned_tree(root):
    """Make a work tree with a shard of two studies."""
    tree = WorkTree(root)
    plan = tree.shard_plan("batch00", "shard0000")
    plan.parent.mkdir(parents=True)
    studies = [{"study_uid": f"STUDY{n}", "patient_uid": "P", "series": []} for n in range(2)]
    plan.write_text(json.dumps({"studies": studies}))
    return tree


@pytest.fixture
def work(tmp_path):
    return planned_tree(tmp_path / "work")


def job_on(work, gpu=0, **more):
    release = ReleaseTree(work.root.parent / "release", "X")
    batch, stage, shard = WHERE
    asked = asked_of("convert", {**ASKED, "gpu": gpu})
    return ShardJob(work, release, batch, shard, stage, params={}, asked=asked, **more)


def start_job(work, do, prepare=None, **more):
    """Run a shard job in a process of its own, as Snakemake does."""
    given["do"] = do
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=process_shard, args=(job_on(work, **more), do_given, prepare))
    child.start()
    return child


given = {}


def do_given(study, scratch):
    """Stage function that a pool can pickle; forked processes know what was given."""
    return given["do"](study, scratch)


def row_of_job(work, do, **more):
    start_job(work, do, **more).join()
    return read_attempts(work)[-1]


def run_python(code):
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def two_series(study, scratch):
    entries = [{"series_key": key, "state": "accepted", "reason": ""} for key in "AB"]
    return Outcome(series=entries)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited a minute in vain"
        time.sleep(0.02)


def test_a_row_says_who_worked_where_on_what(work, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    before = time.time()
    row = row_of_job(work, two_series)
    facts = {"rule": "convert", "batch": "batch00", "stage": "convert", "shard": "shard0000"}
    facts |= {"attempt": 1, "state": "done", "threads": 3, "mem_mb": 500, "runtime_min": 7}
    facts |= {"studies": 2, "series": 4, "gpu": None, "job_id": "4711", "host": os.uname().nodename}
    assert {name: row[name] for name in facts} == facts
    assert before - 1 <= row["started"] <= row["ended"] <= time.time() + 1
    assert row["wall_s"] == pytest.approx(row["ended"] - row["started"], abs=0.1)


def held_bytes(work, do, prepare="None", workers=1):
    """Peak of a job of this module in a process that is small by itself, as a real one is."""
    code = (
        f"import sys; sys.path[:0] = {sys.path}\n"
        "import pathlib, test_profile_sampler as t\n"
        f"job = t.job_on(t.WorkTree(pathlib.{work.root!r}), workers={workers})\n"
        f"t.process_shard(job, t.{do}, {prepare})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    return read_attempts(work)[-1]["peak_mb"] * 2**20


def hold_in_a_child(study, scratch):
    if study.study_uid == "STUDY0":
        run_python(HOLD)
    return Outcome()


def test_a_child_that_holds_a_gigabyte_for_two_seconds_is_seen(work):
    assert 0.95 * GIGABYTE <= held_bytes(work, "hold_in_a_child") <= 1.1 * GIGABYTE


def hold_at_once(study, scratch):
    mine = bytearray(GIGABYTE // 4)
    met = scratch.parent / "met"
    met.mkdir(exist_ok=True)
    (met / study.study_uid).touch()
    wait_for(lambda: len(list(met.iterdir())) == 2)
    time.sleep(1)
    del mine
    return Outcome()


def test_what_two_workers_hold_at_once_adds_up(work):
    assert 0.5 * GIGABYTE <= held_bytes(work, "hold_at_once", workers=2) <= 0.72 * GIGABYTE


SHARED = []


def load():
    SHARED.append(bytearray(GIGABYTE // 4))
    SHARED[0][::4096] = b"1" * len(SHARED[0][::4096])


def look_at_shared(study, scratch):
    assert sum(SHARED[0][::4096]) > 0  # every page of it is in this worker's memory too
    time.sleep(1)
    return Outcome()


def test_what_two_workers_share_counts_once(work):
    """The job and two workers have it; counted by process it would be three times that."""
    held = held_bytes(work, "look_at_shared", prepare="t.load", workers=2)
    assert 0.25 * GIGABYTE <= held <= 0.5 * GIGABYTE


def test_the_work_of_short_children_is_counted(work):
    def do(study, scratch):
        for _ in range(5):
            run_python(SPIN.format(seconds=0.05))
        return Outcome()

    row = row_of_job(work, do)
    assert 10 * 0.05 <= row["cpu_s"] <= 10 * 0.05 + 1.0


def test_bytes_of_children_that_ended_are_counted(work, tmp_path):
    (tmp_path / "source").write_bytes(bytes(30 * 2**20))

    def do(study, scratch):
        subprocess.run(["cp", tmp_path / "source", tmp_path / study.study_uid], check=True)
        os.truncate(tmp_path / study.study_uid, 0)
        with (tmp_path / study.study_uid).open("wb") as file:
            file.write(bytes(10 * 2**20))
        return Outcome()

    row = row_of_job(work, do)
    # cp may have the kernel copy, which counts as neither
    assert 2 * 10 <= row["written_mb"] <= 2 * (30 + 10) + 5
    assert row["read_mb"] <= 2 * 30 + 20


def test_a_failed_attempt_leaves_a_row_and_the_next_a_second_one(work):
    def broken(study, scratch):
        raise UserError("the machine is broken")

    assert row_of_job(work, broken)["state"] == "failed"
    assert row_of_job(work, two_series)["state"] == "done"
    found = [(r["attempt"], r["state"], r["studies"]) for r in read_attempts(work)]
    assert found == [(1, "failed", 0), (2, "done", 2)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_job_leaves_a_row_with_what_was_known(work, workers):
    def do(study, scratch):
        run_python(f"b = bytearray({GIGABYTE // 5}); import time; time.sleep(1)")
        if study.study_uid == "STUDY0":
            os.kill(job_pid(), signal.SIGKILL)
        time.sleep(30)
        return Outcome()

    def job_pid():
        return os.getpid() if workers == 1 else os.getppid()

    start_job(work, do, workers=workers).join()
    wait_for(lambda: '"killed"' in work.attempts(*WHERE).read_text())
    (row,) = read_attempts(work)
    assert row["state"] == "killed"
    assert row["peak_mb"] * 2**20 >= 0.2 * GIGABYTE
    assert row["wall_s"] >= 1


def test_a_job_that_is_told_to_stop_was_killed(work):
    job = start_job(work, lambda study, scratch: time.sleep(30))
    wait_for(lambda: work.attempts(*WHERE).exists())
    job.terminate()
    job.join()
    (row,) = read_attempts(work)
    assert row["state"] == "killed"


def test_when_all_dies_at_once_a_row_stands_that_is_read_as_killed(work):
    """As when the machine goes: not even the sampler says more."""
    job = start_job(work, lambda study, scratch: time.sleep(30))
    wait_for(work.attempts(*WHERE).exists)
    assert [row["state"] for row in read_attempts(work)] == ["running"]
    for pid in (*children_of(job.pid), job.pid):
        os.kill(pid, signal.SIGKILL)
    job.join()
    assert json.loads(work.attempts(*WHERE).read_text())["state"] == "running"
    assert [row["state"] for row in read_attempts(work)] == ["killed"]
    assert row_of_job(work, two_series)["attempt"] == 2
    assert [row["state"] for row in read_attempts(work)] == ["killed", "done"]


def children_of(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


def test_a_job_without_its_sampler_goes_on(work):
    def do(study, scratch):
        for pid in children_of(os.getpid()):  # the sampler, and the ps that is gone
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return Outcome()

    job = start_job(work, do)
    job.join()
    assert job.exitcode == 0
    assert work.manifest(*WHERE).exists()


def test_snakemake_processes_started_for_the_job_alone_are_part_of_it(work, tmp_path):
    """Locally and under Slurm a Snakemake that was given one target job starts the script."""
    script = tmp_path / "launch.py"
    script.write_text(
        f"import os, sys\nheld = bytearray({GIGABYTE // 5})\n"
        "os.waitpid(os.posix_spawn(sys.argv[3], sys.argv[3:], os.environ), 0)\n"
    )
    launcher = [sys.executable, "-I", "-S", script, "--target-jobs", "convert:shard=shard0000"]
    other = [sys.executable, "-I", "-S", script, "--all", "x"]
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from test_profile_sampler import job_on, two_series, WorkTree, process_shard\n"
        f"from pathlib import Path\nprocess_shard(job_on(WorkTree(Path({str(work.root)!r}))), "
        "two_series)"
    )
    for command in (launcher, other):
        subprocess.run([*command, sys.executable, "-c", code], check=True)
    with_launcher, without = read_attempts(work)
    assert with_launcher["state"] == without["state"] == "done"
    assert with_launcher["peak_mb"] - without["peak_mb"] == pytest.approx(200, rel=0.15)


FAKE_DRIVER = """
class NVMLError(Exception): pass
class Told:
    def __init__(self, **facts): self.__dict__.update(facts)
nvmlInit = lambda: None
nvmlDeviceGetCount = lambda: 2
nvmlDeviceGetHandleByIndex = lambda number: number
def nvmlDeviceGetHandleByUUID(name): return {"GPU-b": 1}[name]
nvmlDeviceGetUtilizationRates = lambda device: Told(gpu=(10, 80)[device])
nvmlDeviceGetMemoryInfo = lambda device: Told(used=(1, 6)[device] * 2**30)
def nvmlDeviceGetComputeRunningProcesses(device): raise NVMLError
"""


@pytest.mark.parametrize(
    ("visible", "busy", "peak_gb"), [("GPU-b", 0.8, 6), ("1", 0.8, 6), ("0", 0.1, 1), ("", 0.1, 1)]
)
def test_the_gpu_that_a_job_holds_is_watched(work, tmp_path, monkeypatch, visible, busy, peak_gb):
    """Against a driver whose first GPU is 10 % busy and whose second one 80 %."""
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "pynvml.py").write_text(FAKE_DRIVER)
    monkeypatch.syspath_prepend(tmp_path / "driver")
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)  # torch may have loaded the real one
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    row = row_of_job(work, two_series, gpu=1)
    assert row["gpu"]["busy_share"] == busy
    assert row["gpu"]["peak_mb"] == 1024 * peak_gb
    assert row["gpu"]["held_s"] == pytest.approx(row["wall_s"], abs=0.1)


def test_a_gpu_job_on_a_machine_without_a_driver_has_a_row_too(work):
    row = row_of_job(work, two_series, gpu=1)
    assert (row["state"], row["gpu"]) == ("done", None)


def test_a_job_goes_on_where_no_process_can_be_started_for_its_sampler(work, monkeypatch):
    def refuse(*arguments, **options):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    process_shard(job_on(work), two_series)
    assert work.manifest(*WHERE).exists()
    assert read_attempts(work) == []


def test_a_torn_file_of_attempts_keeps_its_whole_lines(work):
    row_of_job(work, two_series)
    with work.attempts(*WHERE).open("a") as file:
        file.write('{"rule": "conv')
    assert row_of_job(work, two_series)["attempt"] == 2
    assert [row["attempt"] for row in read_attempts(work)] == [1, 2]


def test_the_peak_of_a_slurm_jobs_own_cgroup_is_found(monkeypatch):
    mine = "0::/system.slice/slurmstepd.scope/job_17/step_0/user/task_0\n"
    peak = "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_17/memory.peak"
    files = {"/proc/self/cgroup": mine, peak: str(300 * 2**20)}
    monkeypatch.setattr(sampler, "read", lambda path: files.get(path, ""))
    monkeypatch.setattr(sampler.os.path, "exists", lambda path: path in files)
    assert sampler.read_peak(sampler.peak_file("17")) == 300
    assert sampler.peak_file("1") == ""
    assert sampler.peak_file("") == ""


def test_steps_of_a_study_are_in_its_record_and_in_no_digest(work):
    def with_steps(study, scratch):
        for _ in range(2):
            with step("spin"):
                end = time.process_time() + 0.05
                while time.process_time() < end:
                    pass
        with step("child"):
            run_python(SPIN.format(seconds=0.1))
        return two_series(study, scratch)

    start_job(work, with_steps, workers=2).join()
    with_records = job_on(work).journal.records()
    digests = {uid: record.content for uid, record in with_records.items()}
    for record in with_records.values():
        steps = record.usage["steps"]
        assert (steps["spin"]["n"], steps["child"]["n"]) == (2, 1)
        assert 0.1 <= steps["spin"]["cpu_s"] <= 0.2
        assert 0.1 <= steps["child"]["cpu_s"] <= 0.3
        assert steps["child"]["wall_s"] >= 0.1
        assert steps["spin"]["wall_s"] <= record.usage["wall_s"]
        assert abs(record.usage["ended"] - time.time()) < 60
    work.journal(*WHERE).unlink()
    start_job(work, two_series).join()
    assert {uid: r.content for uid, r in job_on(work).journal.records().items()} == digests
