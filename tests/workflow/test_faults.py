"""Killed, starved, poisoned: the next run ends in the bytes of an undisturbed one.

Every kill takes the whole process group with SIGKILL, at a random moment in a stage chosen
beforehand. `MRMILL_KILLS` says how many (default 3; `make test-faults` takes 24).
"""

import csv
import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
from conftest import environment, mrmill, project, release_files

from mrmill.records import Journal, read_signed

N_KILLS = int(os.environ.get("MRMILL_KILLS", "3"))

#: Where a kill may hit, in the order of a run; of three kills each hits one that takes longest.
PLACES = {
    "plan": "plan/index",
    "convert": "batch*/convert/*.jsonl",
    "curate": "batch*/curate/*.jsonl",
    "deface": "batch*/deface/*.jsonl",
    "register": "batch*/register/*.jsonl",
    "package-native": "batch*/package-native/*.jsonl",
    "package-coreg": "batch*/package-coreg/*.jsonl",
    "package-atlas": "batch*/package-atlas/*.jsonl",
    "catalog": "logs/**/catalog.log",
}
FEW = ("deface", "register", "package-atlas")

WORKERS = 2


class Run:
    """A run that goes on by itself until it is killed."""

    def __init__(self, config):
        self.work = config.parent / "work"
        command = [sys.executable, "-m", "mrmill", "run", "-c", str(config), "--cores", "2"]
        with (config.parent / "output.txt").open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env=environment(),
                start_new_session=True,
                stdout=output,
                stderr=output,
            )

    @property
    def goes_on(self):
        return self.process.poll() is None

    def wait_for(self, place, seconds=300):
        """Wait until something more is written there; False when the run ends before."""
        before, deadline = written(self.work, place), time.monotonic() + seconds
        while written(self.work, place) == before and self.goes_on:
            assert time.monotonic() < deadline, f"nothing happens in {place}"
            time.sleep(0.02)
        return self.goes_on

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def written(work, place):
    return {path: path.stat().st_size for path in work.glob(PLACES[place])}


def is_hit_again(work):
    """Whether a study is in flight that was at a death before: a second one would fail it."""
    for path in work.glob("batch*/*/*.jsonl"):
        if any(seen.deaths > 1 for seen in Journal(path).history().values()):
            return True
    return False


def records(work):
    """How often each study was recorded in each stage, by journal."""
    found = Counter()
    for path in work.glob("batch*/*/*.jsonl"):
        for raw in path.read_bytes().splitlines(keepends=True):
            line = read_signed(raw)
            if line and line["event"] == "record":
                found[path.parent.name, line["study_uid"]] += 1
    return found


def test_killed_at_random_moments_it_ends_in_the_same_bytes(
    finished, tiny_export, tmp_path, reported
):
    fault = f"{N_KILLS} times killed (SIGKILL, all processes at once), at random moments"
    with reported("one machine", fault):
        kill_again_and_again(finished, tiny_export, tmp_path)


def kill_again_and_again(finished, tiny_export, tmp_path):
    """Kill runs until there were enough kills; each goes on to its end at last."""
    rng = random.Random(time.time_ns() if N_KILLS > 3 else 0)
    hit = Counter()
    n_projects = 0
    while hit.total() < N_KILLS:
        n_projects += 1
        config = project(tmp_path / f"p{n_projects}", input={"path": str(tiny_export)})
        wanted = list(FEW) if N_KILLS <= 3 else rng.sample(list(PLACES), 6)
        for place in sorted(wanted, key=list(PLACES).index):
            hit[place] += kill_in(place, config, rng)
        ends_as(finished, config)
    print(f"{hit.total()} kills in {n_projects} runs: {dict(hit)}")


def kill_in(place, config, rng):
    """Kill a run a random time after it goes on in a place; say whether it came to that."""
    run = Run(config)
    if not run.wait_for(place):
        return False
    time.sleep(rng.uniform(0, 1.0))
    while is_hit_again(run.work) and run.goes_on:
        time.sleep(0.02)
    if not run.goes_on:
        return False
    kept = records(run.work)
    run.kill()
    assert records(run.work) >= kept
    return True


