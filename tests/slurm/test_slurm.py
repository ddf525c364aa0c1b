"""The tiny phantom through a real Slurm: where jobs run, what they show, and what stops nothing.

`make test-slurm` runs one pass and three kills; `make test-faults` everything else that goes wrong
on a cluster, one by one, and writes docs/faults.md.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cluster import cluster, missing
from conftest import ROOT, environment, project, release_files

from mrmill import lease
from mrmill.layout import WorkTree
from mrmill.profile import read_attempts
from mrmill.records import Journal

HERE = Path(__file__).parent
PROFILE = ROOT / "profiles" / "slurm"

pytestmark = pytest.mark.slurm

#: Small enough that two shards of every stage find room at once.
RESOURCES = {
    "convert": {"threads": 2, "mem_mb": 2000},
    "deface": {"threads": 2, "mem_mb": 6000},
    "register": {"threads": 2, "mem_mb": 6000},
}


@dataclass
class Site:
    """The cluster as its user sees it: an environment in which Slurm's commands work."""

    variables: dict

    def __call__(self, *command):
        """Run a command of Slurm and return what it says."""
        done = subprocess.run(
            list(map(str, command)), env={**os.environ, **self.variables},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout

    def accounted(self, run=""):
        """What accounting knows about every job whose name begins so."""
        names = ("JobIDRaw", "JobName", "Partition", "AllocTRES", "Comment", "State", "NodeList")
        table = self("sacct", "-X", "-n", "-P", "-S", "now-1days", f"-o{','.join(names)}")
        rows = (dict(zip(names, line.split("|"), strict=True)) for line in table.splitlines())
        return [row for row in rows if row["JobName"].startswith(run)]

    def queued(self, batch, stage, shard):
        """Id of the job of a batch, stage and shard that is in the queue."""
        for line in self("squeue", "-h", "-o%i %k").splitlines():
            job_id, comment = line.split()
            if comment == f"rule_{stage}_wildcards_{batch}_{shard}":
                return job_id
        return None


@pytest.fixture(scope="session")
def site():
    absent = missing()
    if absent and "MRMILL_WITHOUT_SLURM" in os.environ:
        pytest.skip(f"MRMILL_WITHOUT_SLURM is set, and not installed: {', '.join(absent)}")
    if absent:
        pytest.fail(
            f"not installed: {', '.join(absent)}\n  apt-get install slurm-wlm slurmdbd munge "
            "mariadb-server, or set MRMILL_WITHOUT_SLURM=1 to leave out these tests"
        )
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # sockets have short names
    try:
        with cluster(folder) as variables:
            yield Site(variables)
    except BaseException:
        print(f"what Slurm's daemons had to say is in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)


@dataclass
class Run:
    """A project, and `mrmill run` on it through Slurm, watched from outside."""

    folder: Path
    site: Site
    variables: dict = field(default_factory=dict)
    arguments: tuple = ()

    def __post_init__(self):
        self.watch = self.folder / "watch"
        self.watch.mkdir(exist_ok=True)
        (self.watch / "log.txt").touch()
        self.process = None

    @property
    def environment(self):
        path = f"{HERE / 'hooks'}:{environment()['PYTHONPATH']}"
        watch = {"PYTHONPATH": path, "MRMILL_TEST_WATCH": str(self.watch)}
        return {**environment(), **self.site.variables, **watch, **self.variables}

    @property
    def command(self):
        return [
            *(sys.executable, "-m", "mrmill", "run", "-c", self.folder / "config.yaml"),
            *("--profile", PROFILE, "--latency-wait", 5, *self.arguments),
        ]

    def start(self, *before):
        """Start the controlling process, in a session of its own."""
        self.process = subprocess.Popen(
            list(map(str, (*before, *self.command))), env=self.environment, cwd=self.folder,
            stdout=(self.folder / "output.txt").open("a"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def finish(self, seconds=400):
        """Wait for the end of the run."""
        code = self.process.wait(seconds)
        assert code == 0, self.output()[-5000:]

    def output(self):
        return (self.folder / "output.txt").read_text()

    def kill(self):
        """Kill the controlling process and its Snakemake; jobs know nothing of it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def until_at_work(self, stage, seconds=240):
        """Wait until somebody holds a study of a stage; return its batch, stage and shard."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for path in sorted((self.folder / "work").glob(f"batch*/{stage}/*.lease")):
                where = (path.parents[1].name, stage, path.stem)
                lines = list(Journal(path.with_suffix(".jsonl")).lines())
                if self.worker(where) and lines and lines[-1]["event"] == "start":
                    return where
            assert self.process.poll() is None, self.output()[-5000:]
            time.sleep(0.05)
        raise AssertionError(f"nobody worked on {stage}: {self.output()[-5000:]}")

    def worker(self, where):
        """Process that holds the lease of a batch, stage and shard, if it lives."""
        path = WorkTree(self.folder / "work").lease(*where)
        holder = lease.read(path)
        return holder["pid"] if holder and not lease.is_stale(path, holder) else None

    def sessions(self):
        """Who had a shard's lease: whether alone, the shard, the process, its job."""
        return [line.split() for line in (self.watch / "log.txt").read_text().splitlines()]

    def jobs(self):
        """What accounting knows of this run's jobs."""
        from mrmill.slurm import job_prefix

        return self.site.accounted(job_prefix(self.folder / "work"))


def rule_of(job):
    return re.match("rule_(.*?)(_wildcards|$)", job["Comment"]).group(1)


def assert_as_undisturbed(run, finished):
    """The release is that of a run on one machine without disturbance, and nobody collided."""
    assert release_files(run.folder) == release_files(finished)
    seen = run.sessions()
    assert len(seen) >= 10, "the watch has to have seen the jobs"
    assert [words for words in seen if words[0] != "alone"] == []
    left = [p for p in (run.folder / "work").glob("batch*/**/*") if p.suffix in (".part", ".lease")]
    assert left == []


@pytest.fixture(scope="session")
def passed(site, tiny_export, tmp_path_factory):
    """A whole run whose controlling process is itself a step of a Slurm job."""
    folder = tmp_path_factory.mktemp("passed")
    project(folder, input={"path": str(tiny_export)}, resources=RESOURCES)
    run = Run(folder, site)
    run.start("srun", "-J", "controller", "-p", "cpu", "-c", 2, "--mem", 3000, "-t", 20)
    run.finish()
    return run


def test_a_run_through_slurm_gives_the_same_release(passed, finished):
    assert_as_undisturbed(passed, finished)
    assert not list((passed.folder / "work/.snakemake/slurm_logs").rglob("*.log"))


def test_only_gpu_rules_are_in_the_gpu_partition_with_one_gpu_each(passed):
    jobs = passed.jobs()
    assert {rule_of(job) for job in jobs} >= {"convert", "deface", "register", "catalog"}
    for job in jobs:
        assert job["State"] == "COMPLETED"
        is_gpu = rule_of(job) == "deface"
        assert job["Partition"] == ("gpu" if is_gpu else "cpu")
        assert ("gres/gpu=1" in job["AllocTRES"].split(",")) is is_gpu
        assert job["NodeList"].startswith(job["Partition"])


def test_the_profile_says_of_jobs_what_slurm_s_accounting_says(passed, site):
    """CPU but for Snakemake's last seconds; memory roughly: Slurm sums up RSS, once a second."""
    rows = read_attempts(WorkTree(passed.folder / "work"))
    assert len(rows) == len(passed.jobs())
    for row in rows:
        told = site("sacct", "-n", "-P", "-j", row["job_id"], "-oTotalCPU,MaxRSS").splitlines()
        cpu_s = max(seconds_of(line.split("|")[0]) for line in told)
        assert -0.5 <= cpu_s - row["cpu_s"] <= 2.5 + 0.1 * cpu_s, row["stage"]
        peaks_mb = [float(line.split("|")[1].removesuffix("K") or 0) / 1024 for line in told]
        assert 0.6 < row["peak_mb"] / max(sum(peaks_mb), 1) < 1.7, (row["stage"], peaks_mb)


def seconds_of(text):
    """Seconds of a duration as sacct writes it, [[D-]H:]M:S."""
    parts = [float(part) for part in text.replace("-", ":").split(":")]
    return sum(n * unit for n, unit in zip(reversed(parts), (1, 60, 3600, 86400), strict=False))


def test_slurm_never_hears_who_a_patient_is(passed, tiny_export):
    """Neither accounting nor the controller, in any field, has one of the phantom's names."""
    import pydicom

    secrets = {"CANARY"}
    for path in tiny_export.rglob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        secrets |= {header.StudyInstanceUID, header.PatientID, header.AccessionNumber}
        secrets |= {str(header.PatientName), header.StudyDate, header.PatientBirthDate}
    secrets.discard("")
    told = passed.site("sacct", "-P", "-S", "now-1days", "--format=ALL")
    told += passed.site("scontrol", "--details", "show", "job")
    assert "rule_deface_wildcards_batch00_shard0000" in told
    assert [s for s in secrets if s.upper() in told.upper()] == []
    # nor do names carry the project's: only a digest of its path, and a random number
    for job in passed.jobs():
        assert re.fullmatch(r"mrmill-[0-9a-f]{10}_[0-9a-f-]{36}", job["JobName"])
        assert re.fullmatch(
            r"rule_[a-z_]+(_wildcards_batch\d\d(_(native|coreg|atlas))?(_shard\d{4})?)?",
            job["Comment"],
        )


@pytest.fixture
def disturbed(site, tiny_export, finished, tmp_path, reported):
    """Return a block in which a run is disturbed, ends, and is compared with an undisturbed one."""

    @contextmanager
    def during(fault, resources=None, arguments=(), **variables):
        resources = {**RESOURCES, **(resources or {})}
        project(tmp_path, input={"path": str(tiny_export)}, resources=resources)
        run = Run(tmp_path, site, variables, arguments)
        try:
            with reported("Slurm", fault):
                run.start()
                yield run
                run.finish()
                assert_as_undisturbed(run, finished)
        finally:
            if run.process.poll() is None:
                run.kill()

    return during


def test_three_kills_change_nothing(disturbed, site):
    """A job cancelled, a worker killed, and the controlling process killed, all in one run."""
    fault = "a job cancelled; a worker killed; the controlling process killed and started again"
    slow = {"MRMILL_TEST_SLOW_STAGE": "register", "MRMILL_TEST_SLOW_S": "4"}
    with disturbed(fault, **slow) as run:
        where = run.until_at_work("deface")
        site("scancel", site.queued(*where))
        where = run.until_at_work("register")
        os.kill(run.worker(where), signal.SIGKILL)
        wait_for(lambda: run.worker(where) is None)
        where = run.until_at_work("register")
        run.kill()
        assert site.queued(*where), "the job goes on"
        run.start()
    assert "jobs of an earlier run" in run.output()


@pytest.mark.faults
def test_an_interrupted_run_leaves_no_job_behind(disturbed, site):
    with disturbed("Ctrl-C, then started again") as run:
        where = run.until_at_work("register")
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.process.wait(120) != 0
        wait_for(lambda: site.queued(*where) is None)
        run.start()
    assert "jobs of an earlier run" not in run.output()


@pytest.mark.faults
def test_a_drained_node_gets_no_more_jobs_until_it_is_resumed(disturbed, site):
    with disturbed("both CPU nodes drained for a while, then resumed") as run:
        where = run.until_at_work("register")
        job = site.queued(*where)
        site("scontrol", "update", "nodename=cpu1,cpu2", "state=drain", "reason=test")
        wait_for(lambda: site.queued(*where) != job, 120)  # what runs there ends
        assert job in [j["JobIDRaw"] for j in run.jobs() if j["State"] == "COMPLETED"]
        wait_for(lambda: "PENDING" in site("squeue", "-h", "-o%T"), 60)
        site("scontrol", "update", "nodename=cpu1,cpu2", "state=resume")


@pytest.mark.faults
def test_a_node_that_goes_down_takes_no_study_with_it(disturbed, site):
    with disturbed("the GPU node down with its jobs, then back") as run:
        where = run.until_at_work("deface")
        job = site.queued(*where)
        site("scontrol", "update", "nodename=gpu1", "state=down", "reason=test")
        wait_for(lambda: run.worker(where) is None)
        site("scontrol", "update", "nodename=gpu1", "state=resume")
    assert site("sacct", "-n", "-D", "-X", "-j", job, "-oState").split()[0] == "NODE_FAIL"


@pytest.mark.faults
def test_a_requeued_job_goes_on_where_it_was(disturbed, site):
    with disturbed("a job requeued, as preemption does") as run:
        where = run.until_at_work("register")
        job = site.queued(*where)
        site("scontrol", "requeue", job)
        wait_for(lambda: run.worker(where) is None)
    seen = [words for words in run.sessions() if words[1] == "-".join(where)]
    assert [words[3] for words in seen].count(job) >= 2, "the same job came back"


@pytest.mark.faults
def test_a_job_over_its_memory_gets_more(disturbed):
    """The first attempt's memory cannot hold the network; the second has twice as much."""
    resources = {"deface": {"threads": 2, "mem_mb": 700}}
    with disturbed("over its memory at the first attempt", resources) as run:
        pass
    jobs = [job for job in run.jobs() if rule_of(job) == "deface"]
    memory = {re.search(r"mem=(\d+)M", job["AllocTRES"]).group(1): job["State"] for job in jobs}
    assert memory == {"700": "FAILED", "1400": "COMPLETED"}
    logs = (run.folder / "work/.snakemake/slurm_logs/rule_deface").rglob("*.log")
    assert any("exceeded memory limit" in path.read_text() for path in logs)


@pytest.mark.faults
def test_a_job_over_its_time_keeps_what_it_had_done(disturbed):
    """One study of two is done in the minute given; Slurm looks at the clock twice a minute."""
    arguments = (
        *("--set-resources", "deface:slurm_partition=gpu", "deface:gpu=1"),
        "convert:runtime=1 if attempt == 1 else 10",
    )
    slow = {"MRMILL_TEST_SLOW_STAGE": "convert", "MRMILL_TEST_SLOW_S": "53"}
    resources = {"convert": {"threads": 1, "mem_mb": 2000}}
    with disturbed("over its time at the first attempt", resources, arguments, **slow) as run:
        pass
    jobs = [job for job in run.jobs() if rule_of(job) == "convert"]
    assert Counter(job["State"] for job in jobs) == {"TIMEOUT": 2, "COMPLETED": 2}
    for path in (run.folder / "work").glob("batch*/convert/*.jsonl"):
        first, second = "start record", "start interrupted start record"
        assert " ".join(line["event"] for line in Journal(path).lines()) == f"{first} {second}"


@contextmanager
def small_disk(folder, megabytes):
    """Mount a disk of a few megabytes."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk):
    """Leave nothing free on a disk; return the file that takes it all."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(2**20))
                file.flush()
        except OSError:
            pass
    return filler


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["convert", "deface", "register"])
def test_a_full_disk_marks_no_study(disturbed, tmp_path, stage):
    with (
        small_disk(tmp_path / "work", 400),
        disturbed(f"work tree's disk full during {stage}, then room again") as run,
    ):
        run.until_at_work(stage)
        filler = fill(tmp_path / "work")
        assert run.process.wait(300) != 0
        filler.unlink()
        run.start()
        run.finish()


@pytest.mark.faults
def test_a_full_scratch_disk_stops_nobody(disturbed, tmp_path):
    """What has a disk for temporary files without room goes elsewhere, and leaves nothing."""
    with small_disk(tmp_path / "scratch", 1) as scratch:
        with disturbed("$TMPDIR full from deface on", TMPDIR=str(scratch)) as run:
            run.until_at_work("deface")
            filler = fill(scratch)
        filler.unlink()
        assert list(scratch.iterdir()) == []


def wait_for(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)