def ends_as(finished, config):
    """Let a run go to its end: same bytes, nothing done twice, nothing left behind."""
    result = mrmill("run", "-c", config, "--cores", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    work = config.parent / "work"
    assert release_files(config.parent) == release_files(finished)
    assert set(records(work).values()) == {1}, "what was recorded is not done again"
    assert not [p for p in config.parent.rglob("*.part") if "usage" not in p.parts]
    assert not list(work.rglob("*.lease"))


@pytest.fixture
def disk(tmp_path):
    """A project folder whose work and release lie on a disk that can be made smaller."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=8g", "none", str(place)]
    if os.getuid() or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a disk")
    for name in ("work", "release"):
        (place / name).mkdir()
        (tmp_path / name).symlink_to(place / name)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def resize(disk, n_bytes):
    subprocess.run(["mount", "-o", f"remount,size={n_bytes}", str(disk)], check=True)


@pytest.mark.faults
@pytest.mark.parametrize("place", ["convert", "deface", "register", "package-atlas"])
def test_a_full_disk_stops_the_run_and_blames_no_study(
    finished, tiny_export, tmp_path, disk, reported, place
):
    with reported("one machine", f"disk of both trees full during {place}, then room again"):
        fill_and_go_on(finished, project(tmp_path, input={"path": str(tiny_export)}), disk, place)


def fill_and_go_on(finished, config, disk, place):
    """Take a run's room away in a place, and give it back once the run has stopped."""
    run, folder = Run(config), config.parent
    assert run.wait_for(place)
    resize(disk, shutil.disk_usage(disk).used + 100_000)
    assert run.process.wait(timeout=300) != 0
    told = (folder / "output.txt").read_text() + logs(folder)
    assert "No space left" in told or "Errno 28" in told
    for path in run.work.glob("batch*/*/*.jsonl"):
        states = {record.outcome.state for record in Journal(path).records().values()}
        assert states <= {"accepted", "rejected"}
    resize(disk, 8 * 2**30)
    ends_as(finished, config)


def logs(folder):
    return "".join(p.read_text(errors="replace") for p in (folder / "work/logs").rglob("*.log"))


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_record_is_made_again(finished, tmp_path, damage):
    copy = shutil.copytree(finished, tmp_path / "copy")
    for stage in ("convert", "deface", "package-coreg"):
        path = sorted((copy / "work").glob(f"batch00/{stage}/*.jsonl"))[0]
        raw = path.read_bytes()
        middle = len(raw) // 2
        path.write_bytes(raw[:-40] if damage == "cut" else raw[:middle] + b"#" + raw[middle + 1 :])
    result = mrmill("run", "-c", copy / "config.yaml", "--cores", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert release_files(copy) == release_files(finished)


#: What is wrong with an image, and what its series is told.
POISONS = {
    "cut": "unreadable_image",
    "nan": "non_finite_voxels",
    "4d": "not_3d",
    "empty": "unreadable_image",
}


def test_poisoned_studies_end_with_a_reason_and_the_others_finish(tmp_path):
    """Four copies of a study, each with another wrong image."""
    export = tmp_path / "export"
    assert mrmill("phantom", export, "--preset", "tiny", "--kind", "nifti").returncode == 0
    table = export / "series.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    first = [row for row in rows if row["study_id"] == rows[0]["study_id"]]
    for number, poison in enumerate(POISONS):
        rows += poisoned(export, first, number, poison)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    config = project(
        tmp_path,
        input={"kind": "nifti", "path": "export", "series_table": "export/series.csv"},
        spaces=["native"],
    )
    result = mrmill("run", "-c", config, "--cores", 2)
    assert result.returncode == 0, result.stdout + result.stderr
    with (tmp_path / "release/TINY/ledger.csv").open(newline="") as file:
        reasons = Counter(row["reason"] for row in csv.DictReader(file))
    assert {r: reasons[r] for r in set(POISONS.values())} == dict(Counter(POISONS.values()))
    assert mrmill("verify", tmp_path / "release").returncode == 0


def poisoned(export, rows, number, poison):
    """Copy the images of a study for another patient, and spoil the first; return the rows."""
    made = []
    for n, row in enumerate(rows):
        source = export / row["path"]
        name = f"poison-{number}/{source.name}"
        target = export / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(source.with_name(source.name.replace(".nii.gz", ".json")), target.parent)
        if n == 0:
            spoil(source, target, poison)
        else:
            shutil.copy(source, target)
        made.append(row | {"path": name, "patient_id": f"POISON{number}", "study_id": f"S{number}"})
    return made


def spoil(source, target, poison):
    image = nib.load(source)
    data = image.get_fdata(dtype=np.float32)
    match poison:
        case "cut":
            target.write_bytes(source.read_bytes()[:-5000])
        case "nan":
            data[3, 3, 3] = np.nan
            nib.save(nib.Nifti1Image(data, image.affine), target)
        case "4d":
            nib.save(nib.Nifti1Image(np.stack([data, data], axis=-1), image.affine), target)
        case "empty":
            target.write_bytes(gzip.compress(b""))
